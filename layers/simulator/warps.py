"""Shuffles, votes and matches: what the lanes of a warp tell each other without shared memory.

Each of these instructions is a barrier for the lanes of its mask, as `syncwarp` is, but orders no
memory accesses. Lanes that have returned are exempt. Hardware leaves undefined what a lane reads
from one that takes no part; here it is poison (`arrays.py`).

`activemask` is refused: it tells which lanes happen to run together, and here each runs alone. So
are cooperative groups, whose blocks would have to run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

WARP = 32

Combine = Callable[[list[Any]], list[Any]]

REFUSED = {
    "activemask": "which lanes happen to run together is not simulated: pass the mask of the lanes "
    "that have to take part, such as 0xffffffff",
    "cg": "cooperative groups, such as grid().sync(), are not simulated: blocks run one after "
    "another; use one launch for what comes before the barrier, and one for what comes after",
    **dict.fromkeys(
        ("ldca", "ldcg", "ldcs", "ldcv", "ldlu", "stcg", "stcs", "stwb", "stwt"),
        "cache hints are not simulated: use x[i]",
    ),
}
"""Names of `cuda` that a GPU knows and the simulator does not, and what to do."""


def poison(dtype: Any) -> Any:
    """What memory that nothing has written holds in the simulator: hard to overlook."""
    dtype = np.dtype(dtype)
    if dtype.kind in "fc":
        return dtype.type(np.nan)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return dtype.type(limits.min if dtype.kind == "i" else limits.max)
    return dtype.type(True)


def _shuffle(parts: list[Any]) -> list[Any]:
    """parts: (lane, value, source lane) of each lane that takes part."""
    values = {lane: value for lane, value, _ in parts}
    return [
        values[source] if source in values else poison(np.asarray(value).dtype)
        for _, value, source in parts
    ]


def _vote(count: Callable[[list[bool]], Any]) -> Combine:
    def combine(parts: list[Any]) -> list[Any]:
        return [count([bool(vote) for _, vote in parts])] * len(parts)

    return combine


def _bits(lanes: list[int]) -> int:
    return sum(1 << lane for lane in lanes)


def _ballot(parts: list[Any]) -> list[Any]:
    return [_bits([lane for lane, vote in parts if vote])] * len(parts)


def _match_any(parts: list[Any]) -> list[Any]:
    return [_bits([lane for lane, other in parts if other == value]) for _, value in parts]


def _match_all(parts: list[Any]) -> list[Any]:
    same = all(value == parts[0][1] for _, value in parts)
    return [(_bits([lane for lane, _ in parts]) if same else 0, same)] * len(parts)


_all, _any = _vote(all), _vote(any)
_eq = _vote(lambda votes: len(set(votes)) == 1)


class WarpCuda:
    """The part of a kernel's `cuda` that concerns the lanes of a warp.

    Every method calls `_wait` itself: that finds the kernel's line by counting frames.
    """

    _wait: Callable[..., Any]

    @property
    def laneid(self) -> int:
        """The thread's lane: its number in its warp."""
        raise NotImplementedError

    def _lanes(self, call: str, mask: Any) -> int:
        mask = int(mask) & 0xFFFFFFFF
        if not mask >> self.laneid & 1:
            raise ValueError(f"{call}({mask:#010x}) by lane {self.laneid}, which is not in it")
        return mask

    def _shuffled(self, call: str, value: Any, source: Any) -> tuple[int, Any, int]:
        dtype = np.asarray(value).dtype
        if dtype.kind not in "iuf" or dtype.itemsize not in (4, 8):
            raise TypeError(f"{call} of {dtype}: it takes integers and floats of 32 or 64 bits")
        source = int(source)
        return self.laneid, value, source if 0 <= source < WARP else self.laneid

    def syncwarp(self, mask: Any = 0xFFFFFFFF) -> None:
        """Wait for the lanes of the warp whose bits are set in `mask`, the caller's among them."""
        self._wait("syncwarp", mask=self._lanes("syncwarp", mask))

    def shfl_sync(self, mask: Any, value: Any, src_lane: Any) -> Any:
        """`value` of lane `src_lane` modulo 32."""
        part = self._shuffled("shfl_sync", value, int(src_lane) % WARP)
        return self._wait("shfl_sync", part, self._lanes("shfl_sync", mask), _shuffle)

    def shfl_up_sync(self, mask: Any, value: Any, delta: Any) -> Any:
        """`value` of the lane `delta` lower; the own one where there is none."""
        part = self._shuffled("shfl_up_sync", value, self.laneid - int(delta))
        return self._wait("shfl_up_sync", part, self._lanes("shfl_up_sync", mask), _shuffle)

    def shfl_down_sync(self, mask: Any, value: Any, delta: Any) -> Any:
        """`value` of the lane `delta` higher; the own one where there is none."""
        part = self._shuffled("shfl_down_sync", value, self.laneid + int(delta))
        return self._wait("shfl_down_sync", part, self._lanes("shfl_down_sync", mask), _shuffle)

    def shfl_xor_sync(self, mask: Any, value: Any, lane_mask: Any) -> Any:
        """`value` of the lane whose number is the own one XOR `lane_mask`."""
        part = self._shuffled("shfl_xor_sync", value, self.laneid ^ int(lane_mask))
        return self._wait("shfl_xor_sync", part, self._lanes("shfl_xor_sync", mask), _shuffle)

    def all_sync(self, mask: Any, predicate: Any) -> bool:
        """Whether the predicate holds in every lane of the mask."""
        vote = self.laneid, predicate
        return self._wait("all_sync", vote, self._lanes("all_sync", mask), _all)

    def any_sync(self, mask: Any, predicate: Any) -> bool:
        """Whether the predicate holds in any lane of the mask."""
        vote = self.laneid, predicate
        return self._wait("any_sync", vote, self._lanes("any_sync", mask), _any)

    def eq_sync(self, mask: Any, predicate: Any) -> bool:
        """Whether the predicate is the same in all lanes of the mask."""
        vote = self.laneid, predicate
        return self._wait("eq_sync", vote, self._lanes("eq_sync", mask), _eq)

    def ballot_sync(self, mask: Any, predicate: Any) -> int:
        """The bits of the lanes in which the predicate holds."""
        vote = self.laneid, predicate
        return self._wait("ballot_sync", vote, self._lanes("ballot_sync", mask), _ballot)

    def match_any_sync(self, mask: Any, value: Any) -> int:
        """The bits of the lanes that have the same value."""
        part = self.laneid, value
        return self._wait("match_any_sync", part, self._lanes("match_any_sync", mask), _match_any)

    def match_all_sync(self, mask: Any, value: Any) -> tuple[int, bool]:
        """The bits of all lanes and True, if all have the same value; else 0 and False."""
        part = self.laneid, value
        return self._wait("match_all_sync", part, self._lanes("match_all_sync", mask), _match_all)

    def lanemask_lt(self) -> int:
        """The bits of all lanes below this one."""
        return (1 << self.laneid) - 1

    def nanosleep(self, ns: Any) -> None:
        """Do nothing: time is not simulated."""
