"""Starting the ranks of a data-parallel run: by spawn on one machine, by mpiexec on any number.

    python train.py --parallel replicas --device cuda:0,cuda:1                   # spawn
    mpiexec -n 8 python train.py --parallel replicas --device cuda:0,cuda:1      # join

Spawned ranks are new Python processes: after a fork neither CUDA nor OpenMP would work. Any failure
is reported in one line, and no process is orphaned:

    before the first step    ranks all-gather their statuses; an error that all raise is said once
    in training              the rank reports its error, and aborts the others
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
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from layers import Device, DeviceError
from tinyconv.data.bar import tqdm
from tinyconv.data.decode import cores
from tinyconv.parallel.communicator import MPI, NCCL, SLOT, RankLostError, Replica, SharedMemory
from tinyconv.train import TrainingError

STOPS = signal.SIGINT, signal.SIGTERM

WELL = None, 0, *(128 + number for number in STOPS)
"""Exit statuses of ranks that have not failed; None is that of a rank that runs."""

GRACE = 5.0
"""Seconds in which the other ranks can end by themselves after one has failed."""

THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
"""Read by NumPy's and Numba's libraries when they are loaded."""

Work = Callable[[Any, Replica], int]
"""What a rank does: work(options, replica) -> exit status."""

Explain = Callable[[BaseException, str], tuple[int, str] | None]
"""explain(error, whose) -> (status, line); None for an unforeseen error. `whose` names the rank,
if not all of them raise it."""


# --- one rank


def run_rank(
    work: Work, replica: Replica, settle: Callable[[], Any], explain: Explain, tell: Any
) -> int:
    """Run one rank; returns its exit status.

    settle: gives the options, whose `device` is a list as in `device_of`; rank 0 calls it.
    tell(status, line): prints the line, or passes it to the parent process; only ranks that fail
    for different reasons both call it.
    """
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            options = replica.broadcast(settle() if replica.first else None)
            connect(replica, options.device)
            return work(options, replica)
        except RankLostError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            return _fail(error, replica, explain, tell)
    except RankLostError as lost:
        return lost.status


def _fail(error: BaseException, replica: Replica, explain: Explain, tell: Any) -> int:
    """Report the failure of a rank; returns its exit status."""
    trace = traceback.format_exc().rstrip()

    def explained(whose: str) -> tuple[int, str]:
        return explain(error, whose) or (1, f"{whose}{trace}")

    status, line = explained(f"{replica}: " if replica.device else "")
    interrupted, by_all = isinstance(error, KeyboardInterrupt), isinstance(error, TrainingError)
    if interrupted or (replica.begun and not by_all):
        if replica.first or not interrupted:
            tell(status, line)
        replica.abort(status)
        return status
    statuses = [] if by_all else [other for other, _ in replica.exchange((status, None))]
    failed = [rank for rank, other in enumerate(statuses) if other] or [*range(replica.size)]
    if replica.rank == failed[0]:
        tell(*explained("") if len(failed) == replica.size else (status, line))
    return status


def connect(replica: Replica, devices: str) -> None:
    """Open the rank's device of the list `devices`, and set up NCCL if it is a GPU.

    ValueError, on all ranks, for devices that are unequal (the slowest would delay the others) or
    used twice. The errors of `Device` and `NCCL` on those that raise them.
    """
    hosts = replica.gather(socket.gethostname())
    replica.device = device_of(devices, hosts, replica.rank)
    device = Device(replica.device).use()
    kind = str(device).partition(", ")[2] if device.is_cuda else "the host"
    place = f"{device.name} on {hosts[replica.rank]}"
    kinds, places, pids = zip(*replica.gather((kind, place, os.getpid())), strict=True)
    for rank, other in enumerate(kinds):
        if other != kinds[0]:
            raise ValueError(
                f"replicas need equal devices: rank 0 has {kinds[0]}, rank {rank} has {other}; "
                "leave one out of --device"
            )
        print(f"rank {rank}: {places[rank]}, process {pids[rank]}", flush=True)  # only by rank 0
    if not device.is_cuda or device.is_simulated:
        return
    place, ranks = Counter(places).most_common(1)[0]
    if ranks > 1:
        raise ValueError(f"two ranks use {place}: --device cuda:0,cuda:1,... names one for each")
    if len(set(hosts)) == 1:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    replica.sums = NCCL(device, replica)


def device_of(devices: str, hosts: list[str], rank: int) -> str:
    """The device of one rank, by its place among the ranks of its host.

    hosts: that of each rank. ValueError, on all ranks, if one has more than `devices` names.
    """
    names = names_in(devices)
    host, ranks = Counter(hosts).most_common(1)[0]
    if 1 < len(names) < ranks:
        raise ValueError(
            f"--device {devices} names {len(names)} devices, and {host} has {ranks} ranks: name "
            "one for each, or one kind for all (cpu, auto)"
        )
    place = hosts[:rank].count(hosts[rank])
    if names == ["auto"]:
        return f"cuda:{place}" if Device("auto").is_cuda else "cpu"
    return names[place if len(names) > 1 else 0]


def names_in(devices: str) -> list[str]:
    """The names in a list such as "cuda:0,cuda:1"."""
    return [name.strip() for name in devices.split(",")]


# --- spawn


def spawn(work: Work, options: Any, explain: Explain, program: str) -> int:
    """Run `work` in one child process per device of options.device; returns the exit status.

    work and explain: functions that a child can import. The ranks share the cores, by variables of
    this process's environment. SIGINT and SIGTERM are passed on to the ranks; the second one kills
    them, since some may hang.
    """
    devices = names_in(options.device)
    context, size = multiprocessing.get_context("spawn"), len(devices)
    barrier, memory = context.Barrier(size), context.RawArray("B", 2 * size * SLOT)
    told = context.SimpleQueue()
    task = work, options, barrier, memory, explain, told
    ranks: list[Any] = [context.Process(target=_child, args=(r, *task)) for r in range(size)]
    asked: list[int] = []

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


def _child(
    rank: int, work: Work, options: Any, barrier: Any, memory: Any, explain: Explain, told: Any
) -> None:
    os.setsid()  # Ctrl-C is for the parent, which forwards it once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _silence(rank)
    # By default tqdm makes a lock for bars of several processes, which a killed rank would leave.
    tqdm.set_lock(threading.RLock())
    ranks = SharedMemory(rank, barrier, memory)
    sys.exit(run_rank(work, ranks, lambda: options, explain, lambda *line: told.put(line)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
    return run_rank(work, ranks, settle, explain, tell)


def _mpi_variable(open_mpi: str, mpich: str, default: int) -> int:
    """What Open MPI or MPICH (or what is built on it) has set in the environment."""
    return int(os.environ.get(open_mpi) or os.environ.get(mpich) or default)


def _silence(rank: int) -> None:
    """Only rank 0 prints."""
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
