"""Where simulated threads wait for each other, and what they are told when they go on.

A barrier is one call in the source: of `syncthreads` and its votes for a whole block, of `syncwarp`
for the lanes of a mask, or of something that a warp does as one (`layers/fast/conv/mma.py`), for which
all of its 32 lanes must come. What threads hand in there, a vote or their part of a matrix, is
combined when the barrier opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from layers.simulator.arrays import WARP, Dim3
from layers.simulator.copies import Copies

Combine = Callable[[list[Any]], list[Any]]
"""What is made of the parts that threads hand in where they meet: an answer for each, in order."""


class Thread:
    """One CUDA thread: where it is in its block, and how far it has come."""

    __slots__ = ("copies", "finished", "greenlet", "number", "part", "threadIdx")

    def __init__(self, number: int, threadIdx: Dim3):
        self.number = number  # x fastest; 32 in a row are a warp
        self.threadIdx = threadIdx
        self.greenlet: Any = None  # None until it first waits
        self.part: Any = None  # handed in where it waits, as a vote; later, the answer
        self.copies: Copies | None = None  # None until it begins one
        self.finished = False


class Barrier:
    """Where threads meet: one call in the source, for the whole block, a warp, or some lanes."""

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
        self.mask = mask  # None: all lanes, none of them exempt
        self.combine = combine
        self.waiting: list[Thread] = []

    def is_full(self, threads: list[Thread]) -> bool:
        """Whether none of the block's `threads` is missing here."""
        if self.warp is None:
            return len(self.waiting) == len(threads)  # who has returned is missing for good
        if self.mask is None:
            return len(self.waiting) == WARP
        lanes = threads[self.warp * WARP : (self.warp + 1) * WARP]
        named = (lane for i, lane in enumerate(lanes) if self.mask >> i & 1)
        return len(self.waiting) == sum(not lane.finished for lane in named)

    def open(self) -> list[Thread]:
        """The threads that waited, in order, each given the answer to its part."""
        released, self.waiting = sorted(self.waiting, key=attrgetter("number")), []
        if self.combine is not None:
            answers = self.combine([thread.part for thread in released])
            for thread, answer in zip(released, answers, strict=True):
                thread.part = answer
        return released

    def __str__(self) -> str:
        arguments = "" if self.mask is None else f"{self.mask:#010x}"
        return f"{self.call}({arguments}) in {self.file}:{self.line}"


def _vote(count: Callable[[Iterable[bool]], int]) -> Combine:
    return lambda votes: [int(count(map(bool, votes)))] * len(votes)


VOTES = {
    "syncthreads_count": _vote(sum),
    "syncthreads_and": _vote(all),
    "syncthreads_or": _vote(any),
}
