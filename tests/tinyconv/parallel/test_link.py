"""Copies between devices: right on the host, and in order however late two GPUs do them."""

import numpy as np
import pytest
from fake_gpus import CUDARuntimeError, Gpus

from layers import Device
from tinyconv.parallel.link import Link


def test_within_one_memory_a_copy_is_an_assignment(device):
    link = Link(device, device)
    source, into = device.array(np.arange(6.0)), device.zeros((6,), np.float64)
    link.send(source, into)
    link.take()
    assert link.way == "memory"
    np.testing.assert_array_equal(device.to_host(into), np.arange(6.0))


def test_within_a_device_everything_is_made_there_and_the_one_before_comes_back(monkeypatch):
    gpus = Gpus(monkeypatch, count=3)
    third, second, first = (Device(f"cuda:{i}") for i in (2, 1, 0))
    assert [each.index for each in (first, second, third, Device("cpu"))] == [0, 1, 2, 0]
    with second.current():
        assert second.empty((2,), np.float64).gpu == 1
        with third.current():
            assert third.empty((2,), np.float64).gpu == 2
        assert gpus.now == 1
    with Device("cpu").current():
        assert gpus.now == 0


def test_a_host_and_a_gpu_are_not_linked(cuda_device):
    with pytest.raises(ValueError, match="cannot link cpu and cuda:0: use two GPUs, or the host"):
        Link(Device("cpu"), cuda_device)


def pass_on(gpus, rounds=6):
    """Send numbers from GPU 0 to GPU 1 and use them there, again and again; what was used."""
    second, first = Device("cuda:1"), Device("cuda:0")
    link = Link(first, second)
    sources = {n: gpus._empty((n, 3), np.float64) for n in (4, 2)}
    used = []
    with second.current():
        intos = {n: gpus._empty((n, 3), np.float64) for n in (4, 2)}
        results = [gpus._empty((n, 3), np.float64) for _ in range(rounds) for n in (4, 2)]
    for k in range(rounds):
        n = 4 if k % 3 else 2
        with first.current():
            sources[n][...] = k
        gpus.run_some()
        link.send(sources[n], intos[n])
        gpus.run_some()
        link.take()
        with second.current():
            result = results[2 * k + (n == 2)]
            result[...] = intos[n]
        gpus.run_some()
        used.append((k, result))
    gpus.run_all()
    return link, used


@pytest.mark.parametrize("peers", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_copies_and_computing_are_in_order_however_late_the_gpus_do_them(peers, seed, monkeypatch):
    gpus = Gpus(monkeypatch, peers=peers, seed=seed)
    link, used = pass_on(gpus)
    assert link.way == ("peer" if peers else "pinned")
    assert set(gpus.calls) == ({"peer"} if peers else {"to host", "from host"})
    for k, result in used:
        np.testing.assert_array_equal(result.values, np.full(result.shape, k))


@pytest.mark.parametrize(
    "peers, left_out",
    [
        *((True, name) for name in ("_computed", "_free", "_arrived")),
        *((False, name) for name in ("_computed", "_free", "_arrived", "_left")),
    ],
)
def test_the_stand_in_shows_each_missing_event(peers, left_out, monkeypatch):
    """Without any one of the events some draw of the order computes with wrong numbers."""
    make = Link.__init__

    def careless(self, source, target):
        make(self, source, target)
        getattr(self, left_out).record = lambda stream: None

    monkeypatch.setattr(Link, "__init__", careless)
    wrong = 0
    for seed in range(30):
        _, used = pass_on(Gpus(monkeypatch, peers=peers, seed=seed))
        wrong += any((result.values != k).any() for k, result in used)
    assert wrong


def test_peer_access_that_is_there_already_is_no_error_and_another_error_is(monkeypatch):
    gpus = Gpus(monkeypatch)
    first, second = Device("cuda:0"), Device("cuda:1")
    assert Link(first, second).way == Link(first, second).way == "peer"
    assert gpus.enabled == {(1, 0)}

    def fail(peer):
        raise CUDARuntimeError(2)

    gpus.xp.cuda.runtime.deviceEnablePeerAccess = fail
    with pytest.raises(CUDARuntimeError):
        Link(first, second)


def test_one_gpu_twice_needs_no_streams(monkeypatch):
    gpus = Gpus(monkeypatch)
    before = len(gpus.streams)
    assert Link(Device("cuda:1"), Device("cuda:1")).way == "memory"
    assert len(gpus.streams) == before
