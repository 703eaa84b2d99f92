"""Noting what a launch does: arrays that tell of every access, and what is made of their notes.

`WatchedArray` adds five things to a list at each access; that is all that happens while the kernel
runs. `Recorder` turns the list into the tables of a `Trace`, many notes at a time.
"""

from __future__ import annotations

import dis
from bisect import bisect_right
from functools import cache
from itertools import chain
from pathlib import Path
from sys import _getframe
from types import CodeType
from typing import Any

import numpy as np

from layers.simulator.arrays import KernelArray
from layers.simulator.trace import ACCESS, GLOBAL, SEGMENT, ArrayInfo, Meeting, Place, Trace

CONV = Path(__file__).parents[1] / "fast" / "conv"
STAND_INS = (
    str(CONV / "ptx.py"),
    str(CONV / "mma.py"),
    str(Path(__file__).with_name("copies.py")),
)
"""The files whose functions stand for instructions."""

BATCH = 100_000
"""Length of the list of notes at which they are worked out and forgotten."""


class WatchedArray(KernelArray):
    """A KernelArray that notes every access in its recorder."""

    __slots__ = ("note", "number", "recorder", "stand_ins", "start", "steps")

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
        self.stand_ins = recorder.stand_ins
        self.number = number
        self.start = start
        self.steps = tuple(stride // data.itemsize for stride in data.strides)

    def offsets(self, indices: list[Any]) -> np.ndarray:
        """Where the elements at `indices` lie, in elements from the whole array's first one."""
        if self.ndim == 1 and tuple not in set(map(type, indices)):
            return self.start + self.steps[0] * np.fromiter(indices, np.int64, len(indices))
        rows = [index if type(index) is tuple else (index,) for index in indices]
        table = np.fromiter(chain.from_iterable(rows), np.int64).reshape(len(rows), len(rows[0]))
        return self.start + table @ np.array(self.steps[: table.shape[1]], np.int64)

    def __getitem__(self, index: Any) -> Any:
        value = KernelArray.__getitem__(self, index)
        if type(value) is KernelArray:  # a row: nothing is read yet
            start = int(self.offsets([index])[0])
            return WatchedArray(
                value.data, value.name, self.space, self.recorder, self.number, start
            )
        frame = _getframe(1)
        code = frame.f_code
        if code.co_filename in self.stand_ins:
            code, frame = self.recorder.called_from(frame)
        self.note((self, index, False, code, frame.f_lasti))
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        KernelArray.__setitem__(self, index, value)
        frame = _getframe(1)
        code = frame.f_code
        if code.co_filename in self.stand_ins:
            code, frame = self.recorder.called_from(frame)
        self.note((self, index, True, code, frame.f_lasti))

    def read(self, at: int, count: int, place: tuple | None = None) -> np.ndarray:
        """As in KernelArray; noted as `count` reads by `place`, or else by the caller."""
        values = KernelArray.read(self, at, count)
        self._note_all(at, count, False, place)
        return values

    def write(
        self, at: int, values: np.ndarray, place: tuple | None = None, arrived: bool = False
    ) -> None:
        """As in KernelArray; noted as so many writes by `place`, or else by the caller."""
        KernelArray.write(self, at, values)
        key = self._note_all(at, len(values), True, place)
        if arrived:
            self.recorder.arrivals.add(key)

    def _note_all(self, at: int, count: int, write: bool, place: tuple | None) -> tuple[int, int]:
        if place is None:
            code, frame = self.recorder.called_from(_getframe(2))
            place = code, frame.f_lasti
        key = id(place[0]), place[1]
        self.recorder.wide.add(key)
        notes = [self, at, write, *place] * count
        notes[1::5] = range(at, at + count)
        self.note(notes)
        return key


class Recorder:
    """Notes what one launch does; `finish` makes the Trace of it."""

    def __init__(self, trace: Trace) -> None:
        from numba.cuda.simulator.kernelapi import FakeCUDAAtomic

        self.trace = trace
        self.block = 0
        # Of each access: array, index, whether it writes, code, place in the code; one after
        # another, as a list of a tuple each would be slower. What they come to is worked out for
        # many at once, but not for all: notes take much memory, and fresh memory takes time.
        self._notes: list[Any] = []
        self.note = self._notes.extend
        self._batches: list[np.ndarray] = []
        self._batched = 0
        self._places: dict[tuple[int, int], int] = {}  # by identity of the code
        # Atomics are functions of Numba's simulator, copies and the like ours: what these stand-ins
        # do, their caller is said to do.
        self.atomics = FakeCUDAAtomic.add.__code__.co_filename
        self.stand_ins = frozenset((self.atomics, *STAND_INS))
        self._atomic: set[tuple[int, int]] = set()
        self.wide: set[tuple[int, int]] = set()
        self.arrivals: set[tuple[int, int]] = set()
        self._segments: list[tuple[int, int, int, int]] = []
        self._starts: list[int] = []  # of each segment: how many accesses came before it
        self._epoch = 0
        self._warp_epochs: dict[int, int] = {}

    @property
    def _noted(self) -> int:
        return self._batched + len(self._notes) // 5

    def watch(
        self, data: np.ndarray, name: str, space: str, thread: int | None = None
    ) -> WatchedArray:
        """`data` as the kernel sees it, from now on noted."""
        block = None if space == GLOBAL else self.block
        self.trace.arrays.append(ArrayInfo(name, space, data, block, thread))
        return WatchedArray(data, name, space, self, len(self.trace.arrays) - 1, 0)

    def called_from(self, frame: Any) -> tuple[CodeType, Any]:
        """The code and frame that called the stand-in running in `frame`."""
        while (stand_in := frame.f_code.co_filename) in self.stand_ins:
            frame = frame.f_back
            if stand_in == self.atomics:
                self._atomic.add((id(frame.f_code), frame.f_lasti))
        return frame.f_code, frame

    def begin_block(self, number: int) -> None:
        """The threads to come are those of block `number`."""
        self.block = number
        self._epoch = 0
        self._warp_epochs = {}

    def begin_segment(self, thread: int) -> None:
        """`thread` of the block goes on, or starts."""
        self._segments.append((self.block, thread, self._epoch, self._warp_epochs.get(thread, 0)))
        self._starts.append(self._noted)
        if len(self._notes) > BATCH:
            self._work_out()

    def open_barrier(self, call: str, file: str, line: int, threads: list[int]) -> None:
        """A barrier has opened; `threads` waited there."""
        if call == "syncwarp":
            for thread in threads:
                self._warp_epochs[thread] = self._warp_epochs.get(thread, 0) + 1
        else:
            self._epoch += 1
        self.trace.meetings.append(
            Meeting(call, file, line, self.block, tuple(threads), self._noted)
        )

    def finish(self) -> Trace:
        """The trace, with its tables filled; also after a launch that failed half-way."""
        self._work_out()
        trace = self.trace
        trace.segments = np.array(self._segments, SEGMENT)
        trace.accesses = np.concatenate([np.empty(0, ACCESS), *self._batches])
        lengths = np.diff(self._starts, append=self._noted)
        trace.accesses["segment"] = np.repeat(np.arange(len(lengths)), lengths)
        return trace

    def _work_out(self) -> None:
        """Make rows of the notes so far, and forget them."""
        noted = len(self._notes) // 5
        if not noted:
            return
        arrays, indices, writes, codes, instructions = (self._notes[i::5] for i in range(5))
        self._notes.clear()
        accesses = np.empty(noted, ACCESS)
        self._batches.append(accesses)
        self._batched += noted
        accesses["write"] = writes
        # By array, the rows of its accesses: the notes of one array are then looked at together.
        watched, which = _numbered(arrays)
        # NumPy sorts numbers of 16 bits faster than wider ones.
        narrow = which.astype(np.uint16) if len(watched) <= 2**16 else which
        order = np.argsort(narrow, kind="stable")
        starts = np.searchsorted(which[order], np.arange(len(watched) + 1))
        for array, first, last in zip(watched, starts[:-1], starts[1:], strict=True):
            rows = order[first:last]
            accesses["array"][rows] = array.number
            accesses["offset"][rows] = array.offsets([indices[row] for row in rows.tolist()])
        functions, spots = _numbered(codes)
        instruction = np.fromiter(instructions, np.int64, noted)
        length = instruction.max() + 1
        spots = spots * length + instruction
        used = np.flatnonzero(np.bincount(spots))
        places = [self._place(functions[spot // length], int(spot % length)) for spot in used]
        accesses["place"] = np.array(places)[np.searchsorted(used, spots)]

    def _place(self, code: CodeType, at: int) -> int:
        """The number of a place in the trace, which from now on is there."""
        key = id(code), at
        if key not in self._places:
            starts = _starts(code)
            start = starts[bisect_right(starts, at) - 1]
            atomic, wide, arrival = (key in of for of in (self._atomic, self.wide, self.arrivals))
            line = line_in(code, start)
            place = Place(code.co_filename, line, code.co_name, start, atomic, wide, arrival)
            if place not in self.trace.places:
                self.trace.places.append(place)
            self._places[key] = self.trace.places.index(place)
        return self._places[key]


def _numbered(objects: list[Any]) -> tuple[list[Any], np.ndarray]:
    """The different objects among many, and for each of the many its number in that list.

    By identity: to ask two codes whether they are equal takes long.
    """
    identities = list(map(id, objects))
    different = dict(zip(identities, objects, strict=True))
    known = sorted(different)
    numbers = np.searchsorted(known, np.fromiter(identities, np.int64, len(objects)))
    return [different[identity] for identity in known], numbers


@cache
def _starts(code: CodeType) -> list[int]:
    """Where the instructions of `code` begin, without the caches that Python keeps behind them.

    A frame's last instruction may lie in the cache of the one that is meant: it does so once
    Python has seen `x[i]` often enough to call `__getitem__` by a short cut.
    """
    return [instruction.offset for instruction in dis.get_instructions(code)]


def line_in(code: CodeType, instruction: int) -> int:
    """The source line of an instruction, by its offset in the bytecode."""
    for first, last, line in code.co_lines():
        if first <= instruction < last and line is not None:
            return line
    return code.co_firstlineno
