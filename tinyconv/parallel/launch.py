"""Starting the ranks of a data-parallel run: by spawn on one machine, by mpiexec on any number.

    python train.py --parallel replicas --device cuda:0,cuda:1                   # spawn
    mpiexec -n 8 python train.py --parallel replicas --device cuda:0,cuda:1      # join

Spawned ranks are new Python processes: after a fork neither CUDA nor OpenMP would work. Any failure
is reported in one line, and no process is orphaned:

    before the first step    ranks exchange their statuses: an error that all raise is printed once
    in training              the rank reports its error, and the others end
    a rank is killed         its parent names it and kills the others; so does mpiexec
    the parent is killed     each rank ends
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from tqdm import tqdm

from layers import Device
from layers.device import SIMULATED
from tinyconv.parallel.communicator import (
    LOST,
    MPI,
    SLOT,
    Communicator,
    CommunicatorError,
    RankLostError,
    SharedMemory,
    one_line,
)
from tinyconv.parallel.nccl import NCCL
from tinyconv.parallel.replicas import Replica
from tinyconv.train import TrainingError

GRACE = 5.0
"""Seconds in which the other ranks can end by themselves after one has failed."""

STOPS = signal.SIGINT, signal.SIGTERM

WELL = None, 0, *(128 + number for number in STOPS)
"""Exit statuses of ranks that have not failed; None is that of one that runs."""

THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
"""Read by NumPy's and Numba's libraries when they are loaded."""

SIZES = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"
LOCAL_SIZES = "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"
LOCAL_RANKS = "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"
"""Set by Open MPI and by MPICH or what is built on it: ranks; those of this machine; which."""

Work = Callable[[Any, Replica], int]
"""What a rank does: work(options, replica) -> exit status."""

Explain = Callable[[BaseException, str], tuple[int, str] | None]
"""explain(error, whose) -> (status, line); None for an unforeseen error. `whose` names the rank,
if not all of them raise it."""

Tell = Callable[[int, str], None]
"""tell(status, line) reports a failure."""

# --- one rank


def device_names(devices: str) -> list[str]:
    """The devices of a list such as "cuda:0,cuda:1"; ValueError if ranks cannot use them."""
    names = [name.strip() for name in devices.split(",")]
    kinds = {name.partition(":")[0] for name in names}
    if "" in names or (len(names) > 1 and (len(kinds) > 1 or "auto" in names)):
        raise ValueError(
            f"--device {devices}: replicas need devices of one kind, such as cuda:0,cuda:1 or "
            "cpu,cpu"
        )
    if kinds == {"cuda"} and len(set(names)) < len(names) and not SIMULATED:
        raise ValueError(f"--device {devices}: each GPU can be named once")
    return names


def connect(communicator: Communicator, name: str) -> Replica:
    """Open the device `name`, compare it with those of the other ranks, and set up NCCL on GPUs.

    Raises the same on all ranks: ValueError for devices that cannot be opened, are unequal (the
    slowest would delay the others) or are used twice; CommunicatorError without NCCL.
    """
    device, kind, problem, host = Device("cpu"), "the host", "", socket.gethostname()
    try:
        device = Device(name)
        if device.is_cuda:
            kind = str(device).partition(", ")[2]
    except Exception as error:
        problem = one_line(error)
    for rank, text in enumerate(communicator.texts(problem)):
        if text:
            raise ValueError(f"rank {rank}: {text}")
    kinds = communicator.texts(kind)
    for rank, other in enumerate(kinds):
        if other != kinds[0]:
            raise ValueError(
                f"replicas need equal devices: rank 0 has {kinds[0]}, rank {rank} has {other}; "
                "leave one out of --device"
            )
    places = communicator.texts(f"{device.name} on {host}")
    for rank, pid in enumerate(communicator.texts(str(os.getpid()))):
        if communicator.rank == 0:
            print(f"rank {rank}: {places[rank]}, process {pid}", flush=True)
    if not device.is_cuda or device.is_simulated:
        return Replica(communicator, device.name)
    place, ranks = Counter(places).most_common(1)[0]
    if ranks > 1:
        raise ValueError(f"two ranks use {place}: --device cuda:0,cuda:1,... names one for each")
    if len(set(communicator.texts(host))) == 1:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    return Replica(NCCL(communicator, device), device.name)


def run_rank(
    work: Work,
    communicator: Communicator,
    prepare: Callable[[Replica], tuple[Any, str]],
    explain: Explain,
    tell: Tell,
) -> int:
    """Run one rank; returns its exit status.

    prepare: gives the options and the name of this rank's device. tell: called with the line to
    print, by one rank unless several fail at different things.
    """
    replica = Replica(communicator, "")
    try:
        try:
            options, name = prepare(replica)
            replica = connect(communicator, name)
            status = work(options, replica)
            replica.communicator.close()
            return status
        except (RankLostError, threading.BrokenBarrierError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            return _fail(error, replica, explain, tell)
    except RankLostError as lost:
        return lost.status
    except threading.BrokenBarrierError:
        return LOST


def _fail(error: BaseException, replica: Replica, explain: Explain, tell: Tell) -> int:
    """Report the failure of a rank; returns its exit status."""
    whose = f"{replica}: " if replica.device else ""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    status, line = explain(error, whose) or (1, f"{whose}{trace}")
    asked = isinstance(error, KeyboardInterrupt)
    if asked or (replica.begun and not isinstance(error, TrainingError)):
        if replica.first or not asked:
            tell(status, line)
        replica.communicator.abort(status)
        return status
    first, failed = 0, replica.size
    if not isinstance(error, TrainingError):  # which all ranks raise
        first, failed = replica.failed(status)
    if replica.rank == first:
        everyone = explain(error, "") if failed == replica.size else None
        tell(status, everyone[1] if everyone else line)
    return status


# --- spawn


def spawn(work: Work, options: Any, devices: list[str], explain: Explain, program: str) -> int:
    """Run `work` in one child process per device; returns the exit status.

    work and explain: functions that a child can import.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(devices))
    shared = barrier, context.RawArray("B", 2 * len(devices) * SLOT)
    pipes = [context.Pipe(duplex=False) for _ in devices]
    ranks: list[Any] = [
        context.Process(target=_child, args=(work, options, rank, *each, *shared, explain))
        for rank, each in enumerate(zip(devices, (pipe for _, pipe in pipes), strict=True))
    ]
    try:
        with _forwarded_to(ranks) as asked:
            _start(ranks)
            failed = _wait(ranks)
    finally:
        for child in ranks:
            if child.is_alive():
                child.kill()
    codes = [child.exitcode for child in ranks]
    told = [reader.recv() for reader, _ in pipes if reader.poll()]
    if told:
        status, line = told[0]
        print(line, file=sys.stderr)
        return status
    if failed is not None and -codes[failed] not in asked:
        how = f"ended with status {codes[failed]}"
        if codes[failed] < 0:
            how = f"was killed by {signal.Signals(-codes[failed]).name}"
        print(
            f"{program}: rank {failed} ({devices[failed]}, process {ranks[failed].pid}) {how}; the "
            "others have stopped; --resume and the run's folder continue from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    return 128 + asked[0] if asked and any(codes) else max(codes)


def _start(ranks: list[Any]) -> None:
    """Start all ranks, with their share of the cores.

    Signals are delivered when all are started, and to each when it has imported the program.
    """
    share = str(max(1, cores() // len(ranks)))
    names = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(names, share))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        for child in ranks:
            child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        for name in names:
            del os.environ[name]


def _wait(ranks: list[Any]) -> int | None:
    """Return when all ranks have ended, or been killed after a failure: the rank that failed."""

    def failed() -> int | None:
        return next((r for r, child in enumerate(ranks) if child.exitcode not in WELL), None)

    while failed() is None and (alive := [child for child in ranks if child.is_alive()]):
        connection.wait([child.sentinel for child in alive])
    first = failed()
    # A rank that fails by itself ends the waiting of the others; one that is killed cannot.
    grace = GRACE if first is not None and ranks[first].exitcode > 0 else 0.0
    deadline = time.monotonic() + grace
    for child in ranks:
        child.join(max(0.0, deadline - time.monotonic()))
        child.kill()
        child.join()
    return first


@contextmanager
def _forwarded_to(ranks: list[Any]) -> Iterator[list[int]]:
    """Send SIGINT and SIGTERM to the ranks instead of this process; yields those received."""
    asked: list[int] = []

    def forward(number: int, _: Any) -> None:
        asked.append(number)
        for child in ranks:
            if child.is_alive():
                os.kill(child.pid, number)

    before = {number: signal.signal(number, forward) for number in STOPS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child(
    work: Work,
    options: Any,
    rank: int,
    device: str,
    pipe: connection.Connection,
    barrier: Any,
    memory: Any,
    explain: Explain,
) -> None:
    os.setsid()  # Ctrl-C is for the parent, which forwards it once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # By default tqdm makes a lock for bars of several processes, which a killed rank would leave.
    tqdm.set_lock(threading.RLock())

    def prepare(_: Replica) -> tuple[Any, str]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        return options, device

    communicator = SharedMemory(rank, barrier, memory)
    tell: Tell = lambda status, line: pipe.send((status, line))  # noqa: E731
    sys.exit(run_rank(work, communicator, prepare, explain, tell))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(LOST)


# --- mpiexec


def under_mpi() -> bool:
    """Has mpiexec (or the like) started this process as one of several?"""
    return _number(SIZES, 1) > 1


def join(work: Work, settle: Callable[[], Any], explain: Explain, program: str) -> int:
    """Run `work` as one of the ranks of mpiexec; returns the exit status.

    settle: gives the options, a Namespace that JSON can hold; called by rank 0, which broadcasts
    them. Their `device` names one for each rank of a machine, or one kind for all (cpu, auto).
    mpiexec ends all ranks when one is killed.
    """
    if any(name not in os.environ for name in THREADS):
        # NumPy and Numba have read the number of threads by now: start this program again.
        share = str(max(1, cores() // _number(LOCAL_SIZES, 1)))
        os.environ.update({name: os.environ.get(name, share) for name in THREADS})
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def tell(_: int, line: str) -> None:
        print(line, file=sys.__stderr__, flush=True)

    try:
        communicator = MPI()
    except CommunicatorError as error:
        if _number(LOCAL_RANKS, 0) == 0:
            tell(2, f"{program}: error: {error}")
        return 2
    if communicator.rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def prepare(replica: Replica) -> tuple[Namespace, str]:
        data = b""
        try:
            if replica.first:
                data = json.dumps(vars(settle())).encode()
        finally:
            data = communicator.broadcast(data)
        if not data:
            replica.begin()  # raises: rank 0 has failed
        options = Namespace(**json.loads(data))
        hosts = communicator.texts(socket.gethostname())
        return options, device_of(options.device, hosts, replica.rank)

    return run_rank(work, communicator, prepare, explain, tell)


def device_of(devices: str, hosts: list[str], rank: int) -> str:
    """The device of one rank, by its place among the ranks of its host.

    hosts: that of each rank. ValueError, on all ranks, if one has more than `devices` names.
    """
    names = device_names(devices)
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


def cores() -> int:
    """Cores that this process may use."""
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1


def _number(names: tuple[str, ...], default: int) -> int:
    """The first of these environment variables that holds a number."""
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdecimal())
    return int(next(found, default))
