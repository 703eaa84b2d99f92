"""Collective operations between the ranks of a data-parallel run.

A rank is one process with one device; there are `size` of them, numbered from 0, and all call the
same methods in the same order:

    exchange, broadcast     all-gather and broadcast of a few bytes (once: of the weights)
    start, finish           all-reduce stretches of one flat array (the gradients), in place

`start` returns at once: the gradients of one layer are summed while the backward pass computes
those of the layer before it. `finish` returns when all sums are complete.

    SharedMemory    processes of one machine, started by `launch.spawn`
    MPI             processes started by mpiexec, on any machines
    NCCL            sums on GPUs; `nccl.py`

On hosts every rank receives the stretches of all ranks and adds rank 0 + rank 1 + ..., in this
order: the same bits in every run, by shared memory and by MPI. A rank sends a stretch size − 1
times; NCCL's all-reduce sends it 2 · (size − 1) / size times and has an order of its own.
"""

import importlib
import os
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from layers import DeviceError

LOST = 70
"""Exit status of a rank that ends only because another one has failed."""

SLOT = 2**19
"""Bytes that a rank writes to shared memory at a time: the slots of all ranks stay in the cache."""


class CommunicatorError(DeviceError):
    """Ranks cannot be connected: a package is missing."""


class RankLostError(RuntimeError):
    """Another rank has failed. Attributes: `rank`; `status`, this process's exit status."""

    def __init__(self, rank: int, status: int = LOST) -> None:
        super().__init__(f"rank {rank} has failed")
        self.rank, self.status = rank, status


def add_in_order(rows: np.ndarray, out: np.ndarray) -> None:
    """out = rows[0] + rows[1] + ..., from left to right. rows: (size, n), size > 1; out: (n,)."""
    np.add(rows[0], rows[1], out=out)
    for row in rows[2:]:
        out += row


def one_line(error: BaseException) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split())


class Communicator(ABC):
    """A rank's connection to the others. Attributes: `rank`, `size`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._flat: Any = None

    @abstractmethod
    def exchange(self, values: np.ndarray) -> np.ndarray:
        """All-gather: values of one shape and dtype on all ranks -> (size, ...), rank 0 first."""

    @abstractmethod
    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """The bytes that rank `root` passes."""

    def attach(self, flat: Any) -> None:
        """Set the array whose stretches are summed: flat, contiguous, of one size on all ranks."""
        self._flat = flat

    @abstractmethod
    def start(self, stretch: slice) -> None:
        """Begin to sum a stretch of the attached array; it must not change until `finish`."""

    @abstractmethod
    def finish(self) -> None:
        """Return when every stretch that was started holds its sum over all ranks.

        On a GPU, work that is queued from now on reads the sums.
        """

    @abstractmethod
    def abort(self, status: int) -> None:
        """End the waiting of the other ranks, or the ranks themselves, after a failure here."""

    def close(self) -> None:
        """Release memory and connections."""
        self._flat = None

    def texts(self, text: str) -> list[str]:
        """All-gather of a text per rank."""
        data = text.encode()
        longest = max(1, int(self.exchange(np.array(len(data))).max()))
        padded = np.frombuffer(data.ljust(longest, b"\0"), np.uint8)
        return [row.tobytes().rstrip(b"\0").decode() for row in self.exchange(padded)]


class SharedMemory(Communicator):
    """Processes of one machine.

    barrier: a Barrier for all ranks, of multiprocessing or threading; memory: a buffer of
    2 · size · SLOT bytes that all ranks share, two banks of one slot per rank. An operation writes
    this rank's slot, waits at the barrier, and reads all slots. Consecutive operations alternate
    between the banks, so a bank is written again only after all ranks have read it and come to the
    barrier of the operation between.

    Sums run in a thread of their own, beside the backward pass. After `abort`, by any rank, all
    operations raise BrokenBarrierError. Ranks wait without a time limit: their parent process ends
    them when one of them dies.
    """

    def __init__(self, rank: int, barrier: Any, memory: Any) -> None:
        super().__init__(rank, barrier.parties)
        self._banks = np.frombuffer(memory, np.uint8).reshape(2, self.size, SLOT)
        self._barrier, self._bank = barrier, 0
        self._thread = ThreadPoolExecutor(1)
        self._sums: list[Future] = []

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """All-gather of at most SLOT bytes."""
        values = np.asarray(values)
        rows = self._gather(np.frombuffer(values.tobytes(), np.uint8)).copy()
        return rows.view(values.dtype).reshape(self.size, *values.shape)

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """Broadcast, a slot at a time."""
        length = int(self.exchange(np.array(len(data)))[root])
        own = np.frombuffer(data if self.rank == root else bytes(length), np.uint8)
        pieces = [own[begin : begin + SLOT] for begin in range(0, length, SLOT)]
        return b"".join([self._gather(piece)[root].tobytes() for piece in pieces])

    def start(self, stretch: slice) -> None:
        """Hand the stretch to the thread."""
        self._sums.append(self._thread.submit(self._sum, self._flat[stretch]))

    def finish(self) -> None:
        """Wait for the thread."""
        for result in self._sums:
            result.result()
        self._sums.clear()

    def abort(self, status: int) -> None:
        """Break the barrier."""
        self._barrier.abort()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        super().close()

    def _gather(self, data: np.ndarray) -> np.ndarray:
        """All-gather of at most SLOT bytes; the result is valid until the next operation."""
        slots = self._banks[self._bank, :, : data.size]
        self._bank = 1 - self._bank
        slots[self.rank] = data
        self._barrier.wait()
        return slots

    def _sum(self, flat: np.ndarray) -> None:
        length = SLOT // flat.itemsize
        for begin in range(0, flat.size, length):
            chunk = flat[begin : begin + length]
            add_in_order(self._gather(chunk.view(np.uint8)).view(flat.dtype), out=chunk)


class MPI(Communicator):
    """Processes that mpiexec has started, connected by mpi4py; CommunicatorError without it.

    A sum is an all-gather and an addition in each rank, since MPI's own reductions may add in any
    order. How much is sent before `finish` depends on the MPI.
    """

    def __init__(self) -> None:
        try:
            self._mpi = importlib.import_module("mpi4py.MPI")
        except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library found
            raise CommunicatorError(
                f"started by mpiexec, and mpi4py cannot be used ({one_line(error)}): pip install "
                "-e '.[mpi]' mpich"
            ) from None
        self._world = self._mpi.COMM_WORLD
        super().__init__(self._world.Get_rank(), self._world.Get_size())
        self._started: list[tuple[np.ndarray, np.ndarray, Any]] = []

    def attach(self, flat: np.ndarray) -> None:
        """Set the array, and make room for that of every rank."""
        super().attach(flat)
        self._rows = np.empty(self.size * flat.size, flat.dtype)

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """All-gather, by Iallgather."""
        values = np.asarray(values, order="C")
        rows = np.empty((self.size, *values.shape), values.dtype)
        self._wait(self._world.Iallgather(values, rows))
        return rows

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """Broadcast, by Ibcast."""
        size = int(self.exchange(np.array(len(data)))[root])
        buffer = bytearray(data) if self.rank == root else bytearray(size)
        self._wait(self._world.Ibcast(buffer, root))
        return bytes(buffer)

    def start(self, stretch: slice) -> None:
        """Begin the all-gather of a stretch."""
        flat = self._flat[stretch]
        rows = self._rows[self.size * stretch.start :][: self.size * flat.size]
        rows = rows.reshape(self.size, flat.size)
        self._started.append((flat, rows, self._world.Iallgather(flat, rows)))

    def finish(self) -> None:
        """Add the rows of every stretch that was started."""
        for flat, rows, request in self._started:
            self._wait(request)
            add_in_order(rows, out=flat)
        self._started.clear()

    def abort(self, status: int) -> None:
        """End every rank; mpiexec returns `status`."""
        time.sleep(1)  # mpiexec drops output that it has not passed on by then
        self._world.Abort(status)

    def _wait(self, request: Any) -> None:
        # MPI's own wait polls without a pause, which slows down ranks that share a core with it.
        while not request.Test():
            os.sched_yield()
