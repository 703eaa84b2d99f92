"""Ranks of one machine: pipes for words, shared memory for arrays. No port is opened.

Each rank has a slot of the shared memory, as long as the array to be summed:

    start     slot[me, stretch] = flat[stretch]                        first message to all others
    finish    slot[me, part me] = Σ_r slot[r, part me], rank 0 first    second message
              flat[part r] = slot[r, part r] for every r                third message

What is read and written at one time is disjoint: part p of all slots belongs to rank p until its
second message, and a slot is filled anew only after the third messages of all others.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
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

PIECE = 2**14
"""Bytes that are broadcast at a time: a pipe holds several pieces, so that its root is far ahead of
a rank that does not listen before it is stuck itself."""


class SharedMemory(Communicator):
    """Processes of one machine, connected by pipes; arrays go through memory that they share.

    pipes: `pipes[r]` is this process's end of the pipe to rank r, and None for itself. A rank that
    ends, in whatever way, closes its ends: whoever waits for it gets a RankLostError at once. The
    memory never has a name, so that nothing is left behind even by ranks that are killed.

    board: a number for each rank, for whoever has started them to see who hangs. A rank adds 1 to
    its own before it waits and 1 after: the number of a rank that waits is odd. The root of a
    broadcast, for which the others wait, adds 2 after it. So all have the same number at the same
    place, and one that hangs comes to have the lowest: the others stop at what it has not sent.
    """

    def __init__(
        self, rank: int, pipes: Sequence[Connection | None], board: MutableSequence[int]
    ) -> None:
        super().__init__(rank, len(pipes))
        self._pipes = {peer: pipe for peer, pipe in enumerate(pipes) if pipe is not None}
        self._board = board
        self._memory: mmap.mmap | None = None
        self._slots: Any = None
        self._flat: Any = None
        self._started: list[slice] = []

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """Every rank's values, through the pipes."""
        values = np.asarray(values, order="C")
        self._tell(values.tobytes())
        with self._waiting():
            rows = [values.tobytes() if r == self.rank else self._hear(r) for r in range(self.size)]
        return np.frombuffer(b"".join(rows), values.dtype).reshape(self.size, *values.shape)

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """The root's bytes, through the pipes."""
        size = int(self.exchange(np.array(len(data)))[root])
        pieces = []
        for start in range(0, size, PIECE):
            piece = data[start : start + PIECE]
            if self.rank == root:
                self._tell(piece)
                self._board[self.rank] += 2
            else:
                with self._waiting():
                    piece = self._hear(root)
            pieces.append(piece)
        return b"".join(pieces)

    def attach(self, flat: np.ndarray) -> None:
        """Share memory for a copy of `flat` from each rank."""
        self._release()
        size = self.size * flat.nbytes
        shortage = _shortage(size) if self.rank == 0 else ""
        shortage = self.broadcast(shortage.encode()).decode()
        if shortage:
            raise CommunicatorError(shortage)
        if self.rank == 0:
            self._memory = self._give(size)
            self._board[0] += 2
        else:
            with self._waiting():
                self._memory = self._take(size)
        self._slots = np.ndarray((self.size, flat.size), flat.dtype, self._memory)
        self._flat = flat

    def start(self, stretch: slice) -> None:
        """Copy the stretch into this rank's slot, and say so."""
        self._slots[self.rank, stretch] = self._flat[stretch]
        self._started.append(stretch)
        self._tell(b"")

    def finish(self) -> None:
        """Add up this rank's part of each stretch, then take the other parts from the others."""
        for stretch in self._started:
            self._hear_all()
            mine = self._of(stretch, self.rank)
            # Nobody else reads this part of this slot: its place is free for the sum.
            add_in_order(self._slots[:, mine], out=self._slots[self.rank, mine])
            self._tell(b"")
        for stretch in self._started:
            self._hear_all()
            for rank in range(self.size):
                theirs = self._of(stretch, rank)
                self._flat[theirs] = self._slots[rank, theirs]
        self._started.clear()
        self._tell(b"")
        self._hear_all()

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

    def _give(self, size: int) -> mmap.mmap:
        folder = SHARED_FOLDER if os.path.isdir(SHARED_FOLDER) else None
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(size)
            for peer, pipe in self._pipes.items():
                try:
                    send_handle(pipe, file.fileno(), None)
                except OSError:
                    raise RankLostError(peer) from None
            return mmap.mmap(file.fileno(), size)

    def _take(self, size: int) -> mmap.mmap:
        try:
            handle = recv_handle(self._pipes[0])
        except (EOFError, OSError):
            raise RankLostError(0) from None
        try:
            return mmap.mmap(handle, size)
        finally:
            os.close(handle)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._board[self.rank] += 1
        yield
        self._board[self.rank] += 1

    def _tell(self, data: bytes) -> None:
        for peer, pipe in self._pipes.items():
            try:
                pipe.send_bytes(data)
            except OSError:
                raise RankLostError(peer) from None

    def _hear_all(self) -> None:
        with self._waiting():
            for peer in self._pipes:
                self._hear(peer)

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
