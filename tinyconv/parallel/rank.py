"""One rank of a data-parallel run, however it was started: its device, its work, its failure.

Before the first step ranks fail together: they all-gather their statuses, so that an error which
all raise is reported once. In training, a rank that fails reports its error and aborts the others.
"""

import os
import socket
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from layers import Device
from layers.device import SIMULATED
from tinyconv.parallel.communicator import Communicator, RankLostError, one_line
from tinyconv.parallel.nccl import NCCL
from tinyconv.parallel.replicas import Replica
from tinyconv.train import TrainingError

Work = Callable[[Any, Replica], int]
"""What a rank does: work(options, replica) -> exit status."""

Explain = Callable[[BaseException, str], tuple[int, str] | None]
"""explain(error, whose) -> (status, line); None for an unforeseen error. `whose` names the rank,
if not all of them raise it."""

Tell = Callable[[int, str], None]
"""tell(status, line) prints the line, or passes it to the parent process."""


def run_rank(
    work: Work,
    communicator: Communicator,
    prepare: Callable[[Replica], tuple[Any, str]],
    explain: Explain,
    tell: Tell,
) -> int:
    """Run one rank; returns its exit status.

    prepare: gives the options and the name of this rank's device. tell: only ranks that fail for
    different reasons both call it.
    """
    replica = Replica(communicator)
    try:
        try:
            options, name = prepare(replica)
            replica = connect(communicator, name)
            status = work(options, replica)
            if isinstance(replica.sums, NCCL):
                replica.sums.close()
            return status
        except RankLostError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            return _fail(error, replica, explain, tell)
    except RankLostError as lost:
        return lost.status


def _fail(error: BaseException, replica: Replica, explain: Explain, tell: Tell) -> int:
    """Report the failure of a rank; returns its exit status."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()

    def explained(whose: str) -> tuple[int, str]:
        return explain(error, whose) or (1, f"{whose}{trace}")

    status, line = explained(f"{replica}: " if replica.device else "")
    interrupted, by_all = isinstance(error, KeyboardInterrupt), isinstance(error, TrainingError)
    if interrupted or (replica.begun and not by_all):
        if replica.first or not interrupted:
            tell(status, line)
        replica.communicator.abort(status)
        return status
    failed = [*range(replica.size)] if by_all else replica.failed(status)
    if replica.rank == failed[0]:
        tell(*explained("") if len(failed) == replica.size else (status, line))
    return status


def connect(communicator: Communicator, name: str) -> Replica:
    """Open the device `name`, compare it with those of the other ranks, and set up NCCL on GPUs.

    Raises the same on all ranks: ValueError for devices that cannot be opened, are unequal (the
    slowest would delay the others) or are used twice; DeviceError without NCCL.
    """
    device, kind, problem, host = Device("cpu"), "the host", "", socket.gethostname()
    try:
        device = Device(name).use()
        if device.is_cuda:
            kind = str(device).partition(", ")[2]
    except Exception as error:
        problem = one_line(error)
    own = problem, kind, f"{device.name} on {host}", os.getpid()
    problems, kinds, places, pids = zip(*communicator.exchange(own), strict=True)
    for rank, text in enumerate(problems):
        if text:
            raise ValueError(f"rank {rank}: {text}")
    for rank, other in enumerate(kinds):
        if other != kinds[0]:
            raise ValueError(
                f"replicas need equal devices: rank 0 has {kinds[0]}, rank {rank} has {other}; "
                "leave one out of --device"
            )
        if communicator.rank == 0:
            print(f"rank {rank}: {places[rank]}, process {pids[rank]}", flush=True)
    if not device.is_cuda or device.is_simulated:
        return Replica(communicator, device.name)
    place, ranks = Counter(places).most_common(1)[0]
    if ranks > 1:
        raise ValueError(f"two ranks use {place}: --device cuda:0,cuda:1,... names one for each")
    if all(each.endswith(f" on {host}") for each in places):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    return Replica(communicator, device.name, NCCL(communicator, device))


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
