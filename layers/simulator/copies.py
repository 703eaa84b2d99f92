"""Asynchronous copies of a simulated thread: begun, put into groups, waited for.

On a GPU such a copy (`cp_async` in `layers/fast/conv/ptx.py`) may happen at any time between the
call that begins it and the end of the wait for its group. Here it happens as late as that allows:
while the thread waits. In between its target holds poison, so that whoever reads it too early sees
that in the result. It is recorded twice, as either moment could be the one: where it is begun, as
a write of the target; and where it is waited for, as the read of the source (by the instruction
that began it) and a write of the target. So a race with either is found.
"""

from __future__ import annotations

import numpy as np

from layers.simulator.arrays import KernelArray
from layers.simulator.recorder import line_in

BYTES = 16
ZEROS = np.zeros(BYTES, np.uint8)
POISON = np.full(BYTES, 0xFF, np.uint8)


class Copies:
    """The copies that one thread has begun, and has not yet waited for."""

    __slots__ = ("begun", "groups")

    def __init__(self) -> None:
        self.begun: list[tuple] = []
        self.groups: list[list[tuple]] = []

    def begin(
        self,
        target: KernelArray,
        to: int,
        source: KernelArray,
        at: int,
        inside: bool,
        place: tuple,
    ) -> None:
        """Poison 16 bytes of `target`, in which the wait will put those of `source`, or zeros."""
        if target.space != "shared" or source.space != "global":
            raise TypeError(
                f"cp_async of {source.name} ({source.space}) to {target.name} ({target.space}): "
                "it copies from global to shared memory"
            )
        target.check_aligned(to, "cp_async to")
        if inside:
            source.check_aligned(at, "cp_async from")
            source.memory(at, BYTES // source.data.itemsize)
        target.write(to, POISON.view(target.dtype), place)
        self.begun.append((target, to, source, at, inside, place))

    def commit(self) -> None:
        """Make a group of what has been begun since the last one, be it nothing."""
        self.groups.append(self.begun)
        self.begun = []

    def wait(self, newest: int) -> None:
        """Carry out the copies of all groups but the `newest`, the oldest first."""
        while len(self.groups) > newest:
            for target, to, source, at, inside, place in self.groups.pop(0):
                values = ZEROS
                if inside:
                    values = source.read(at, BYTES // source.data.itemsize, place)
                target.write(to, values.view(target.dtype), arrived=True)

    def check_none_left(self) -> None:
        """RuntimeError if copies are still on their way."""
        left = [copy for group in (*self.groups, self.begun) for copy in group]
        if left:
            target, to, *_, place = left[0]
            raise RuntimeError(
                f"returned with {len(left)} asynchronous copies on their way, the first to "
                f"{target.name}[{to}] from line {line_in(*place)}: "
                "end with cp_async_commit_group() and cp_async_wait_group(0)"
            )
