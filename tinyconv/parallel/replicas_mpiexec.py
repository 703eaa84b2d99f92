"""Ranks that mpiexec has started: each finds the others by MPI, and its device by its place.

    mpiexec -n 8 python train.py --parallel replicas --device cuda:0,cuda:1,cuda:2,cuda:3

on two machines of four GPUs. Each process of mpiexec becomes a `replicas_watch.py`, whose child is
the rank. When a rank is killed, its watcher names it, and mpiexec ends the others.
"""

import json
import os
import socket
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from typing import Any

from layers import Device
from tinyconv.parallel import replicas_watch
from tinyconv.parallel.communicator import CommunicatorError, RankHungError, RankLostError
from tinyconv.parallel.replicas import Replica
from tinyconv.parallel.replicas_mpi import MPI
from tinyconv.parallel.replicas_rank import (
    THREADS,
    Explain,
    Work,
    cores,
    device_names,
    end_with,
    give_up,
    take_part,
)
from tinyconv.parallel.replicas_watch import RANKS, WATCHER, from_environment, have_joined

SIZES = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"
"""Where Open MPI and MPICH, or what is built on them, tell a process how many ranks there are."""

LOCAL_SIZES = "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"


def under_mpi() -> bool:
    """Has mpiexec (or the like) started this process as one of several?"""
    return from_environment(SIZES, 1) > 1


def join(work: Work, settle: Callable[[], Any], explain: Explain, program: str) -> int:
    """Run `work` as one of the ranks of mpiexec; returns the exit status.

    settle: gives the options, a Namespace that JSON can hold; called by rank 0, and the others get
    a copy. Its `device` names one for each rank of a machine, or one kind for all (cpu, auto); its
    `rank_timeout` is the seconds for which a rank may keep the others waiting.
    """
    if WATCHER not in os.environ:
        _become_watcher(program)
    end_with(int(os.environ[WATCHER]))

    def tell(line: str) -> None:
        print(line, file=sys.__stderr__, flush=True)

    try:
        others = MPI()
    except CommunicatorError as error:
        if from_environment(RANKS, 0) == 0:
            tell(f"{program}: error: {error}")
        return 2
    have_joined()
    if others.rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    replica = Replica(others)
    try:
        options, data = None, b""
        try:
            if replica.first:
                options = settle()
                data = json.dumps(vars(options)).encode()
        finally:
            data = others.broadcast(data)
        if not data:
            replica.begin()
        options = options or Namespace(**json.loads(data))
        others.timeout = options.rank_timeout
        hosts = others.texts(socket.gethostname())
        name = device_of(options.device, hosts, others.rank)
    except RankLostError as error:
        return error.status
    except (RankHungError, KeyboardInterrupt) as error:
        return give_up(error, others, explain, tell)
    except Exception as error:
        found = explain(error, "")
        if found is None:
            return give_up(error, others, explain, tell)
        first, _ = replica.failed(found[0])
        if replica.rank == first:
            tell(found[1])
        return found[0]
    return take_part(work, options, others, name, explain, tell)


def device_of(devices: str, hosts: list[str], rank: int) -> str:
    """The device of one rank, by its place among those of its host.

    hosts: that of each rank. ValueError, on all ranks alike, if one has more than `devices` names.
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


def _become_watcher(program: str) -> None:
    """Start this program again, before MPI has begun, as the child of a watcher.

    With fewer threads: NumPy and Numba read their number when they are loaded, and have been loaded
    by now.
    """
    share = str(max(1, cores() // from_environment(LOCAL_SIZES, 1)))
    for name in THREADS:
        os.environ.setdefault(name, share)
    sys.stdout.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    watcher = [sys.executable, "-I", replicas_watch.__file__, program]
    os.execv(sys.executable, [*watcher, *command])
