"""Starting the ranks of a data-parallel run on one machine, watching them, and ending them all.

    python train.py --parallel replicas --device cuda:0,cuda:1       one child for each device

Children are started by "spawn", as new Python processes: after a fork neither CUDA nor OpenMP would
work. They are connected to each other by pipes, and to the parent by one more on which a rank that
fails says why. Whatever happens to a rank, one line says so, and no process stays behind:

    a rank raises an error       it tells the parent, its pipes close, the others end
    a rank is killed             its pipes close, the others end; the parent names it
    a rank hangs, but lives      the others wait; the parent names it after `timeout` seconds, and
                                 kills them all
    a rank hangs at the end      in a driver or in NCCL, after another one has failed: the parent
                                 kills it after `GRACE` seconds
    the parent is killed         each rank ends at once

Ctrl-C and SIGTERM reach the parent alone, which passes them on. `replicas_mpiexec.py` has the other
way to start ranks.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from tinyconv.parallel.communicator import LOST, TIMEOUT, RankHungError
from tinyconv.parallel.replicas_memory import SharedMemory
from tinyconv.parallel.replicas_rank import THREADS, Explain, Work, cores, end_with, take_part

GRACE = 5.0
"""Seconds that the other ranks have for ending by themselves after one has failed."""

LOOK = 1.0
"""Seconds between two looks at the ranks."""

STOPS = signal.SIGINT, signal.SIGTERM

WELL = None, 0, *(128 + number for number in STOPS)
"""Exit statuses of ranks that have not failed; None is that of one that goes on."""


def spawn(
    work: Work,
    options: Any,
    devices: list[str],
    explain: Explain,
    program: str,
    timeout: float = TIMEOUT,
) -> int:
    """Run `work` in one child for each device; returns the exit status.

    work and explain: functions of a module that children can import (or of the program itself).
    timeout: seconds for which a rank may keep the others waiting.
    """
    context = multiprocessing.get_context("spawn")
    size = len(devices)
    pipes: list[list[Connection | None]] = [[None] * size for _ in devices]
    for a in range(size):
        for b in range(a):
            pipes[a][b], pipes[b][a] = context.Pipe()
    board = context.RawArray("q", size)
    reports: list[Connection] = []
    ranks: list[Any] = []
    try:
        with _Forwarding(ranks) as asked, _ThreadsFor(size):
            for rank in range(size):
                report, tell = context.Pipe(duplex=False)
                rest = rank, devices[rank], pipes[rank], board, tell, explain
                ranks.append(context.Process(target=_child, args=(work, options, *rest)))
                reports.append(report)
                if not asked.number:
                    ranks[-1].start()
                tell.close()
            for row in pipes:
                for pipe in row:
                    if pipe is not None:
                        pipe.close()  # only the children hold them now: who dies is noticed
            ranks[:] = [child for child in ranks if child.pid is not None]
            watch = Watch(ranks, reports, Patience(board, timeout))
            watch.run()
    finally:
        for child in ranks:
            if child.is_alive():
                child.kill()
    status, line = _verdict(watch, ranks, devices, asked.number, timeout)
    if line:
        print(line if watch.lines else f"{program}: {line}", file=sys.stderr)
    return status


def _verdict(
    watch: "Watch", ranks: list[Any], devices: list[str], asked: int, timeout: float
) -> tuple[int, str]:
    """Exit status, and what to say. asked: the signal that this process was sent, or 0."""
    names = [f"rank {r} ({devices[r]}, process {child.pid})" for r, child in enumerate(ranks)]
    codes = [child.exitcode for child in ranks]
    stopped = {128 + number for number in STOPS}
    if watch.lines:
        return next((code for code in codes if code > 0 and code != LOST), 1), watch.lines[0]
    if watch.late:
        return 1, str(RankHungError([names[rank] for rank in watch.late], timeout))
    if asked and set(codes) <= {0, LOST, *stopped, *(-number for number in STOPS)}:
        # With all at 0 they had finished before it came, unless some were not even started.
        return (128 + asked if any(codes) or len(ranks) < len(devices) else 0), ""
    if not any(codes):
        return 0, ""
    if watch.first is None and stopped & set(codes):
        return max(stopped & set(codes)), ""  # somebody has sent it to a rank
    who = watch.first or 0
    how = f"ended with status {codes[who]}"
    if codes[who] < 0:
        how = f"was killed by {signal.Signals(-codes[who]).name}"
    return 1, (
        f"{names[who]} {how}; the others have stopped; --resume and the run's folder go on from "
        "the last checkpoint"
    )


class Patience:
    """Which ranks keep the others waiting, by the board of `SharedMemory`, and for how long.

    board: the ranks' numbers; timeout: in seconds.
    """

    def __init__(self, board: Sequence[int], timeout: float) -> None:
        self._board, self._timeout = board, timeout
        self._looked_at = time.monotonic()
        self._awaited, self._seconds = -1, 0.0

    def late(self) -> list[int]:
        """The ranks that have kept others waiting for too long; to be called every `LOOK`."""
        now, numbers = time.monotonic(), list(self._board)
        # More time has gone by if this process was stopped: then the ranks may have been, too.
        passed, self._looked_at = min(now - self._looked_at, 2 * LOOK), now
        lowest = min(numbers)
        # One that waits, or that is further ahead than others get: the root of a broadcast, whose
        # pipe is full.
        ahead = [number for number in numbers if number > lowest]
        awaited = lowest if any(n % 2 or n > lowest + 3 for n in ahead) else -1
        same = awaited >= 0 and awaited == self._awaited
        self._awaited, self._seconds = awaited, self._seconds + passed if same else 0.0
        if not same or self._seconds < self._timeout:
            return []
        return [rank for rank, number in enumerate(numbers) if number == lowest]


class Watch:
    """What the parent does while the ranks work.

    Attributes, for when all have ended: `lines`, what ranks have said; `first`, the rank that
    failed first, or None; `late`, the ranks for which the others have waited too long.
    """

    def __init__(self, ranks: list[Any], reports: list[Connection], patience: Patience) -> None:
        self._ranks, self._reports, self._patience = ranks, list(reports), patience
        self.lines: list[str] = []
        self.first: int | None = None
        self.late: list[int] = []

    def run(self) -> None:
        """Return when all ranks have ended: by themselves, or killed."""
        deadline = math.inf
        while alive := [child for child in self._ranks if child.is_alive()]:
            if time.monotonic() > deadline:
                for child in alive:
                    child.kill()
            connection.wait([*(child.sentinel for child in alive), *self._reports], LOOK)
            self._note()
            # Asked to stop, the first rank may be writing a checkpoint when the others have ended.
            if deadline == math.inf and any(child.exitcode not in WELL for child in self._ranks):
                deadline = time.monotonic() + GRACE
            if deadline == math.inf and (late := self._patience.late()):
                self.late, deadline = late, -math.inf
        for child in self._ranks:
            child.join()
        self._note()

    def _note(self) -> None:
        if self.first is None:
            codes = [child.exitcode for child in self._ranks]
            failed = (rank for rank, code in enumerate(codes) if code not in (*WELL, LOST))
            self.first = next(failed, None)
        self._hear()

    def _hear(self) -> None:
        for report in list(self._reports):
            try:
                while report.poll():
                    self.lines.append(report.recv_bytes().decode())
            except (EOFError, OSError):
                self._reports.remove(report)


def _child(
    work: Work,
    options: Any,
    rank: int,
    device: str,
    pipes: list[Connection | None],
    board: Any,
    report: Connection,
    explain: Explain,
) -> None:
    os.setsid()  # Ctrl-C is for the parent, which passes it on once
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    end_with(parent.pid)
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    # By itself tqdm makes one for bars of several processes, which a rank that is killed leaves.
    tqdm.set_lock(threading.RLock())

    def tell(line: str) -> None:
        report.send_bytes(line.encode())

    others = SharedMemory(rank, pipes, board)
    status = take_part(work, options, others, device, explain, tell)
    others.close()
    sys.exit(status)


class _Forwarding:
    """While in its `with` block, SIGINT and SIGTERM go to the ranks instead of to this process."""

    def __init__(self, ranks: list[Any]) -> None:
        self.ranks, self.number = ranks, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Forwarding":
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _: Any) -> None:
        self.number = self.number or number
        for child in self.ranks:
            if child.is_alive():
                os.kill(child.pid, number)


class _ThreadsFor:
    """While in its `with` block, children are told to take their share of the cores."""

    def __init__(self, ranks: int) -> None:
        share = str(max(1, cores() // ranks))
        self._names = {name: share for name in THREADS if name not in os.environ}

    def __enter__(self) -> None:
        os.environ.update(self._names)

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            del os.environ[name]
