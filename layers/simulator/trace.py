"""What a simulated kernel did, access by access: recorded as it runs, looked at afterwards.

    with simulator.record() as traces:
        layer.forward(x)                    # every launch in here leaves a Trace
    traces[0].accesses                      # one row for each read and write, in order

While recording, the arrays of a kernel note every access in one list: which element of which
array, by which instruction, in which *segment*. A segment is a stretch of one thread between two
barriers: the scheduler begins a new one whenever it lets a thread go on. What two segments may do
to each other without being ordered is what the checks in `tinyconv/lab/` are about; so is what
the accesses of a warp cost. Nothing is judged here.
"""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np

from layers.simulator.arrays import WARP, Dim3, KernelArray

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


class WatchedArray(KernelArray):
    """A KernelArray that notes every access in its recorder."""

    __slots__ = ("number", "recorder", "start", "steps")

    def __init__(self, data: np.ndarray, name: str, recorder: Recorder, number: int, start: int):
        super().__init__(data, name)
        self.recorder = recorder
        self.number = number
        self.start = start
        self.steps = tuple(stride // data.itemsize for stride in data.strides)

    def offsets(self, indices: list[Any]) -> np.ndarray:
        """Where the elements at `indices` lie, in elements from the whole array's first one."""
        table = np.array(indices, np.int64).reshape(len(indices), -1)
        return self.start + table @ np.array(self.steps[: table.shape[1]], np.int64)

    def __getitem__(self, index: Any) -> Any:
        value = KernelArray.__getitem__(self, index)
        recorder = self.recorder
        if isinstance(value, KernelArray):  # a row: nothing is read yet
            start = int(self.offsets([index])[0])
            return WatchedArray(value.data, value.name, recorder, self.number, start)
        frame = sys._getframe(1)
        recorder.note((self, index, False, recorder.segment, frame.f_code, frame.f_lasti))
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        KernelArray.__setitem__(self, index, value)
        recorder = self.recorder
        frame = sys._getframe(1)
        recorder.note((self, index, True, recorder.segment, frame.f_code, frame.f_lasti))


class Recorder:
    """Notes what one launch does; `finish` makes the Trace of it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.segment = -1
        self.block = 0
        # Of each access: array, index, whether it writes, segment, code, place in the code. What
        # they come to is worked out at the end, for all at once.
        self._notes: list[tuple[WatchedArray, Any, bool, int, CodeType, int]] = []
        self.note = self._notes.append
        self._segments: list[tuple[int, int, int, int]] = []
        self._epoch = 0
        self._warp_epochs: dict[int, int] = {}

    def watch(
        self, data: np.ndarray, name: str, space: str, thread: int | None = None
    ) -> WatchedArray:
        """`data` as the kernel sees it, from now on noted."""
        block = None if space == GLOBAL else self.block
        self.trace.arrays.append(ArrayInfo(name, space, data, block, thread))
        return WatchedArray(data, name, self, len(self.trace.arrays) - 1, 0)

    def begin_block(self, number: int) -> None:
        """The threads to come are those of block `number`."""
        self.block = number
        self._epoch = 0
        self._warp_epochs = {}

    def begin_segment(self, thread: int) -> None:
        """`thread` of the block goes on, or starts."""
        self._segments.append((self.block, thread, self._epoch, self._warp_epochs.get(thread, 0)))
        self.segment = len(self._segments) - 1

    def open_barrier(self, call: str, file: str, line: int, threads: list[int]) -> None:
        """A barrier has opened; `threads` waited there."""
        if call == "syncwarp":
            for thread in threads:
                self._warp_epochs[thread] = self._warp_epochs.get(thread, 0) + 1
        else:
            self._epoch += 1
        self.trace.meetings.append(
            Meeting(call, file, line, self.block, tuple(threads), len(self._notes))
        )

    def finish(self) -> Trace:
        """The trace, with its tables filled; also after a launch that failed half-way."""
        trace = self.trace
        trace.segments = np.array(self._segments, SEGMENT)
        trace.accesses = np.empty(len(self._notes), ACCESS)
        if self._notes:
            arrays, indices, writes, segments, codes, instructions = zip(*self._notes, strict=True)
            trace.accesses["write"] = writes
            trace.accesses["segment"] = segments
            rows: dict[WatchedArray, list[int]] = {}
            for row, array in enumerate(arrays):
                rows.setdefault(array, []).append(row)
            for array, mine in rows.items():
                trace.accesses["array"][mine] = array.number
                trace.accesses["offset"][mine] = array.offsets([indices[row] for row in mine])
            spots = list(zip(codes, instructions, strict=True))
            numbers = {spot: number for number, spot in enumerate(dict.fromkeys(spots))}
            trace.accesses["place"] = [numbers[spot] for spot in spots]
            trace.places = [
                Place(code.co_filename, _line(code, instruction), code.co_name, instruction)
                for code, instruction in numbers
            ]
        return trace


def _line(code: CodeType, instruction: int) -> int:
    """The source line of an instruction, by its offset in the bytecode."""
    for first, last, line in code.co_lines():
        if first <= instruction < last and line is not None:
            return line
    return code.co_firstlineno


def warp_of(threads: np.ndarray) -> np.ndarray:
    """The warp of each thread number."""
    return threads // WARP
