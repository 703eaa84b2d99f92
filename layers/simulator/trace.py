"""What a simulated kernel did, access by access: recorded as it runs, looked at afterwards.

    with simulator.record() as traces:
        layer.forward(x)                    # every launch in here leaves a Trace
    traces[0].accesses                      # one row for each read and write, in order

While recording, the arrays of a kernel note every access in one list: which element of which
array, by which instruction, in which *segment*. A segment is a stretch of one thread between two
barriers: the scheduler begins a new one whenever it lets a thread go on. What two segments may do
to each other without being ordered is what the checks in `tinyconv/lab/` are about; so is what
the accesses of a warp cost. Nothing is judged here; `recorder.py` does the noting.
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
        ("place", np.int32),
    ]
)
"""One read or write. array, segment, place: rows of the trace's tables. offset: of the element in
memory, counted in elements from the array's first one."""

SEGMENT = np.dtype(
    [("block", np.int32), ("thread", np.int32), ("epoch", np.int32), ("warp_epoch", np.int32)]
)
"""A stretch of a thread between barriers. block: x fastest. thread: in its block, x fastest; 32 in
a row are a warp. epoch: barriers of the whole block passed; warp_epoch: barriers of warps (or parts
of them) that this thread has passed, in the whole block's life."""


@dataclass(frozen=True)
class ArrayInfo:
    """An array that the kernel touched."""

    name: str
    """Parameter name, or "shared array of line 12"."""
    space: str
    """GLOBAL, SHARED (one for each block) or LOCAL (one for each thread)."""
    data: np.ndarray
    """The memory itself, as it is after the launch."""
    block: int | None
    """The block that a shared or local array belongs to."""
    thread: int | None
    """The thread that a local array belongs to."""

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
        """Of the first element, in bytes."""
        return int(self.data.__array_interface__["data"][0])


@dataclass(frozen=True)
class Place:
    """An instruction of the source that reads or writes an array."""

    file: str
    line: int
    function: str
    instruction: int
    """Its offset in the function's bytecode: a line may hold several."""
    atomic: bool = False
    """Whether it is a call of `cuda.atomic`, whose reads and writes are one step on a GPU."""
    wide: bool = False
    """Whether it moves 16 bytes: a call of `copy_vec4` or its like, which makes several accesses
    here and is one instruction on a GPU."""
    arrival: bool = False
    """Whether it waits for copies that other places began, whose writes then happen. That they
    begin is noted there, as a write as well."""

    def width(self, itemsize: int) -> int:
        """How many neighbouring elements of `itemsize` bytes it moves."""
        return 16 // itemsize if self.wide else 1

    @property
    def source(self) -> str:
        """The line's text, without indentation."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True)
class Meeting:
    """A barrier that opened: `threads` of `block` waited, and went on together."""

    call: str
    """"syncthreads", "syncwarp", ..."""
    file: str
    line: int
    block: int
    threads: tuple[int, ...]
    after: int
    """How many accesses had been recorded when it opened."""


@dataclass
class Trace:
    """One launch: every access in the order in which the simulator made it."""

    kernel: str
    file: str
    line: int
    grid: Dim3
    block: Dim3
    arrays: list[ArrayInfo] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    segments: np.ndarray = field(default_factory=lambda: np.empty(0, SEGMENT))
    accesses: np.ndarray = field(default_factory=lambda: np.empty(0, ACCESS))
    arguments: tuple[Any, ...] = ()
    """What the kernel was launched with; its arrays are the first of `arrays`, in this order."""

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
