"""What the checks of `checks.py` report: an Issue for each fault, a Report for each kernel."""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from layers.simulator import SimulatorDeadlockError, SimulatorError, SimulatorIndexError
from layers.simulator.arrays import Dim3
from layers.simulator.errors import Position
from layers.simulator.scheduler import Launch
from layers.simulator.trace import Instruction, Trace

KINDS = {
    "race": "two threads touch one element, one of them writes, and no barrier orders them",
    # A GPU gives whatever was there before.
    "unwritten": "an element of a shared or local array, or of an output, is read before anything "
    "has written it",
    "index": "an index is outside its array: on a GPU, somebody else's memory",
    "barrier": "threads wait at a barrier that others never reach",
    "error": "any other exception that the simulator raised in the kernel",
    "missing": "an element of an output is never written",
    "rewritten": "an element of an output is written more than once, by one thread or several: at "
    "best wasted work, at worst a wrong index",
    "compile": "the compiler makes no code for a GPU of it, whatever the simulator did",
    # One thread owns one output, and the same seed gives the same bits.
    "order": "the same launch, its blocks and threads taken in another order, gives other bits",
}
"""The kinds of issues, and what each means."""


class Worker(NamedTuple):
    """A thread of the launch: (x, y, z) of its block in the grid, and its own in the block."""

    block: Position
    thread: Position

    def __str__(self) -> str:
        return f"thread {self.thread} of block {self.block}"


@dataclass(frozen=True)
class Line:
    """A line of the kernel's source."""

    file: str
    line: int
    source: str
    """Its text, without indentation."""

    @classmethod
    def of(cls, file: str, line: int) -> Line:
        """The line, with its text."""
        return cls(file, line, linecache.getline(file, line).strip())

    def __str__(self) -> str:
        near = os.path.relpath(self.file)
        return f"{self.file if near.startswith('..') else near}:{self.line}: {self.source}"


@dataclass(frozen=True)
class Issue:
    """One fault of a kernel: the first example of it, and how often it was met."""

    kind: str
    """A key of KINDS."""
    array: str
    """Name of the parameter, or "shared array of line 12"; "" if no array is concerned."""
    index: tuple[int, ...] | None
    """Of the element, in the first example."""
    lines: tuple[Line, ...]
    threads: tuple[Worker, ...]
    """Who did it in the first example, in the order of `lines`; empty if unknown."""
    message: str
    """The paragraph that says it all."""
    count: int = 1
    """Elements concerned (for "barrier": threads that wait; for "index" and "error": 1, as the
    launch ends there)."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass
class Report:
    """The issues of one launch."""

    kernel: str
    grid: Position
    block: Position
    accesses: int
    """Reads and writes that were looked at."""
    issues: list[Issue] = field(default_factory=list)
    orders: int = 0
    """Other orders of blocks and threads in which the kernel was run as well."""
    excused: dict[str, str] = field(default_factory=dict)
    """By array, why it may be written more than once, or not in full."""
    not_compiled: str | None = None
    """Why the compiler was not asked; None if it was."""
    doubles: list[Line] = field(default_factory=list)
    """Lines that the compiler computes in float64."""
    trace: Trace | None = field(default=None, repr=False)
    """What was recorded."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.issues

    def __str__(self) -> str:
        title = (
            f"{self.kernel}, grid {self.grid}, block {self.block}: "
            f"{self.accesses} accesses, {self.orders} other orders"
        )
        verdict = "nothing found" if self.ok else f"{len(self.issues)} found"
        if self.not_compiled:
            verdict += f" (not compiled: {self.not_compiled})"
        excuses = [f"  declared: {name}: {reason}" for name, reason in self.excused.items()]
        return "\n".join([f"{title}: {verdict}", *excuses, *map(indented, self.issues)])


def indented(issue: Issue) -> str:
    """The paragraph of an issue, set off from the margin."""
    return "  " + str(issue).replace("\n", "\n  ")


# --- from the numbers of a trace to what a reader calls them


def position(number: int, size: Dim3) -> Position:
    """(x, y, z) of a block in a grid, or of a thread in a block, by its number: x fastest."""
    return number % size.x, number // size.x % size.y, number // (size.x * size.y)


def line_at(instruction: Instruction) -> Line:
    """The line of a recorded instruction."""
    return Line(instruction.file, instruction.line, instruction.source)


def line_numbers(trace: Trace) -> np.ndarray:
    """For each instruction of the trace a number, the same for all those of one line."""
    lines = [(each.file, each.line) for each in trace.instructions]
    return np.array([lines.index(line) for line in lines], np.int64)


def worker_of(trace: Trace, row: int) -> Worker:
    """Who made the access in `row`."""
    segment = trace.segments[trace.accesses["segment"][row]]
    return Worker(
        position(int(segment["block"]), trace.grid), position(int(segment["thread"]), trace.block)
    )


def line_of(trace: Trace, row: int) -> Line:
    """The line that made the access in `row`."""
    return line_at(trace.instructions[trace.accesses["instruction"][row]])


def element_of(trace: Trace, row: int) -> tuple[str, tuple[int, ...]]:
    """The array's name, and the index in it, of the access in `row`."""
    access = trace.accesses[row]
    array = trace.arrays[access["array"]]
    return array.name, array.index(int(access["offset"]))


def described(trace: Trace, row: int) -> str:
    """Who did what, where, in the access in `row`."""
    access = trace.accesses[row]
    does = "writes it" if access["write"] else "reads it"
    if trace.instructions[access["instruction"]].atomic:
        does = "changes it atomically"
    return f"{worker_of(trace, row)} {does}\n    at {line_of(trace, row)}"


def issue_at(trace: Trace, kind: str, rows: tuple[int, ...], message: str, count: int) -> Issue:
    """The issue whose first example are the accesses in `rows`, at the element of the first."""
    name, index = element_of(trace, rows[0])
    lines = tuple(line_of(trace, row) for row in rows)
    return Issue(kind, name, index, lines, tuple(worker_of(trace, r) for r in rows), message, count)


def element(name: str, index: tuple[int, ...]) -> str:
    """`y[2, 3]`, or `[2, 3] of the shared array of line 12`."""
    inside = ", ".join(map(str, index)) or "()"
    return f"{name}[{inside}]" if name.isidentifier() else f"[{inside}] of the {name}"


def more(count: int) -> str:
    """`, and 30 more elements`, if there are others than the example."""
    others = count - 1
    return f", and {others} more element{'s' * (others > 1)}" if others else ""


def kernel_line(error: BaseException) -> str:
    """` at` the line of the kernel in which an exception was raised, with its text; "" if in none.

    The kernel is the function that the scheduler calls. Between two threads of a block, it is the
    line of the barrier at which they wait.
    """
    found, trace = "", error.__traceback__
    while trace and trace.tb_next:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code is Launch.run.__code__:
            for barrier in frame.f_locals["self"].barriers.values():
                found = f" at {Line.of(barrier.file, barrier.line)}"
        if frame.f_code is Launch._work.__code__:
            found = f" at {Line.of(trace.tb_frame.f_code.co_filename, trace.tb_lineno)}"
    return found


# --- errors of the simulator


def failure(error: SimulatorError, remark: str = "") -> Issue:
    """The simulator's error as an issue."""
    if isinstance(error, SimulatorDeadlockError):
        return Issue(
            kind="barrier",
            array="",
            index=None,
            lines=tuple(Line.of(wait.file, wait.line) for wait in error.waits),
            threads=tuple(Worker(error.block, wait.threads[0]) for wait in error.waits),
            message=f"{error}{remark}",
            count=sum(len(wait.threads) for wait in error.waits),
        )
    array, index = "", None
    if isinstance(error, SimulatorIndexError):
        array, index = error.array, error.index
    worker = Worker(error.block, error.thread)
    line = Line.of(error.file, error.line)
    return Issue(
        kind="index" if array else "error",
        array=array,
        index=index,
        lines=(line,),
        threads=(worker,),
        message=f"{error.what}\n  {worker}\n    at {line}{remark}",
    )
