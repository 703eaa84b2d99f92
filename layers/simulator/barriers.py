"""Simulated threads, and the barriers at which they wait for each other.

A barrier is one call in the source: `syncthreads` and its votes for a whole block, `syncwarp` for
the lanes of a mask, or a *collective*, an emulated intrinsic that all 32 lanes of a warp execute
together. Each thread hands in a part there, such as a vote or a fragment of a matrix; the parts
are combined when the barrier opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from layers.simulator.arrays import WARP, Dim3
from layers.simulator.copies import Copies
from layers.simulator.errors import BarrierWait, Position

Combine = Callable[[list[Any]], list[Any]]
"""Turns the parts that threads hand in at a barrier into one answer for each, in order."""


def xyz(dim: Dim3) -> Position:
    """A position as a tuple."""
    return dim.x, dim.y, dim.z


class Thread:
    """One CUDA thread: its position in the block and its state."""

    __slots__ = ("copies", "greenlet", "number", "part", "returned", "threadIdx")

    def __init__(self, number: int, threadIdx: Dim3):
        self.number = number  # x fastest; 32 in a row are a warp
        self.threadIdx = threadIdx
        self.greenlet: Any = None  # None until it first waits
        self.part: Any = None  # handed in at a barrier, such as a vote; then the answer
        self.copies: Copies | None = None  # None until it begins one
        self.returned = False


class Barrier:
    """One call in the source that the block, a warp, or some lanes of a warp must all reach."""

    def __init__(
        self,
        call: str,
        file: str,
        line: int,
        warp: int | None,
        mask: int | None,
        combine: Combine | None,
    ):
        self.call = call
        self.file = file
        self.line = line
        self.warp = warp  # None: the whole block
        self.mask = mask  # None: all 32 lanes, none exempt
        self.combine = combine
        self.waiting: list[Thread] = []

    def is_full(self, threads: list[Thread]) -> bool:
        """Whether all of the block's `threads` that must come are here."""
        if self.warp is None:
            return len(self.waiting) == len(threads)  # a returned thread is missing
        if self.mask is None:
            return len(self.waiting) == WARP
        lanes = threads[self.warp * WARP : (self.warp + 1) * WARP]
        named = (lane for i, lane in enumerate(lanes) if self.mask >> i & 1)
        return len(self.waiting) == sum(not lane.returned for lane in named)

    def open(self) -> list[Thread]:
        """Give each waiting thread its answer; returns these threads, in order of their numbers."""
        released, self.waiting = sorted(self.waiting, key=attrgetter("number")), []
        if self.combine is not None:
            answers = self.combine([thread.part for thread in released])
            for thread, answer in zip(released, answers, strict=True):
                thread.part = answer
        return released

    def wait(self) -> BarrierWait:
        """This barrier and its waiting threads, for an error."""
        arguments = "" if self.mask is None else f"{self.mask:#010x}"
        threads = tuple(xyz(thread.threadIdx) for thread in self.waiting)
        return BarrierWait(f"{self.call}({arguments})", self.file, self.line, threads)


def _vote(count: Callable[[Iterable[bool]], int]) -> Combine:
    return lambda votes: [int(count(map(bool, votes)))] * len(votes)


VOTES = {
    "syncthreads_count": _vote(sum),
    "syncthreads_and": _vote(all),
    "syncthreads_or": _vote(any),
}
