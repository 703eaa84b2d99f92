"""Ranks that cannot start, or fail: all end, and the reason is reported once.

The ranks are threads of one process.
"""

import types

import pytest
from rank_threads import connected, explain, on_all

from layers import Device, DeviceError
from tinyconv.parallel import rank as rank_module
from tinyconv.parallel.communicator import LOST
from tinyconv.parallel.rank import connect, device_names, device_of, run_rank
from tinyconv.train import TrainingError


class FakeGPU:
    """A device of some name; the text after the comma is compared."""

    is_cuda, is_simulated = True, False
    xp = types.SimpleNamespace(__name__="no_cupy", cuda=None)

    def __init__(self, name):
        self.name, _, self.kind = name.partition(" ")
        if self.kind == "missing":
            raise DeviceError(f"{self.name}: there is\nno such GPU")

    def use(self):
        return self

    def __str__(self):
        return f"{self.name}, {self.kind}"


def all_run(names, work=None):
    """The exit statuses of ranks with devices of these names, and all lines that they told."""
    ranks, told = connected(len(names)), []

    def one(others):
        return run_rank(
            work,
            others,
            lambda _: (None, names[others.rank]),
            explain,
            lambda status, line: told.append(line),
        )

    return on_all(ranks, one), told


GPUS = {
    "missing": (["cuda:0 A", "cuda:1 missing"], "rank 1: cuda:1: there is no such GPU"),
    "unequal": (
        ["cuda:0 A", "cuda:1 A", "cuda:2 B"],
        "replicas need equal devices: rank 0 has A, rank 2 has B; leave one out of --device",
    ),
    "used twice": (
        ["cuda:0 A", "cuda:0 A"],
        "two ranks use cuda:0 on here: --device cuda:0,cuda:1,... names one for each",
    ),
    "without NCCL": (
        ["cuda:0 A", "cuda:1 A"],
        "cuda:0: NCCL is missing on rank 0 (No module named 'no_cupy'): pip install -e '.[nccl12]' "
        "or '.[nccl13]', whichever CUDA CuPy is for",
    ),
}


@pytest.mark.parametrize("names, message", GPUS.values(), ids=GPUS)
def test_gpus_that_cannot_be_used_are_reported_once(monkeypatch, names, message):
    monkeypatch.setattr(
        rank_module, "Device", lambda name: FakeGPU(name) if "cuda" in name else Device(name)
    )
    monkeypatch.setattr(rank_module.socket, "gethostname", lambda: "here")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    assert all_run(names) == ([2] * len(names), [f"error: {message}"])


def test_a_device_that_does_not_exist_is_the_same_error_on_all_ranks():
    for error in on_all(
        connected(2), lambda others: connect(others, ["cpu", "gpu:7"][others.rank])
    ):
        assert isinstance(error, ValueError) and str(error).startswith("rank 1: device 'gpu:7'")


def fails(errors, begun=True):
    """Work in which some ranks raise their errors."""

    def work(_, replica):
        if begun:
            replica.begin()
        if replica.rank in errors:
            raise errors[replica.rank]
        replica.begin()

    return work


GONE, NAN, BY_ZERO = ValueError("gone"), TrainingError("nan"), ZeroDivisionError("by zero")
STOP = KeyboardInterrupt()


@pytest.mark.parametrize(
    "errors, begun, statuses, line",
    [
        ({1: GONE}, False, [2, 2, 2], "error: rank 1 (cpu): gone"),
        ({0: GONE, 1: GONE, 2: GONE}, False, [2, 2, 2], "error: gone"),
        ({2: GONE}, True, [LOST, LOST, 2], "error: rank 2 (cpu): gone"),
        ({0: NAN, 1: NAN, 2: NAN}, True, [1, 1, 1], "nan"),
        ({0: STOP}, False, [130, LOST, LOST], "interrupted"),
        ({0: STOP, 1: GONE, 2: GONE}, False, [130, LOST, LOST], "interrupted"),
        ({2: BY_ZERO}, True, [LOST, LOST, 1], "rank 2 (cpu): Traceback ... by zero"),
    ],
)
def test_a_failure_ends_all_ranks_and_is_reported_once(errors, begun, statuses, line):
    found, (told,) = all_run(["cpu"] * 3, fails(errors, begun))
    begin, _, end = line.partition(" ... ")
    assert found == statuses and told.startswith(begin) and told.endswith(end or begin)


def test_a_gpu_can_be_named_once_unless_it_is_simulated(monkeypatch):
    monkeypatch.setattr(rank_module, "SIMULATED", False)
    assert device_names("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert device_names("cpu,cpu,cpu") == ["cpu"] * 3
    with pytest.raises(ValueError, match="each GPU can be named once"):
        device_names("cuda:1,cuda:0,cuda:1")


def test_a_rank_has_the_device_of_its_place_among_those_of_its_host():
    hosts = ["a", "b", "a", "b"]
    found = [device_of("cuda:2,cuda:5", hosts, rank) for rank in range(4)]
    assert found == ["cuda:2", "cuda:2", "cuda:5", "cuda:5"]
    assert [device_of("cpu", hosts, rank) for rank in range(4)] == ["cpu"] * 4
    # Every rank finds it, also on the host where there is one for each.
    for rank in range(4):
        with pytest.raises(ValueError, match=r"cpu,cpu names 2 devices, and b has 3 ranks: name"):
            device_of("cpu,cpu", ["a", "b", "b", "b"], rank)
