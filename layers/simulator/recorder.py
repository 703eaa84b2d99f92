"""Recording: arrays that note every access, and the tables made from these notes.

`RecordedArray` appends five values to a list at each access and does nothing else while the kernel
runs. `Recorder` turns the list into the tables of a `Trace`, one batch of notes at a time.
"""

from __future__ import annotations

import dis
from bisect import bisect_right
from functools import cache
from itertools import chain
from sys import _getframe
from types import CodeType
from typing import Any

import numpy as np

from layers.simulator import intrinsics
from layers.simulator.arrays import KernelArray
from layers.simulator.trace import (
    ACCESS,
    GLOBAL,
    SEGMENT,
    ArrayInfo,
    BarrierEvent,
    GroupEvent,
    Instruction,
    Trace,
)

BATCH = 100_000
"""Length of the list of notes at which it is turned into table rows and cleared."""


class RecordedArray(KernelArray):
    """A KernelArray that notes every access in its recorder."""

    __slots__ = ("intrinsics", "note", "number", "recorder", "start", "steps")

    def __init__(
        self,
        data: np.ndarray,
        name: str,
        space: str,
        recorder: Recorder,
        number: int,
        start: int,
    ):
        super().__init__(data, name, space)
        self.recorder = recorder
        self.note = recorder.note
        self.intrinsics = recorder.intrinsics
        self.number = number
        self.start = start
        self.steps = tuple(stride // data.itemsize for stride in data.strides)

    def offsets(self, indices: list[Any]) -> np.ndarray:
        """The memory offsets of `indices`, in elements from the first one of the whole array."""
        if self.ndim == 1 and tuple not in set(map(type, indices)):
            return self.start + self.steps[0] * np.fromiter(indices, np.int64, len(indices))
        rows = [index if type(index) is tuple else (index,) for index in indices]
        table = np.fromiter(chain.from_iterable(rows), np.int64).reshape(len(rows), len(rows[0]))
        return self.start + table @ np.array(self.steps[: table.shape[1]], np.int64)

    def __getitem__(self, index: Any) -> Any:
        value = KernelArray.__getitem__(self, index)
        if type(value) is KernelArray:  # a row: nothing is read yet
            start = int(self.offsets([index])[0])
            return RecordedArray(
                value.data, value.name, self.space, self.recorder, self.number, start
            )
        frame = _getframe(1)
        code = frame.f_code
        if code.co_filename in self.intrinsics:
            code, frame = self.recorder.called_from(frame)
        self.note((self, index, False, code, frame.f_lasti))
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        KernelArray.__setitem__(self, index, value)
        frame = _getframe(1)
        code = frame.f_code
        if code.co_filename in self.intrinsics:
            code, frame = self.recorder.called_from(frame)
        self.note((self, index, True, code, frame.f_lasti))

    def read(self, at: int, count: int, caller: tuple | None = None) -> np.ndarray:
        """As in KernelArray; noted as `count` reads."""
        values = KernelArray.read(self, at, count)
        self._note_all(at, count, False, caller)
        return values

    def write(
        self, at: int, values: np.ndarray, caller: tuple | None = None, completes: bool = False
    ) -> None:
        """As in KernelArray; noted as one write for each value."""
        KernelArray.write(self, at, values)
        key = self._note_all(at, len(values), True, caller)
        if completes:
            self.recorder.arrivals.add(key)

    def _note_all(self, at: int, count: int, write: bool, caller: tuple | None) -> tuple[int, int]:
        if caller is None:
            code, frame = self.recorder.called_from(_getframe(2))
            caller = code, frame.f_lasti
        key = id(caller[0]), caller[1]
        # A copy reads and writes at one place, perhaps in elements of two sizes.
        self.recorder.vectorized[key] = max(count, self.recorder.vectorized.get(key, 0))
        notes = [self, at, write, *caller] * count
        notes[1::5] = range(at, at + count)
        self.note(notes)
        return key


class Recorder:
    """Collects the notes of one launch; `finish` fills its Trace."""

    def __init__(self, trace: Trace) -> None:
        from numba.cuda.simulator.kernelapi import FakeCUDAAtomic

        self.trace = trace
        self.block = 0
        # Five values for each access: array, index, whether it writes, code, bytecode offset. One
        # flat list, as a tuple for each access would be slower. Notes are turned into rows in
        # batches: one by one would be slow, and all at the end would take much memory.
        self._notes: list[Any] = []
        self.note = self._notes.extend
        self._batches: list[np.ndarray] = []
        self._batched = 0
        self._instructions: dict[tuple[int, int], int] = {}  # by identity of the code, and offset
        # Accesses made in these files belong to the kernel's call: emulated intrinsics, and
        # atomics, which are functions of Numba's simulator.
        self.atomics = FakeCUDAAtomic.add.__code__.co_filename
        self.intrinsics = frozenset((self.atomics, *intrinsics.FILES))
        self._atomic: set[tuple[int, int]] = set()
        self.vectorized: dict[tuple[int, int], int] = {}  # elements that are asked for
        self.arrivals: set[tuple[int, int]] = set()
        self._segments: list[tuple[int, int, int, int]] = []
        self._starts: list[int] = []  # for each segment: the number of accesses before it
        self._epoch = 0
        self._warp_epochs: dict[int, int] = {}

    @property
    def _noted(self) -> int:
        return self._batched + len(self._notes) // 5

    def wrap(
        self, data: np.ndarray, name: str, space: str, thread: int | None = None
    ) -> RecordedArray:
        """`data` as an array for the kernel that notes its accesses."""
        block = None if space == GLOBAL else self.block
        self.trace.arrays.append(ArrayInfo(name, space, data, block, thread))
        return RecordedArray(data, name, space, self, len(self.trace.arrays) - 1, 0)

    def called_from(self, frame: Any) -> tuple[CodeType, Any]:
        """The code and frame that called the intrinsic running in `frame`."""
        while (file := frame.f_code.co_filename) in self.intrinsics:
            frame = frame.f_back
            if file == self.atomics:
                self._atomic.add((id(frame.f_code), frame.f_lasti))
        return frame.f_code, frame

    def begin_block(self, number: int) -> None:
        """Block `number` starts."""
        self.block = number
        self._epoch = 0
        self._warp_epochs = {}

    def begin_segment(self, thread: int) -> None:
        """`thread` of the block starts or resumes."""
        self._segments.append((self.block, thread, self._epoch, self._warp_epochs.get(thread, 0)))
        self._starts.append(self._noted)
        if len(self._notes) > BATCH:
            self._flush()

    def open_barrier(self, call: str, file: str, line: int, threads: list[int]) -> None:
        """A barrier opened; `threads` waited there."""
        if call == "syncwarp":
            for thread in threads:
                self._warp_epochs[thread] = self._warp_epochs.get(thread, 0) + 1
        else:
            self._epoch += 1
        self.trace.barrier_events.append(
            BarrierEvent(call, file, line, self.block, tuple(threads), self._noted)
        )

    def note_group(self, call: str, newest: int) -> None:
        """The running thread commits a group of asynchronous copies, or waits for some."""
        segment = len(self._segments) - 1
        self.trace.group_events.append(GroupEvent(call, newest, segment, self._noted))

    def finish(self) -> Trace:
        """The trace with its tables filled, also after a launch that failed."""
        self._flush()
        trace = self.trace
        trace.segments = np.array(self._segments, SEGMENT)
        trace.accesses = np.concatenate([np.empty(0, ACCESS), *self._batches])
        lengths = np.diff(self._starts, append=self._noted)
        trace.accesses["segment"] = np.repeat(np.arange(len(lengths)), lengths)
        return trace

    def _flush(self) -> None:
        """Turn the notes so far into rows and clear them."""
        noted = len(self._notes) // 5
        if not noted:
            return
        arrays, indices, writes, codes, at = (self._notes[i::5] for i in range(5))
        self._notes.clear()
        accesses = np.empty(noted, ACCESS)
        self._batches.append(accesses)
        self._batched += noted
        accesses["write"] = writes
        # Rows are grouped by array, so that offsets are computed for all rows of an array at once.
        recorded, which = _numbered(arrays)
        # NumPy sorts 16-bit integers faster than larger ones.
        short = which.astype(np.uint16) if len(recorded) <= 2**16 else which
        order = np.argsort(short, kind="stable")
        starts = np.searchsorted(which[order], np.arange(len(recorded) + 1))
        for array, first, last in zip(recorded, starts[:-1], starts[1:], strict=True):
            rows = order[first:last]
            accesses["array"][rows] = array.number
            accesses["offset"][rows] = array.offsets([indices[row] for row in rows.tolist()])
        functions, keys = _numbered(codes)
        offsets = np.fromiter(at, np.int64, noted)
        length = offsets.max() + 1
        keys = keys * length + offsets
        used = np.flatnonzero(np.bincount(keys))
        numbers = [self._number(functions[key // length], int(key % length)) for key in used]
        accesses["instruction"] = np.array(numbers)[np.searchsorted(used, keys)]

    def _number(self, code: CodeType, at: int) -> int:
        """The number of an instruction in the trace, to which it is added if it is new."""
        key = id(code), at
        if key not in self._instructions:
            starts, firsts = _starts(code)
            start = firsts[bisect_right(starts, at) - 1]
            flags = key in self._atomic, self.vectorized.get(key, 0), key in self.arrivals
            line = line_in(code, start)
            instruction = Instruction(code.co_filename, line, code.co_name, start, *flags)
            if instruction not in self.trace.instructions:
                self.trace.instructions.append(instruction)
            self._instructions[key] = self.trace.instructions.index(instruction)
        return self._instructions[key]


def _numbered(objects: list[Any]) -> tuple[list[Any], np.ndarray]:
    """The distinct objects, and for each object its number in that list.

    Compared by identity, as comparing code objects is slow.
    """
    identities = list(map(id, objects))
    distinct = dict(zip(identities, objects, strict=True))
    known = sorted(distinct)
    numbers = np.searchsorted(known, np.fromiter(identities, np.int64, len(objects)))
    return [distinct[identity] for identity in known], numbers


@cache
def _starts(code: CodeType) -> tuple[list[int], list[int]]:
    """The offsets at which the instructions of `code` begin, and for each the first of its copies.

    A frame's `f_lasti` may lie behind that, in the inline cache of the instruction: it does so once
    Python has specialized `x[i]` into a direct call of `__getitem__`. Python may also copy what
    follows two branches to the end of both; a copy has the place in the source of the first.
    """
    instructions = list(dis.get_instructions(code))
    positions = list(code.co_positions()) if hasattr(code, "co_positions") else []
    first: dict[Any, int] = {}
    firsts = []
    for instruction in instructions:
        place: Any = positions[instruction.offset // 2] if positions else (None,)
        key = instruction.offset if None in place else (instruction.opname, place)
        firsts.append(first.setdefault(key, instruction.offset))
    return [instruction.offset for instruction in instructions], firsts


def line_in(code: CodeType, instruction: int) -> int:
    """The source line of the instruction at a bytecode offset."""
    for first, last, line in code.co_lines():
        if first <= instruction < last and line is not None:
            return line
    return code.co_firstlineno
