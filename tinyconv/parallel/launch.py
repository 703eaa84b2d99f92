"""Starting the ranks of a data-parallel run: by spawn on one machine, by mpiexec on any number.

    python train.py --parallel replicas --device cuda:0,cuda:1                   # spawn
    mpiexec -n 8 python train.py --parallel replicas --device cuda:0,cuda:1      # join

Spawned ranks are new Python processes: after a fork neither CUDA nor OpenMP would work. Any failure
is reported in one line, and no process is orphaned:

    before the first step    ranks all-gather their statuses; an error that all raise is said once
    in training              the rank reports its error, and the others end
    a rank is killed         its parent reports it and ends the others; so does mpiexec
    the parent is killed     each rank ends
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from layers import DeviceError
from tinyconv.data.bar import tqdm
from tinyconv.data.decode import cores
from tinyconv.parallel.communicator import LOST, MPI, SLOT, SharedMemory
from tinyconv.parallel.rank import Explain, Work, device_of, run_rank
from tinyconv.parallel.replicas import Replica

GRACE = 5.0
"""Seconds in which the other ranks can end by themselves after one has failed."""

STOPS = signal.SIGINT, signal.SIGTERM

WELL = None, 0, *(128 + number for number in STOPS)
"""Exit statuses of ranks that have not failed; None is that of a rank that runs."""

THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
"""Read by NumPy's and Numba's libraries when they are loaded."""

# --- spawn


def spawn(work: Work, options: Any, devices: list[str], explain: Explain, program: str) -> int:
    """Run `work` in one child process per device; returns the exit status.

    work and explain: functions that a child can import. The ranks share the cores, by variables of
    this process's environment. SIGINT and SIGTERM are passed on to the ranks; the second one kills
    them, since some may hang.
    """
    context, size = multiprocessing.get_context("spawn"), len(devices)
    barrier, memory = context.Barrier(size), context.RawArray("B", 2 * size * SLOT)
    told = context.SimpleQueue()
    asked: list[int] = []
    task = work, options, barrier, memory, explain, told
    ranks: list[Any] = []
    for place in enumerate(devices):
        ranks.append(context.Process(target=_child, args=(*place, *task)))

    def forward(number: int, _: Any) -> None:
        asked.append(number)
        for child in ranks:
            if child.is_alive():
                os.kill(child.pid, number if len(asked) == 1 else signal.SIGKILL)

    for name in THREADS:
        os.environ.setdefault(name, str(max(1, cores() // size)))
    # Blocked here until all ranks are started, and in each until it has imported the program.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    before = [signal.signal(number, forward) for number in STOPS]
    try:
        for child in ranks:
            child.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        failed = _wait(ranks)
    finally:
        for child in ranks:
            if child.is_alive():
                child.kill()
        for number, handler in zip(STOPS, before, strict=True):
            signal.signal(number, handler)
    codes = [child.exitcode for child in ranks]
    if not told.empty():
        status, line = told.get()
        print(line, file=sys.stderr)
        return status
    if failed is None or -codes[failed] in asked or len(asked) > 1:
        return 128 + asked[0] if asked and any(codes) else max(codes)
    how = f"ended with status {codes[failed]}"
    if codes[failed] < 0:
        how = f"was killed by {signal.Signals(-codes[failed]).name}"
    print(
        f"{program}: rank {failed} ({devices[failed]}, process {ranks[failed].pid}) {how}; the "
        "others have stopped; --resume and the run's folder continue from the last checkpoint",
        file=sys.stderr,
    )
    return 1


def _wait(ranks: list[Any]) -> int | None:
    """Return when all ranks have ended, if need be by force: the one that failed first."""

    def failed() -> int | None:
        return next((r for r, child in enumerate(ranks) if child.exitcode not in WELL), None)

    # Listed before the look at the statuses: a rank that ends in between wakes up the wait.
    while (alive := [child for child in ranks if child.is_alive()]) and failed() is None:
        connection.wait([child.sentinel for child in alive])
    first = failed()
    # A rank that fails ends the waiting of the others before its own end; if killed, it cannot.
    grace = GRACE if first is not None and ranks[first].exitcode > 0 else 0.0
    deadline = time.monotonic() + grace
    for child in ranks:
        child.join(max(0.0, deadline - time.monotonic()))
        child.kill()
        child.join()
    return first


def _child(rank: int, device: str, work: Work, options: Any, *shared: Any) -> None:
    barrier, memory, explain, told = shared
    os.setsid()  # Ctrl-C is for the parent, which forwards it once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _silence(rank)
    # By default tqdm makes a lock for bars of several processes, which a killed rank would leave.
    tqdm.set_lock(threading.RLock())

    def prepare(_: Replica) -> tuple[Any, str]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        return options, device

    def tell(status: int, line: str) -> None:
        told.put((status, line))

    sys.exit(run_rank(work, SharedMemory(rank, barrier, memory), prepare, explain, tell))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(LOST)


# --- mpiexec


def under_mpi() -> bool:
    """Has mpiexec (or the like) started this process as one of several?"""
    return _mpi_variable("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", 1) > 1


def join(work: Work, settle: Callable[[], Any], explain: Explain, program: str) -> int:
    """Run `work` as one of the ranks of mpiexec; returns the exit status.

    settle: gives the options; called by rank 0, which broadcasts them. Their `device` names one for
    each rank of a machine, or one kind for all (cpu, auto).
    """
    if any(name not in os.environ for name in THREADS):
        # NumPy and Numba have read the number of threads by now: start this program again.
        local = _mpi_variable("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", 1)
        os.environ.update(dict.fromkeys(THREADS, str(max(1, cores() // local))) | os.environ)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def tell(_: int, line: str) -> None:
        print(line, file=sys.__stderr__, flush=True)

    try:
        ranks = MPI()
    except DeviceError as error:
        if _mpi_variable("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", 0) == 0:
            tell(2, f"{program}: error: {error}")
        return 2
    _silence(ranks.rank)

    def prepare(replica: Replica) -> tuple[Any, str]:
        options = replica.broadcast(settle() if replica.first else None)
        hosts = ranks.exchange(socket.gethostname())
        return options, device_of(options.device, hosts, ranks.rank)

    return run_rank(work, ranks, prepare, explain, tell)


def _mpi_variable(open_mpi: str, mpich: str, default: int) -> int:
    """What Open MPI or MPICH (or what is built on it) has set in the environment."""
    return int(os.environ.get(open_mpi) or os.environ.get(mpich) or default)


def _silence(rank: int) -> None:
    """Only rank 0 prints."""
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
