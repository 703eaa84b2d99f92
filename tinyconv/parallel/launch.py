"""Starting the ranks of a data-parallel run on one machine, watching them, and ending them all.

    python train.py --parallel replicas --device cuda:0,cuda:1       one child for each device

Children are started by "spawn", as new Python processes: after a fork neither CUDA nor OpenMP would
work. They are connected to each other by pipes, and to the parent by one more on which a rank that
fails says why. Whatever happens to a rank, one line says so, and no process stays behind:

    a rank raises an error       it tells the parent, its pipes close, the others end
    a rank is killed             its pipes close, the others end; the parent names it
    the parent is killed         each rank notices within a moment, and ends
    a rank hangs meanwhile       in a driver or in NCCL: the parent kills it after `GRACE` seconds

Ctrl-C and SIGTERM reach the parent alone, which passes them on. `replicas_mpiexec.py` has the other
way to start ranks.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from tinyconv.parallel.communicator import LOST
from tinyconv.parallel.replicas_memory import SharedMemory
from tinyconv.parallel.replicas_rank import THREADS, Explain, Work, cores, take_part

GRACE = 5.0
"""Seconds that the other ranks have for ending by themselves after one has failed."""

STOPS = signal.SIGINT, signal.SIGTERM

WELL = None, 0, *(128 + number for number in STOPS)
"""Exit statuses of ranks that have not failed; None is that of one that goes on."""


def spawn(work: Work, options: Any, devices: list[str], explain: Explain, program: str) -> int:
    """Run `work` in one child for each device; returns the exit status.

    work and explain: functions of a module that children can import (or of the program itself).
    """
    context = multiprocessing.get_context("spawn")
    size = len(devices)
    pipes: list[list[Connection | None]] = [[None] * size for _ in devices]
    for a in range(size):
        for b in range(a):
            pipes[a][b], pipes[b][a] = context.Pipe()
    reports: list[Connection] = []
    ranks: list[Any] = []
    try:
        with _Forwarding(ranks) as asked, _ThreadsFor(size):
            for rank in range(size):
                report, tell = context.Pipe(duplex=False)
                rest = rank, devices[rank], pipes[rank], tell, explain
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
            lines = _watch(ranks, reports)
    finally:
        for child in ranks:
            if child.is_alive():
                child.kill()
    codes = [child.exitcode for child in ranks]
    if lines:
        print(lines[0], file=sys.stderr)
        return next((code for code in codes if code > 0 and code != LOST), 1)
    asked_for = {128 + number for number in STOPS} | {-number for number in STOPS}
    if asked.number and not set(codes) <= {0} and set(codes) <= {0, LOST} | asked_for:
        return 128 + asked.number
    if not any(codes):
        return 128 + asked.number if len(ranks) < size else 0
    who = next((r for r, code in enumerate(codes) if code not in (0, LOST)), 0)
    if codes[who] in asked_for and codes[who] > 0:
        return codes[who]  # somebody has asked a rank itself
    how = f"ended with status {codes[who]}"
    if codes[who] < 0:
        how = f"was killed by {signal.Signals(-codes[who]).name}"
    print(
        f"{program}: rank {who} ({devices[who]}, process {ranks[who].pid}) {how}; the others have "
        "stopped; --resume and the run's folder go on from the last checkpoint",
        file=sys.stderr,
    )
    return 1


def _watch(ranks: list[Any], reports: list[Connection]) -> list[str]:
    """Return when all ranks have ended: by themselves, or killed `GRACE` after one has failed."""
    lines: list[str] = []
    open_reports = list(reports)
    deadline: float | None = None
    while alive := [child for child in ranks if child.is_alive()]:
        if deadline is not None and time.monotonic() > deadline:
            for child in alive:
                child.kill()
        left = None if deadline is None else max(0.1, deadline - time.monotonic())
        connection.wait([*(child.sentinel for child in alive), *open_reports], left)
        lines += _hear(open_reports)
        # Asked to stop, the first rank may be writing a checkpoint when the others have ended.
        if deadline is None and any(child.exitcode not in WELL for child in ranks):
            deadline = time.monotonic() + GRACE
    for child in ranks:
        child.join()
    return lines + _hear(open_reports)


def _hear(reports: list[Connection]) -> list[str]:
    lines = []
    for report in list(reports):
        try:
            while report.poll():
                lines.append(report.recv_bytes().decode())
        except (EOFError, OSError):
            reports.remove(report)
    return lines


def _child(
    work: Work,
    options: Any,
    rank: int,
    device: str,
    pipes: list[Connection | None],
    report: Connection,
    explain: Explain,
) -> None:
    os.setsid()  # Ctrl-C is for the parent, which passes it on once
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    # By itself tqdm makes one for bars of several processes, which a rank that is killed leaves.
    tqdm.set_lock(threading.RLock())

    def tell(line: str) -> None:
        report.send_bytes(line.encode())

    others = SharedMemory(rank, pipes)
    status = take_part(work, options, others, device, explain, tell)
    others.close()
    sys.exit(status)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(LOST)


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
