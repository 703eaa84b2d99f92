"""Ranks that cannot start, or fail at work: all end, and one of them says why in one line.

Here they are threads of one process.
"""

import types

import pytest
from rank_threads import connected, on_all

from layers import DeviceError
from tinyconv.parallel import replicas_rank
from tinyconv.parallel.communicator import RankHungError, RankLostError
from tinyconv.parallel.replicas_rank import LOST, connect, take_part
from tinyconv.train import TrainingError


class FakeGPU:
    """A device of some name; the text after the comma is what is compared."""

    is_cuda, is_simulated = True, False
    xp = types.SimpleNamespace(__name__="no_cupy")

    def __init__(self, name):
        self.name, _, self.kind = name.partition(" ")
        if self.kind == "missing":
            raise DeviceError(f"{self.name}: there is\nno such GPU")

    def __str__(self):
        return f"{self.name}, {self.kind}"


def explain(error, whose=""):
    """As the example does it."""
    if isinstance(error, (DeviceError, ValueError)):
        return 2, f"error: {whose}{error}"
    return (1, f"{whose}{error}") if isinstance(error, TrainingError) else None


def all_take_part(names, work=None):
    """The exit statuses of ranks with devices of these names, and all that they said."""
    ranks, said = connected(len(names)), []

    def one(others):
        status = take_part(work, None, others, names[others.rank], explain, said.append)
        others.close()
        return status

    return on_all(ranks, one), said


GPUS = {
    "one is not there": (["cuda:0 A", "cuda:1 missing"], "rank 1: cuda:1: there is no such GPU"),
    "unequal": (
        ["cuda:0 A", "cuda:1 A", "cuda:2 B"],
        "replicas need equal devices: rank 0 has A, rank 2 has B; leave one out of --device",
    ),
    "twice the same": (
        ["cuda:0 A", "cuda:0 A"],
        "two ranks use cuda:0 on here: --device cuda:0,cuda:1,... names one for each",
    ),
    "without NCCL": (
        ["cuda:0 A", "cuda:1 A"],
        "cuda:0: NCCL is not there on rank 0 (No module named 'no_cupy'): pip install '.[nccl12]' "
        "or '.[nccl13]', whichever CUDA CuPy is for",
    ),
}


@pytest.mark.parametrize("names, message", GPUS.values(), ids=GPUS)
def test_what_is_wrong_with_the_gpus_is_said_once(monkeypatch, names, message):
    monkeypatch.setattr(replicas_rank, "Device", FakeGPU)
    monkeypatch.setattr(replicas_rank.socket, "gethostname", lambda: "here")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    statuses, said = all_take_part(names)
    assert statuses == [2] * len(names) and said == [f"error: {message}"]


def test_one_that_fails_before_the_first_step_says_so_and_all_end():
    def work(_, replica):
        if replica.rank == 1:
            raise ValueError("my photos are gone")
        replica.begin()

    assert all_take_part(["cpu"] * 3, work) == (
        [2] * 3,
        ["error: rank 1 (cpu): my photos are gone"],
    )


def test_one_that_fails_at_work_says_so_and_the_others_end_without_a_word():
    def work(_, replica):
        replica.begin()
        if replica.rank == 2:
            raise ZeroDivisionError("an unforeseen one")
        replica.begin()

    statuses, (said,) = all_take_part(["cpu"] * 3, work)
    assert statuses == [LOST, LOST, 1] and said.startswith("rank 2 (cpu): Traceback")
    assert said.endswith("ZeroDivisionError: an unforeseen one")


def test_what_all_find_at_work_the_first_says():
    def work(_, replica):
        replica.begin()
        raise TrainingError("the loss became nan")

    assert all_take_part(["cpu"] * 3, work) == ([1] * 3, ["the loss became nan"])


def test_whoever_finds_that_a_rank_hangs_says_so_and_ends_them():
    class Others:
        rank, size, ended = 0, 3, None

        def texts(self, text):
            return [text] * 3

        def abort(self, status):
            self.ended = status

    def work(_, replica):
        raise RankHungError(["rank 1", "rank 2"], 60.0)

    others, said = Others(), []
    assert take_part(work, None, others, "cpu", explain, said.append) == 1 == others.ended
    assert said == [
        "rank 1 and rank 2 have kept the others waiting for 60 seconds, and all have been ended; "
        "--resume and the run's folder go on from the last checkpoint, --rank-timeout gives more "
        "time"
    ]


@pytest.mark.parametrize("error", [RankLostError(1), RankHungError(["rank 1"], 9.0)])
def test_one_that_fails_and_does_not_reach_the_others_says_so_all_the_same(error):
    class Others:
        rank, size = 0, 2

        def texts(self, text):
            return [text] * 2

        def exchange(self, values):
            raise error

    def work(_, replica):
        raise ValueError("no room")

    said = []
    assert take_part(work, None, Others(), "cpu", explain, said.append) == 2
    assert said == ["error: rank 0 (cpu): no room"]


def test_a_device_that_is_not_there_is_the_same_error_everywhere():
    names = ["cpu", "gpu:7"]
    for error in on_all(connected(2), lambda others: connect(others, names[others.rank])):
        assert isinstance(error, ValueError) and str(error).startswith("rank 1: device 'gpu:7'")


def test_a_gpu_can_be_named_once_unless_it_is_simulated(monkeypatch):
    monkeypatch.setattr(replicas_rank, "SIMULATED", False)
    assert replicas_rank.device_names("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert replicas_rank.device_names("cpu,cpu,cpu") == ["cpu"] * 3
    with pytest.raises(ValueError, match="each GPU can be named once"):
        replicas_rank.device_names("cuda:1,cuda:0,cuda:1")


def test_unequal_devices_are_named():
    replicas_rank.check_equal(["A100", "A100"])
    with pytest.raises(ValueError, match="rank 0 has A100, rank 2 has H100; leave one out"):
        replicas_rank.check_equal(["A100", "A100", "H100"])
