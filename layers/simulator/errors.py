"""What the simulator raises when a kernel fails. Attributes say where; the text repeats them."""

from __future__ import annotations

from dataclasses import dataclass

Position = tuple[int, int, int]
"""(x, y, z) of a block in its grid, or of a thread in its block."""


class SimulatorError(RuntimeError):
    """A simulated kernel failed.

    kernel: its name. block, thread: position of the thread that failed. file, line: the kernel's
    line, or that of a device function; never a line of an emulated intrinsic. what: the failure in
    one sentence. cause: the original exception, None for a deadlock.
    """

    def __init__(
        self,
        kernel: str,
        block: Position,
        thread: Position,
        file: str,
        line: int,
        what: str,
        cause: Exception | None = None,
    ):
        where = f"kernel {kernel}, thread {thread} of block {block}, {file}:{line}"
        super().__init__(f"{where}: {what}")
        self.kernel = kernel
        self.block = block
        self.thread = thread
        self.file = file
        self.line = line
        self.what = what
        self.cause = cause


class SimulatorIndexError(SimulatorError, IndexError):
    """An index outside its array.

    array: its name, a parameter's or "shared array of line 12"; "" if the index was into something
    else, such as a tuple. index: the first element outside, or None if the index is no integer.
    """

    array: str = ""
    index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BarrierWait:
    """A barrier that cannot open, and the threads that wait there."""

    call: str
    """"syncthreads()", "syncwarp(0x0000ffff)", ..."""
    file: str
    line: int
    threads: tuple[Position, ...]
    """At least one, in the order of arrival."""

    def __str__(self) -> str:
        return f"wait at {self.call} in {self.file}:{self.line}: {_listed(self.threads)}"


class SimulatorDeadlockError(SimulatorError):
    """Every thread of a block has returned or waits at a barrier that cannot open.

    waits: the barriers. returned: the threads that have returned. `thread`, `file` and `line` are
    those of the first wait.
    """

    def __init__(
        self,
        kernel: str,
        block: Position,
        waits: tuple[BarrierWait, ...],
        returned: tuple[Position, ...],
    ):
        what = "no thread can continue, as barriers wait for threads that never come"
        first = waits[0]
        super().__init__(kernel, block, first.threads[0], first.file, first.line, what)
        lines = [f"kernel {kernel}, block {block}: {what}", *map(str, waits)]
        if returned:
            lines.append(f"have returned: {_listed(returned)}")
        self.args = ("\n  ".join(lines),)
        self.waits = waits
        self.returned = returned


def _listed(threads: tuple[Position, ...]) -> str:
    first = ", ".join(map(str, threads[:4]))
    more = ", ..." if len(threads) > 4 else ""
    return f"{len(threads)} thread{'s' * (len(threads) > 1)}: {first}{more}"
