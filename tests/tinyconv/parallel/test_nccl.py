"""The order of NCCL's sums on the stream, with an emulated NCCL."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
from rank_threads import connected, on_all

from layers import Device
from tinyconv.parallel.communicator import CommunicatorError
from tinyconv.parallel.nccl import NCCL


class FakeCuda:
    """CuPy's streams and events, which log their calls."""

    def __init__(self, log):
        self.log = log
        self.computing = self.Stream_("computing")

    def Stream_(self, name):
        log = self.log
        return types.SimpleNamespace(
            name=name,
            ptr=name,
            wait_event=lambda event: log.append(f"{name} waits for {event.name}"),
            synchronize=lambda: log.append(f"{name} is done"),
        )

    def Stream(self, non_blocking):
        assert non_blocking
        return self.Stream_("sums")

    def Event(self, disable_timing):
        event = types.SimpleNamespace(name="nothing")
        event.record = lambda stream: setattr(event, "name", stream.name)
        return event

    def get_current_stream(self):
        return self.computing


class FakeNccl(types.ModuleType):
    available, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = True, "float32", "float64", "sum"

    def __init__(self, log):
        super().__init__("fake_cupy.cuda.nccl")
        self.log = log
        self.__spec__ = importlib.machinery.ModuleSpec(self.__name__, None)

    def get_unique_id(self):
        return tuple(range(-64, 64))

    def NcclCommunicator(self, size, identity, rank):
        assert identity == tuple(range(-64, 64)) and (size, rank) in ((2, 0), (2, 1))
        return types.SimpleNamespace(
            allReduce=lambda *arguments: self.log.append(("sum", *arguments)),
            destroy=lambda: self.log.append("destroyed"),
        )


class FakeArray:
    """The part of a CuPy array that is needed."""

    def __init__(self, start, size):
        self.dtype, self.size = np.dtype(np.float32), size
        self.data = types.SimpleNamespace(ptr=1000 + 4 * start)

    def __getitem__(self, stretch):
        return FakeArray(stretch.start, stretch.stop - stretch.start)


def fake_device(nccl, monkeypatch):
    monkeypatch.setitem(sys.modules, "fake_cupy", types.ModuleType("fake_cupy"))
    monkeypatch.setitem(sys.modules, "fake_cupy.cuda", types.ModuleType("fake_cupy.cuda"))
    monkeypatch.setitem(sys.modules, "fake_cupy.cuda.nccl", nccl)
    device = Device("cpu")
    cuda = FakeCuda(getattr(nccl, "log", []))
    device.xp = types.SimpleNamespace(__name__="fake_cupy", cuda=cuda)
    return device


def test_nccl_sums_after_the_computing_before_it_and_before_the_computing_after(monkeypatch):
    log = []
    device = fake_device(FakeNccl(log), monkeypatch)
    ranks = on_all(connected(2), lambda hosts: NCCL(hosts, device))
    assert log == []
    ranks[1].start(FakeArray(0, 100)[40:100])
    ranks[1].finish()
    ranks[1].close()
    assert log == [
        "sums waits for computing",
        ("sum", 1160, 1160, 60, "float32", "sum", "sums"),
        "computing waits for sums",
        "sums is done",
        "destroyed",
    ]


@pytest.mark.parametrize("nccl", [None, types.SimpleNamespace(available=False)])
def test_without_nccl_the_package_is_named_on_every_rank(monkeypatch, nccl):
    device = fake_device(nccl, monkeypatch)
    for error in on_all(connected(2), lambda hosts: NCCL(hosts, device)):
        assert isinstance(error, CommunicatorError) and "'.[nccl12]'" in str(error)
