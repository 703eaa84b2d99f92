"""The trace of a simulated kernel: every access, recorded while it runs.

    with simulator.record() as traces:
        layer.forward(x)                    # every launch in here leaves a Trace
    traces[0].accesses                      # one row for each read and write, in order

In a recorded launch each access is noted: which element of which array, by which instruction, in
which *segment*. A segment is the part of one thread between two barriers; the scheduler begins a
new one whenever it resumes a thread. A trace makes no judgement. Tools built on it decide which
segments may race and what the accesses of a warp cost. `recorder.py` writes it.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layers.simulator.arrays import WARP, Dim3

GLOBAL, SHARED, LOCAL = "global", "shared", "local"

ACCESS = np.dtype(
    [
        ("array", np.int32),
        ("offset", np.int64),
        ("write", np.bool_),
        ("segment", np.int32),
        ("instruction", np.int32),
    ]
)
"""One read or write. array, segment, instruction: rows of the trace's tables. offset: of the
element in memory, in elements from the array's first one."""

SEGMENT = np.dtype(
    [("block", np.int32), ("thread", np.int32), ("epoch", np.int32), ("warp_epoch", np.int32)]
)
"""A part of one thread between barriers. block: x fastest. thread: in its block, x fastest; 32 in a
row are a warp. epoch: block barriers passed so far. warp_epoch: `syncwarp` barriers that this
thread has passed so far."""


@dataclass(frozen=True)
class ArrayInfo:
    """An array that the kernel touched."""

    name: str
    """Parameter name, or "shared array of line 12"."""
    space: str
    """GLOBAL, SHARED (one for each block) or LOCAL (one for each thread)."""
    data: np.ndarray
    """The memory itself, as the launch left it."""
    block: int | None
    """The block that owns a shared or local array."""
    thread: int | None
    """The thread that owns a local array."""

    def index(self, offset: int) -> tuple[int, ...]:
        """The index of the element at `offset` (see ACCESS)."""
        rest, index = offset, [0] * self.data.ndim
        strides = [stride // self.data.itemsize for stride in self.data.strides]
        for axis in sorted(range(self.data.ndim), key=lambda a: -abs(strides[a])):
            if strides[axis] and self.data.shape[axis] > 1:
                index[axis] = int(rest // strides[axis])
                rest -= index[axis] * strides[axis]
        return tuple(index)

    @property
    def address(self) -> int:
        """The address of the first element, in bytes."""
        return int(self.data.__array_interface__["data"][0])


@dataclass(frozen=True)
class Instruction:
    """An instruction of the source that reads or writes an array."""

    file: str
    line: int
    function: str
    offset: int
    """In the function's bytecode: a line may hold several instructions."""
    atomic: bool = False
    """Whether it calls `cuda.atomic`, whose reads and writes are one step on a GPU."""
    vectorized: int = 0
    """Elements that it moves, 16 bytes at a time: several accesses here, one instruction on a GPU.
    0: it moves one."""
    arrival: bool = False
    """Whether it waits for asynchronous copies, whose writes then happen. The instructions that
    begin them are recorded as writing, too."""

    def width(self, itemsize: int) -> int:
        """The number of consecutive elements of `itemsize` bytes that it moves."""
        return min(self.vectorized, 16 // itemsize) if self.vectorized else 1

    @property
    def source(self) -> str:
        """The line's text, without indentation."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True)
class BarrierEvent:
    """A barrier that opened: `threads` of `block` waited there and were released together."""

    call: str
    """"syncthreads", "syncwarp", ..."""
    file: str
    line: int
    block: int
    threads: tuple[int, ...]
    after: int
    """The number of accesses recorded before it opened."""


@dataclass(frozen=True)
class GroupEvent:
    """A thread commits a group of asynchronous copies, or waits until `newest` are pending."""

    call: str
    """"commit" or "wait"."""
    newest: int
    segment: int
    """Of the thread, a row of Trace.segments."""
    after: int
    """The number of accesses recorded before it."""


@dataclass
class Trace:
    """One launch: every access, in the order in which the simulator made it."""

    kernel: str
    file: str
    line: int
    grid: Dim3
    block: Dim3
    arrays: list[ArrayInfo] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    barrier_events: list[BarrierEvent] = field(default_factory=list)
    group_events: list[GroupEvent] = field(default_factory=list)
    segments: np.ndarray = field(default_factory=lambda: np.empty(0, SEGMENT))
    accesses: np.ndarray = field(default_factory=lambda: np.empty(0, ACCESS))
    arguments: tuple[Any, ...] = ()
    """The kernel's arguments; its arrays come first in `arrays`, in this order."""

    @property
    def threads(self) -> int:
        """Threads in a block."""
        return self.block.x * self.block.y * self.block.z

    @property
    def blocks(self) -> int:
        """Blocks in the grid."""
        return self.grid.x * self.grid.y * self.grid.z


def warp_of(threads: np.ndarray) -> np.ndarray:
    """The warp of each thread number."""
    return threads // WARP
