"""Ranks that mpiexec has started: each finds the others by MPI, and its device by its place.

    mpiexec -n 8 python train.py --parallel replicas --device cuda:0,cuda:1,cuda:2,cuda:3

on two machines of four GPUs. When a rank dies, mpiexec ends the others and names the process; the
list that rank 0 prints at the start says which rank that was.
"""

import json
import os
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from layers import Device
from tinyconv.parallel.communicator import CommunicatorError, RankLostError
from tinyconv.parallel.replicas import Replica
from tinyconv.parallel.replicas_mpi import MPI
from tinyconv.parallel.replicas_rank import (
    THREADS,
    Explain,
    Work,
    cores,
    device_names,
    take_part,
)

SIZES = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"
"""Where Open MPI and MPICH, or what is built on them, tell a process how many ranks there are."""

RANKS = "OMPI_COMM_WORLD_RANK", "PMI_RANK"
LOCAL_SIZES = "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"


def under_mpi() -> bool:
    """Has mpiexec (or the like) started this process as one of several?"""
    return _from_environment(SIZES, 1) > 1


def join(work: Work, settle: Callable[[], Any], explain: Explain, program: str) -> int:
    """Run `work` as one of the ranks of mpiexec; returns the exit status.

    settle: gives the options, a Namespace that JSON can hold; called by rank 0, and the others get
    a copy. Its `device` names one for each rank of a machine, or one kind for all (cpu, auto).
    """
    _take_share_ofcores()

    def tell(line: str) -> None:
        print(line, file=sys.__stderr__, flush=True)

    try:
        others = MPI()
    except CommunicatorError as error:
        if _from_environment(RANKS, 0) == 0:
            tell(f"{program}: error: {error}")
        return 2
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
        hosts = others.texts(socket.gethostname())
        name = _device_of(options.device, hosts[: others.rank].count(hosts[others.rank]))
    except RankLostError as error:
        return error.status
    except Exception as error:
        found = explain(error, "")
        if found is None:
            raise
        first, _ = replica.failed(found[0])
        if replica.rank == first:
            tell(found[1])
        return found[0]
    return take_part(work, options, others, name, explain, tell)


def _device_of(devices: str, place: int) -> str:
    """The device of the rank that is number `place` of its machine."""
    names = device_names(devices)
    if names == ["auto"]:
        return f"cuda:{place}" if Device("auto").is_cuda else "cpu"
    if len(names) > 1 and place >= len(names):
        raise ValueError(f"--device {devices} names {len(names)} devices for more ranks a machine")
    return names[place if len(names) > 1 else 0]


def _take_share_ofcores() -> None:
    """Start this program again with fewer threads, before MPI has begun.

    NumPy and Numba read the number when they are loaded, and they have been loaded by now.
    """
    if all(name in os.environ for name in THREADS):
        return
    share = str(max(1, cores() // _from_environment(LOCAL_SIZES, 1)))
    for name in THREADS:
        os.environ.setdefault(name, share)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _from_environment(names: tuple[str, ...], default: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdecimal())
    return int(next(found, default))
