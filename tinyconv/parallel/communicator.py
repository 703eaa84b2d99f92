"""What the ranks of a run tell each other: a few numbers a step, and their gradients.

A rank is one process with one device; there are `size` of them, numbered from 0, and all call the
same methods in the same order. Two kinds of message:

    exchange, broadcast     a few bytes, or the weights once: losses, flags, checksums
    start, finish           sum stretches of one long array over all ranks, in place

`start` returns at once, so that the backward pass goes on while the gradients of the layers behind
it are under way; `finish` returns when all sums are there.

Between hosts the sum has two halves. Rank r owns the r-th part of each stretch:

    scatter    every rank gives part r of its array to rank r, which adds them up, rank 0 first
    gather     every rank gives the part that it has added up to all others

A rank sends and receives 2 · (size − 1) / size of the stretch, the least there can be, and floating
point adds in an order that does not depend on who is early: the same bits in every run, by shared
memory and by MPI. On GPUs NCCL does both halves in one call, in an order of its own choice.

    SharedMemory    processes of one machine that `launch.py` has started; `replicas_memory.py`
    MPI             processes that mpiexec has started, on any machines; `replicas_mpi.py`
    NCCL            sums on GPUs; its exchange and broadcast are those of one of the other two;
                    `replicas_nccl.py`
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from layers import DeviceError
from tinyconv.train import TrainingError

CHUNK = 2**15
"""Elements that are added up at a time: they stay in the cache."""

LOST = 70
"""Exit status of a rank that ends only because another one has."""

TIMEOUT = 300.0
"""Seconds for which a rank may keep the others waiting: a rank may compile, open its photos or
write a checkpoint meanwhile, and none of it takes as long."""


class CommunicatorError(DeviceError):
    """Ranks cannot be connected: something is not installed, or there is no room."""


class RankLostError(RuntimeError):
    """Another rank has ended, and this one cannot go on without it.

    Attributes: `rank`; `status`, with which this process should end.
    """

    def __init__(self, rank: int, status: int = LOST) -> None:
        super().__init__(f"rank {rank} has ended")
        self.rank, self.status = rank, status


class RankHungError(TrainingError):
    """Ranks live, and have kept the others waiting for too long."""

    def __init__(self, names: list[str], seconds: float) -> None:
        late = " and ".join(names) or "every rank"
        have = "has" if len(names) < 2 else "have"
        super().__init__(
            f"{late} {have} kept the others waiting for {seconds:g} seconds, and all have been "
            "ended; --resume and the run's folder go on from the last checkpoint, --rank-timeout "
            "gives more time"
        )


def part(count: int, rank: int, size: int) -> slice:
    """The rank's part of `count` things: together complete, disjoint, of almost equal length."""
    return slice(rank * count // size, (rank + 1) * count // size)


class Communicator(ABC):
    """A rank's connection to the others.

    Attributes: `rank`, `size`.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @abstractmethod
    def exchange(self, values: np.ndarray) -> np.ndarray:
        """Every rank's values (of one shape and dtype everywhere): (size, ...), rank 0 first."""

    @abstractmethod
    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """The bytes that rank `root` has called this with."""

    @abstractmethod
    def attach(self, flat: Any) -> None:
        """Name the array whose stretches will be summed, flat and of one size on all ranks."""

    @abstractmethod
    def start(self, stretch: slice) -> None:
        """Begin to sum a stretch of the attached array; it must not change until `finish`."""

    @abstractmethod
    def finish(self) -> None:
        """Return when every stretch that was started holds its sum over all ranks.

        On a GPU: work that is queued from now on finds the sums.
        """

    @abstractmethod
    def close(self) -> None:
        """Give memory and connections back."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """End the other ranks too, as far as nobody else does it."""

    def texts(self, text: str) -> list[str]:
        """Every rank's text."""
        data = text.encode()
        longest = max(1, int(self.exchange(np.array(len(data))).max()))
        padded = np.frombuffer(data.ljust(longest, b"\0"), np.uint8)
        return [row.tobytes().rstrip(b"\0").decode() for row in self.exchange(padded)]


def add_in_order(rows: np.ndarray, out: np.ndarray) -> None:
    """out = rows[0] + rows[1] + ..., from left to right; `out` may be one of the rows."""
    for start in range(0, out.size, CHUNK):
        chunk = slice(start, start + CHUNK)
        total = rows[0][chunk].copy()
        for row in rows[1:]:
            total += row[chunk]
        out[chunk] = total


def one_line(error: BaseException) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split())
