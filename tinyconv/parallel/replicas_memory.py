"""Ranks of one machine: pipes for words, shared memory for arrays. No port is opened.

Each rank has a slot of the shared memory, as long as the array to be summed:

    start     slot[me, stretch] = flat[stretch]                        first message to all others
    finish    slot[me, part me] = Σ_r slot[r, part me], rank 0 first    second message
              flat[part r] = slot[r, part r] for every r                third message

What is read and written at one time is disjoint: part p of all slots belongs to rank p until its
second message, and a slot is filled anew only after the third messages of all others.
"""

import shutil
from collections.abc import Sequence
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tinyconv.parallel.communicator import (
    Communicator,
    CommunicatorError,
    RankLostError,
    add_in_order,
    part,
)

SHARED_FOLDER = "/dev/shm"
"""Where Linux keeps shared memory; a container may have given it little room."""


class SharedMemory(Communicator):
    """Processes of one machine, connected by pipes; arrays go through memory that they share.

    pipes: `pipes[r]` is this process's end of the pipe to rank r, and None for itself. A rank that
    ends, in whatever way, closes its ends: whoever waits for it gets a RankLostError at once. The
    memory has lost its name before it is used, so that nothing is left behind even by ranks that
    are killed.
    """

    def __init__(self, rank: int, pipes: Sequence[Connection | None]) -> None:
        super().__init__(rank, len(pipes))
        self._pipes = {peer: pipe for peer, pipe in enumerate(pipes) if pipe is not None}
        self._memory: shared_memory.SharedMemory | None = None
        self._slots: Any = None
        self._flat: Any = None
        self._started: list[slice] = []

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """Every rank's values, through the pipes."""
        values = np.asarray(values, order="C")
        self._tell(values.tobytes())
        rows = [values.tobytes() if r == self.rank else self._hear(r) for r in range(self.size)]
        return np.frombuffer(b"".join(rows), values.dtype).reshape(self.size, *values.shape)

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """The root's bytes, through the pipes."""
        if self.rank != root:
            return self._hear(root)
        self._tell(data)
        return data

    def attach(self, flat: np.ndarray) -> None:
        """Share memory for a copy of `flat` from each rank."""
        self._release()
        shortage = ""
        if self.rank == 0:
            shortage = _shortage(self.size * flat.nbytes)
            if not shortage:
                self._memory = shared_memory.SharedMemory(create=True, size=self.size * flat.nbytes)
        name = self._memory.name if self._memory is not None else ""
        name, _, shortage = self.broadcast(f"{name}\n{shortage}".encode()).decode().partition("\n")
        if shortage:
            raise CommunicatorError(shortage)
        if self._memory is None:
            self._memory = shared_memory.SharedMemory(name)
        self.exchange(np.zeros(1))  # all have opened it
        if self.rank == 0:
            self._memory.unlink()
        self._slots = np.ndarray((self.size, flat.size), flat.dtype, self._memory.buf)
        self._flat = flat

    def start(self, stretch: slice) -> None:
        """Copy the stretch into this rank's slot, and say so."""
        self._slots[self.rank, stretch] = self._flat[stretch]
        self._started.append(stretch)
        self._tell(b"")

    def finish(self) -> None:
        """Add up this rank's part of each stretch, then take the other parts from the others."""
        for stretch in self._started:
            for peer in self._pipes:
                self._hear(peer)
            mine = self._of(stretch, self.rank)
            # Nobody else reads this part of this slot: its place is free for the sum.
            add_in_order(self._slots[:, mine], out=self._slots[self.rank, mine])
            self._tell(b"")
        for stretch in self._started:
            for peer in range(self.size):
                if peer != self.rank:
                    self._hear(peer)
                theirs = self._of(stretch, peer)
                self._flat[theirs] = self._slots[peer, theirs]
        self._started.clear()
        self._tell(b"")
        for peer in self._pipes:
            self._hear(peer)

    def close(self) -> None:
        """Let go of the memory and the pipes."""
        self._release()
        for pipe in self._pipes.values():
            pipe.close()

    def abort(self, status: int) -> None:
        """Nothing: the pipes of a process that ends are closed, which its peers notice."""

    def _release(self) -> None:
        self._slots = self._flat = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _of(self, stretch: slice, rank: int) -> slice:
        mine = part(stretch.stop - stretch.start, rank, self.size)
        return slice(stretch.start + mine.start, stretch.start + mine.stop)

    def _tell(self, data: bytes) -> None:
        for peer, pipe in self._pipes.items():
            try:
                pipe.send_bytes(data)
            except OSError:
                raise RankLostError(peer) from None

    def _hear(self, peer: int) -> bytes:
        try:
            return self._pipes[peer].recv_bytes()
        except (EOFError, OSError):
            raise RankLostError(peer) from None


def _shortage(needed: int) -> str:
    """What to do if there is no room: writing to memory that is not there would kill the rank."""
    try:
        free = shutil.disk_usage(SHARED_FOLDER).free
    except OSError:
        return ""
    if free >= needed:
        return ""
    return (
        f"{SHARED_FOLDER} has {free / 2**20:,.0f} MiB free, and the ranks' gradients need "
        f"{needed / 2**20:,.0f}: enlarge it (docker run --shm-size), or use mpiexec"
    )
