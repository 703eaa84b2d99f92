"""The ranks of a data-parallel run, and the collective operations between them.

    SharedMemory    processes of one machine, started by `launch.spawn`
    MPI             processes started by mpiexec, on any machines
    NCCL            the sums of either on GPUs

On hosts every rank receives the arrays of all ranks and adds rank 0 + rank 1 + ..., in this order:
the same bits in every run, by shared memory and by MPI. A rank sends an array size − 1 times;
NCCL's all-reduce sends it 2 · (size − 1) / size times and has an order of its own.
"""

import importlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from layers import Device, DeviceError

LOST = 70
"""Exit status of a rank that ends only because another one has failed."""

SLOT = 2**19
"""Bytes that a rank writes to shared memory at a time: the slots of all ranks stay in the cache."""


class RankLostError(RuntimeError):
    """Another rank has failed. Attribute `status`: this process's exit status."""

    def __init__(self, status: int = LOST) -> None:
        super().__init__("another rank has failed")
        self.status = status


def add_in_order(rows: np.ndarray, out: np.ndarray) -> None:
    """out = rows[0] + rows[1] + ..., from left to right. rows: (size, n), size > 1; out: (n,)."""
    np.add(rows[0], rows[1], out=out)
    for row in rows[2:]:
        out += row


class Replica:
    """One rank: a process with one device. There are `size` of them, numbered from 0 by `rank`.

    All call the same methods in the same order:

        exchange(value)    all-gather of what can be pickled -> all ranks' values, rank 0 first
        sums.start(flat)   begin to sum an array over all ranks, in place: contiguous, of one size;
                           it must not change until `finish`
        sums.finish()      return when every array that was started holds its sum
        abort(status)      after a failure here: end the waiting of the other ranks, or the ranks

    Attributes: `device`, the name of this rank's; `sums`, this rank itself, or an `NCCL`; `first`,
    is this rank 0, which writes and prints; `begun`, have all ranks come as far as
    `begin_together`.
    """

    exchange: Callable[[Any], list[Any]]
    abort: Callable[[int], None]

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.device = rank, size, ""
        self.first, self.begun = rank == 0, False
        self.sums: Any = self

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.device})"

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks; RankLostError if one has failed on its way here.

        Such a rank exchanges (its exit status, None) instead.
        """
        found = self.exchange((0, value))
        for status, _ in found:
            if status:
                raise RankLostError(status)
        return [each for _, each in found]

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value; errors as `gather`."""
        return self.gather(value)[0]

    def agree(self, stop: int) -> int:
        """The largest `stop` of all ranks, so that all end after the same step."""
        return max(self.exchange(int(stop)))

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, in their order."""
        return [sum(each) for each in zip(*self.exchange(values), strict=True)]


class SharedMemory(Replica):
    """Processes of one machine.

    barrier: a Barrier for all ranks, of multiprocessing or threading; memory: a buffer of
    2 · size · SLOT bytes that all ranks share, two banks of one slot per rank. An operation writes
    this rank's slot, waits at the barrier, and reads all slots. Consecutive operations alternate
    between the banks, so a bank is written again only after all ranks have read it and come to the
    barrier of the operation between.

    Sums run in a thread of their own, beside the backward pass. After `abort`, by any rank, all
    operations raise RankLostError. Ranks wait without a time limit: their parent process ends them
    when one of them dies.
    """

    def __init__(self, rank: int, barrier: Any, memory: Any) -> None:
        super().__init__(rank, barrier.parties)
        self._banks = np.frombuffer(memory, np.uint8).reshape(2, self.size, SLOT)
        self._barrier, self._bank = barrier, 0
        self._thread = ThreadPoolExecutor(1)
        self._sums: list[Future] = []

    def exchange(self, value: Any) -> list[Any]:
        """All-gather, a slot at a time."""
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = self._gather(np.array([data.size]))[:, 0].tolist()
        found = [bytearray() for _ in sizes]
        for begin in range(0, max(sizes), SLOT):
            for rank, slot in enumerate(self._gather(data[begin : begin + SLOT])):
                found[rank] += slot[: max(0, sizes[rank] - begin)].tobytes()
        return [pickle.loads(whole) for whole in found]

    def start(self, flat: np.ndarray) -> None:
        """Hand the array to the thread."""
        self._sums.append(self._thread.submit(self._sum, flat))

    def finish(self) -> None:
        """Wait for the thread."""
        for result in self._sums:
            result.result()
        self._sums.clear()

    def abort(self, status: int) -> None:
        """Break the barrier."""
        self._barrier.abort()

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """The slots of all ranks, as arrays like `values`; valid until the next operation."""
        slots = self._banks[self._bank].view(values.dtype)
        self._bank = 1 - self._bank
        slots[self.rank, : values.size] = values
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise RankLostError from None
        return slots

    def _sum(self, flat: np.ndarray) -> None:
        length = SLOT // flat.itemsize
        for begin in range(0, flat.size, length):
            chunk = flat[begin : begin + length]
            add_in_order(self._gather(chunk)[:, : chunk.size], out=chunk)


class MPI(Replica):
    """Processes that mpiexec has started, connected by mpi4py; DeviceError without it.

    MPI's own reductions may add in any order, so a sum is an all-gather and an addition in each
    rank. How much is sent before `finish` depends on the MPI.
    """

    def __init__(self) -> None:
        try:
            self._world = importlib.import_module("mpi4py.MPI").COMM_WORLD
        except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library found
            reason = " ".join(str(error).split())
            raise DeviceError(
                f"started by mpiexec, and mpi4py cannot be used ({reason}): pip install "
                "-e '.[mpi]' mpich"
            ) from None
        super().__init__(self._world.Get_rank(), self._world.Get_size())
        self._rows: dict[tuple[int, int], np.ndarray] = {}
        self._started: list[tuple[np.ndarray, np.ndarray, Any]] = []

    def exchange(self, value: Any) -> list[Any]:
        """All-gather, once all ranks have come to it."""
        self._wait(self._world.Ibarrier())
        return self._world.allgather(value)

    def start(self, flat: np.ndarray) -> None:
        """Begin the all-gather of the array, into rows that its next sum will use again."""
        place = flat.ctypes.data, flat.size
        if place not in self._rows:
            self._rows[place] = np.empty((self.size, flat.size), flat.dtype)
        rows = self._rows[place]
        self._started.append((flat, rows, self._world.Iallgather(flat, rows)))

    def finish(self) -> None:
        """Add the rows of every array that was started."""
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


class NCCL:
    """Sums on GPUs, one GPU per rank. Not yet run on two GPUs; the tests emulate NCCL.

    device: the replica's, a real GPU. The sums have a stream of their own: it waits for the work
    queued before `start`, and the work queued after `finish` waits for it. Their order depends on
    the machines and NCCL's version: the same machines give the same bits. DeviceError without NCCL.
    """

    def __init__(self, device: Device, replica: Replica) -> None:
        self._cuda = device.xp.cuda
        try:
            self._nccl = importlib.import_module(f"{device.xp.__name__}.cuda.nccl")
            if not self._nccl.available:
                raise ImportError("CuPy does not find it")
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise DeviceError(
                f"{device.name}: NCCL is missing ({reason}): pip install -e '.[nccl12]' or "
                "'.[nccl13]', whichever CUDA CuPy is for"
            ) from None
        identity = replica.broadcast(self._nccl.get_unique_id() if replica.first else None)
        self._comm = self._nccl.NcclCommunicator(replica.size, identity, replica.rank)
        self._stream = self._cuda.Stream(non_blocking=True)
        self._filled, self._summed = (self._cuda.Event(disable_timing=True) for _ in range(2))

    def start(self, flat: Any) -> None:
        """Queue the sum after the work queued so far."""
        self._filled.record(self._cuda.get_current_stream())
        self._stream.wait_event(self._filled)
        nccl, pointer = self._nccl, flat.data.ptr
        dtype = nccl.NCCL_FLOAT32 if flat.dtype == np.float32 else nccl.NCCL_FLOAT64
        self._comm.allReduce(pointer, pointer, flat.size, dtype, nccl.NCCL_SUM, self._stream.ptr)

    def finish(self) -> None:
        """Let the work queued from now on wait for the sums."""
        self._summed.record(self._stream)
        self._cuda.get_current_stream().wait_event(self._summed)
