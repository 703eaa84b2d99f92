"""Being a rank, however it was started: open the device, find the others, work, and fail as one.

Up to the first step ranks fail together: most mistakes all of them find, and one says it, in one
line. After that a rank that fails says so and ends, and what has started the ranks ends the others.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from layers import Device
from layers.device import SIMULATED
from tinyconv.parallel.communicator import (
    LOST,
    Communicator,
    RankHungError,
    RankLostError,
    one_line,
)
from tinyconv.parallel.replicas import Replica
from tinyconv.parallel.replicas_nccl import NCCL
from tinyconv.parallel.replicas_watch import WATCHER
from tinyconv.train import TrainingError

THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
"""Read by NumPy's and Numba's libraries when they are loaded."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal to get when the parent ends."""

Work = Callable[[Any, Replica], int]
"""What a rank does: work(options, replica) -> exit status."""

Explain = Callable[[BaseException, str], tuple[int, str] | None]
"""explain(error, whose) -> (status, line); None for an error that nobody foresaw. `whose` names the
rank, if it is not all of them."""


def device_names(devices: str) -> list[str]:
    """The devices of a list such as "cuda:0,cuda:1"; ValueError for one that cannot be."""
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


def check_equal(descriptions: list[str]) -> None:
    """ValueError if the ranks' devices are not the same: the slowest would hold up the others."""
    for rank, description in enumerate(descriptions):
        if description != descriptions[0]:
            raise ValueError(
                f"replicas need equal devices: rank 0 has {descriptions[0]}, rank {rank} has "
                f"{description}; leave one out of --device"
            )


def connect(others: Communicator, name: str) -> Replica:
    """This rank's place in the run; `name` is its device's, which all ranks open now.

    Raises the same on all ranks: ValueError or CommunicatorError for devices that are not there, or
    are not equal, or without NCCL.
    """
    device, what, problem = Device("cpu"), "the host", ""
    try:
        device = Device(name)
        if device.is_cuda:
            what = str(device).partition(", ")[2]
    except Exception as error:
        problem = one_line(error)
    for rank, text in enumerate(others.texts(problem)):
        if text:
            raise ValueError(f"rank {rank}: {text}")
    check_equal(others.texts(what))
    host = socket.gethostname()
    under = f" under {os.environ[WATCHER]}" if WATCHER in os.environ else ""
    places = others.texts(f"{device.name} on {host}, process {os.getpid()}{under}")
    if others.rank == 0:
        print("\n".join(f"rank {rank}: {place}" for rank, place in enumerate(places)), flush=True)
    if not device.is_cuda or device.is_simulated:
        return Replica(others, device.name)
    if twice := _twice([place.partition(", process")[0] for place in places]):
        raise ValueError(f"two ranks use {twice}: --device cuda:0,cuda:1,... names one for each")
    if len(set(others.texts(host))) == 1:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    return Replica(NCCL(others, device), device.name)


def _twice(names: list[str]) -> str:
    return next((name for place, name in enumerate(names) if name in names[:place]), "")


def take_part(
    work: Work,
    options: Any,
    others: Communicator,
    name: str,
    explain: Explain,
    tell: Callable[[str], None],
) -> int:
    """Be one of the ranks; returns the exit status. tell(line) is called by one rank at most.

    Up to the first step ranks fail together: most mistakes all of them find, and one says it.
    """
    replica = Replica(others, name)
    try:
        replica = connect(others, name)
        return work(options, replica)
    except RankLostError as error:
        return error.status
    except RankHungError as error:
        return give_up(error, others, explain, tell)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        status, line = explain(error, f"{replica}: ") or (1, f"{replica}: {_trace(error)}")
        if isinstance(error, TrainingError):  # raised by all ranks alike
            if replica.first:
                tell((explain(error, "") or (1, line))[1])
            return status
        if replica.begun or isinstance(error, KeyboardInterrupt):
            tell(line)
            others.abort(status)
            return status
        try:
            first, failed = replica.failed(status)
        except (RankLostError, RankHungError):
            first, failed = replica.rank, 1
        if replica.rank == first:
            everyone = explain(error, "") if failed == replica.size else None
            tell(everyone[1] if everyone else line)
        return status


def give_up(
    error: BaseException, others: Communicator, explain: Explain, tell: Callable[[str], None]
) -> int:
    """Say what is wrong, and end all ranks, whatever they do; returns the exit status."""
    status, line = explain(error, "") or (1, _trace(error))
    tell(line)
    others.abort(status)
    return status


def end_with(parent: int) -> None:
    """From now on this process ends when `parent`, the process that has started it, does."""
    if sys.platform == "linux":
        # The kernel sees to it: a process that is stopped, or hangs in a driver, could not.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(LOST)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(LOST)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()


def cores() -> int:
    """Cores that this process may use."""
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1
