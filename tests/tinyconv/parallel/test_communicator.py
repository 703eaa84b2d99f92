"""What ranks tell each other; here they are threads of one process."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
from rank_threads import connected, on_all

from layers import Device
from tinyconv.parallel import replicas_memory
from tinyconv.parallel.communicator import CommunicatorError, RankLostError, add_in_order, part
from tinyconv.parallel.replicas_mpi import MPI
from tinyconv.parallel.replicas_nccl import NCCL


@pytest.mark.parametrize("count, size", [(0, 3), (1, 4), (7, 3), (8, 2), (9, 1), (5, 8)])
def test_parts_are_disjoint_complete_and_of_almost_equal_length(count, size):
    parts = [part(count, rank, size) for rank in range(size)]
    assert [i for p in parts for i in range(count)[p]] == list(range(count))
    lengths = [p.stop - p.start for p in parts]
    assert max(lengths) - min(lengths) <= 1


def test_additions_are_from_left_to_right_and_the_result_may_be_a_row():
    rows = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32).repeat(40_000, axis=1)
    add_in_order(rows, out=rows[2])
    # 1e8 + 1 rounds to 1e8 in float32; another order would give 2.
    assert (rows[2] == 1).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_stretches_are_summed_in_the_order_of_ranks_again_and_again(size):
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((3, size, 1003)).astype(np.float32)

    def work(ranks):
        flat = np.zeros(1003, np.float32)
        ranks.attach(flat)
        results = []
        for step in steps:
            flat[...] = step[ranks.rank]
            for stretch in (slice(700, 1003), slice(2, 700), slice(0, 1)):
                ranks.start(stretch)
            ranks.finish()
            results.append(flat.copy())
        ranks.close()
        return np.array(results)

    results = on_all(connected(size), work)
    expected = steps[:, 0].copy()
    for rank in range(1, size):
        expected += steps[:, rank]
    expected[:, 1] = 0
    for rank, result in enumerate(results):
        own = result.copy()
        own[:, 1] = 0  # in no stretch: as it was
        assert own.tobytes() == expected.tobytes()
        assert (result[:, 1] == steps[:, rank, 1]).all()


def test_values_texts_and_bytes_reach_everyone():
    def work(ranks):
        rows = ranks.exchange(np.array([ranks.rank, 0.1], np.float64))
        single = ranks.exchange(np.array(2**63 + ranks.rank, np.uint64))
        texts = ranks.texts("" if ranks.rank == 1 else f"Rang {ranks.rank} ≥ é")
        return rows.tolist(), single.tolist(), texts, ranks.broadcast(bytes(ranks.rank) * 9, 2)

    for rows, single, texts, data in on_all(connected(3), work):
        assert rows == [[0, 0.1], [1, 0.1], [2, 0.1]]
        assert single == [2**63, 2**63 + 1, 2**63 + 2]
        assert texts == ["Rang 0 ≥ é", "", "Rang 2 ≥ é"] and data == bytes(18)


def test_whoever_waits_for_a_rank_that_has_ended_is_told_at_once():
    def work(ranks):
        if ranks.rank == 2:
            return ranks.close()
        flat = np.zeros(8)
        return ranks.exchange(flat)

    results = on_all(connected(3), work)
    assert all(isinstance(error, RankLostError) and error.rank == 2 for error in results[:2])


def test_too_little_shared_memory_is_one_line_on_every_rank(monkeypatch):
    disk = types.SimpleNamespace(free=2**20)
    monkeypatch.setattr(replicas_memory.shutil, "disk_usage", lambda _: disk)
    for error in on_all(connected(2), lambda ranks: ranks.attach(np.zeros(2**17))):
        assert isinstance(error, CommunicatorError) and "--shm-size" in str(error)
        assert "1 MiB free" in str(error) and "need 2" in str(error)


def test_without_mpi4py_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(CommunicatorError, match=r"pip install '\.\[mpi\]'"):
        MPI()


# --- NCCL, on a stand-in


class FakeCuda:
    """CuPy's streams and events, which write down what is asked of them."""

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
    ranks = on_all(connected(2), lambda others: NCCL(others, device))
    assert [each.rank for each in ranks] == [0, 1] and log == []
    ranks[1].attach(FakeArray(0, 100))
    ranks[1].start(slice(40, 100))
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
    for error in on_all(connected(2), lambda others: NCCL(others, device)):
        assert isinstance(error, CommunicatorError) and "'.[nccl12]'" in str(error)
