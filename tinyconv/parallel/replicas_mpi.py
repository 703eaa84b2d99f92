"""Ranks that mpiexec has started, on one machine or many; gradients on hosts.

The sum of `communicator.py` in MPI's words: Ialltoallv scatters, Iallgatherv gathers, and the
additions between them are ours, rank 0 first, since MPI's own may be in any order. Both calls
return at once; how much of the sending an MPI does outside its own calls is its affair.

A collective call does not tell whom it waits for. When one has lasted for almost `timeout` seconds,
the ranks that wait tell each other so, again and again; who is silent hangs.
"""

import importlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyconv.parallel.communicator import (
    TIMEOUT,
    Communicator,
    CommunicatorError,
    RankHungError,
    add_in_order,
    one_line,
    part,
)
from tinyconv.parallel.replicas_watch import PASSED_ON

LOOK = 1.0
"""Seconds of waiting between two looks at the others."""

CALLS = 10.0
"""Seconds before the timeout from which on a rank that waits says so."""

SILENT = 5.0
"""Seconds after which a rank that has said nothing does not wait."""

MAPPED = re.compile(r"^.* (/dev/shm/mpich\S*)$", re.MULTILINE)
"""In /proc/self/maps: the shared memory by which MPICH connects the ranks of a machine."""


class MPI(Communicator):
    """Processes that mpiexec has started, connected by mpi4py.

    Attribute: `timeout`, the seconds for which a rank may keep the others waiting; whoever waits
    longer gets a RankHungError. CommunicatorError without mpi4py. `abort` ends all ranks; a rank
    that dies without it is for mpiexec to notice.
    """

    def __init__(self) -> None:
        try:
            self._mpi = importlib.import_module("mpi4py.MPI")
        except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library found
            raise CommunicatorError(
                f"started by mpiexec, and mpi4py cannot be used ({one_line(error)}): pip install "
                "'.[mpi]'"
            ) from None
        self._world = self._mpi.COMM_WORLD
        super().__init__(self._world.Get_rank(), self._world.Get_size())
        self._flat: Any = None
        self._received: dict[int, np.ndarray] = {}
        self._under_way: list[tuple[slice, list[int], list[int], Any]] = []
        self.timeout = TIMEOUT
        self._calls = self._world.Dup()
        self._called: list[Any] = []
        self._heard: dict[int, float] = {}
        _forget_names()

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """Every rank's values, by Allgather."""
        values = np.asarray(values, order="C")
        rows = np.empty((self.size, *values.shape), values.dtype)
        self._wait(self._world.Iallgather(values, rows))
        return rows

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """The root's bytes, by Bcast."""
        size = int(self.exchange(np.array(len(data)))[root])
        buffer = bytearray(data) if self.rank == root else bytearray(size)
        self._wait(self._world.Ibcast(buffer, root))
        return bytes(buffer)

    def attach(self, flat: np.ndarray) -> None:
        """Name the array."""
        self._flat = flat

    def start(self, stretch: slice) -> None:
        """Send each rank its part of the stretch."""
        flat = self._flat[stretch]
        parts = [part(flat.size, rank, self.size) for rank in range(self.size)]
        counts, starts = [p.stop - p.start for p in parts], [p.start for p in parts]
        mine = counts[self.rank]
        rows = self._received.get(stretch.start)
        if rows is None or rows.shape != (self.size, mine):
            rows = self._received[stretch.start] = np.empty((self.size, mine), flat.dtype)
        request = self._world.Ialltoallv(
            [flat, counts, starts, self._type(flat)],
            [rows, [mine] * self.size, [mine * r for r in range(self.size)], self._type(flat)],
        )
        self._under_way.append((stretch, counts, starts, request))

    def finish(self) -> None:
        """Add up this rank's part of each stretch, and send it to all others."""
        gathers = []
        for stretch, counts, starts, request in self._under_way:
            self._wait(request)
            flat, first = self._flat[stretch], starts[self.rank]
            add_in_order(self._received[stretch.start], out=flat[first : first + counts[self.rank]])
            gathers.append(
                self._world.Iallgatherv(
                    self._mpi.IN_PLACE, [flat, counts, starts, self._type(flat)]
                )
            )
        for request in gathers:
            self._wait(request)
        self._under_way.clear()

    def close(self) -> None:
        """Nothing: mpi4py takes its leave at the end of the program."""
        self._flat = None

    def abort(self, status: int) -> None:
        """End every rank; mpiexec returns `status`. What was said before is passed on first."""
        time.sleep(PASSED_ON)
        self._world.Abort(status)

    def _type(self, array: np.ndarray) -> Any:
        return self._mpi.FLOAT if array.dtype == np.float32 else self._mpi.DOUBLE

    def _wait(self, request: Any) -> None:
        # Some MPIs wait by asking again and again without a pause. With more ranks than cores the
        # one that is waited for would not get its turn.
        yields: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))
        waited, look = 0.0, time.monotonic() + LOOK
        while not request.Test():
            yields()
            if time.monotonic() >= look:
                waited, look = waited + LOOK, time.monotonic() + LOOK
                self._look(waited)

    def _look(self, waited: float) -> None:
        """Say that this rank waits, if it is time to, and find out who does not."""
        status = self._mpi.Status()
        while self._calls.Iprobe(status=status):
            self._calls.Recv([bytearray(0), self._mpi.BYTE], source=status.source)
            self._heard[status.source] = time.monotonic()
        recently = time.monotonic() - SILENT
        waiting = {rank for rank, heard in self._heard.items() if heard > recently}
        if not waiting and waited < self.timeout - CALLS:
            return
        self._called = [call for call in self._called if not call.Test()]
        for rank in set(range(self.size)) - {self.rank}:
            self._called.append(self._calls.Isend([b"", self._mpi.BYTE], rank))
        # One of them speaks for all, unless it is not heard.
        if waited >= self.timeout + SILENT * sum(rank < self.rank for rank in waiting):
            late = set(range(self.size)) - waiting - {self.rank}
            raise RankHungError([f"rank {rank}" for rank in sorted(late)], self.timeout)


def _forget_names() -> None:
    """Take away the names of MPICH's files in shared memory, which all ranks have opened by now.

    What has no name is gone with its last process; MPICH itself removes them only at a good end.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for name in set(MAPPED.findall(maps)):
        Path(name).unlink(missing_ok=True)
