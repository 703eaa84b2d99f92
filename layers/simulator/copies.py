"""Asynchronous copies (PTX `cp.async`) of a simulated thread: begun, grouped, waited for.

On a GPU an asynchronous copy may happen at any time between the instruction that begins it and the
end of the wait for its group. The simulator carries it out at the latest moment, inside the wait.
Until then its target is poisoned, so that reading the target too early shows in the result. A copy
is recorded at both ends, since it may happen at either: where it begins, as a write of the target;
where it is waited for, as a read of the source (by the instruction that began it) and a write of
the target. So a race with either end is found.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layers.simulator.arrays import KernelArray
from layers.simulator.intrinsics import register_intrinsics
from layers.simulator.recorder import line_in

register_intrinsics(__name__)

BYTES = 16
ZEROS = np.zeros(BYTES, np.uint8)
POISON = np.full(BYTES, 0xFF, np.uint8)


class Copies:
    """The copies that one thread has begun and not yet waited for.

    note: called as note("commit", 0) and note("wait", newest) before either.
    """

    __slots__ = ("begun", "groups", "note")

    def __init__(self, note: Callable[[str, int], None] | None = None) -> None:
        self.begun: list[tuple] = []
        self.groups: list[list[tuple]] = []
        self.note = note

    def begin(
        self,
        target: KernelArray,
        to: int,
        source: KernelArray,
        at: int,
        inside: bool,
        caller: tuple,
    ) -> None:
        """Poison 16 bytes of `target`; the wait will put those of `source` there.

        inside: False copies zeros and reads nothing. caller: the code object and bytecode offset
        of the instruction.
        """
        if target.space != "shared" or source.space != "global":
            raise TypeError(
                f"cp.async of {source.name} ({source.space}) to {target.name} ({target.space}): "
                "it copies from global to shared memory"
            )
        target.check_aligned(to, "cp.async to")
        if inside:
            source.check_aligned(at, "cp.async from")
            source.memory(at, BYTES // source.data.itemsize)
        target.write(to, POISON.view(target.dtype), caller)
        self.begun.append((target, to, source, at, inside, caller))

    def commit(self) -> None:
        """Make a group, possibly empty, of the copies begun since the last one."""
        if self.note is not None:
            self.note("commit", 0)
        self.groups.append(self.begun)
        self.begun = []

    def wait(self, newest: int) -> None:
        """Carry out the copies of all groups but the `newest`, oldest first."""
        if self.note is not None:
            self.note("wait", newest)
        while len(self.groups) > newest:
            for target, to, source, at, inside, caller in self.groups.pop(0):
                values = ZEROS
                if inside:
                    values = source.read(at, BYTES // source.data.itemsize, caller)
                target.write(to, values.view(target.dtype), completes=True)

    def check_none_left(self) -> None:
        """RuntimeError if a copy has not been waited for."""
        left = [copy for group in (*self.groups, self.begun) for copy in group]
        if left:
            target, to, *_, caller = left[0]
            raise RuntimeError(
                f"returned with {len(left)} asynchronous copies pending, the first to "
                f"{target.name}[{to}] from line {line_in(*caller)}: "
                "end with cp.async.commit_group and cp.async.wait_group 0"
            )
