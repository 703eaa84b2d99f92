"""Collective operations: by shared memory (ranks are threads), by MPI, and by an emulated NCCL.

The ranks of mpiexec are processes of this file: python test_communicator.py
"""

import sys
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import numpy as np
import pytest
from programs import run_program
from rank_runs import has_mpi, mpiexec
from rank_threads import connected, on_all

from layers import Device, DeviceError
from tinyconv.data.loader import part
from tinyconv.parallel import communicator
from tinyconv.parallel.communicator import MPI, NCCL, RankLostError, add_in_order


@pytest.mark.parametrize("count, size", [(0, 3), (1, 4), (7, 3), (8, 2), (9, 1), (5, 8)])
def test_parts_are_disjoint_complete_and_of_almost_equal_length(count, size):
    parts = [part(count, rank, size) for rank in range(size)]
    assert [i for p in parts for i in range(count)[p]] == list(range(count))
    lengths = [p.stop - p.start for p in parts]
    assert max(lengths) - min(lengths) <= 1


def test_additions_are_from_left_to_right():
    rows = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32).repeat(3, axis=1)
    out = np.zeros(3, np.float32)
    add_in_order(rows, out)
    # 1e8 + 1 rounds to 1e8 in float32; another order would give 2.
    assert (out == 1).all()


def everything(ranks):
    """Each operation, some of them several times; raises AssertionError for a wrong result."""
    own, size = ranks.rank, ranks.size
    for value in (
        lambda rank: (rank, 0.1, 2**63 + rank, f"Rang {rank} ≥ é"),
        lambda rank: bytes(range(256)) * 9 if rank == 1 else None,  # one is longer than the others
        lambda rank: "",
    ):
        assert ranks.exchange(value(own)) == [value(rank) for rank in range(size)]
    for rank, row in enumerate(ranks.exchange(np.arange(2003) * own)):
        np.testing.assert_array_equal(row, np.arange(2003) * rank)
    for dtype in (np.float32, np.float64):
        steps = np.random.default_rng(0).standard_normal((3, size, 2003)).astype(dtype)
        flat = np.zeros(2003, dtype)
        for step in steps:
            flat[...] = step[own]
            for stretch in (slice(700, 2003), slice(2, 700), slice(0, 1)):
                ranks.start(flat[stretch])
            ranks.finish()
            expected = step[0].copy()
            for row in step[1:]:
                expected += row
            expected[1] = step[own, 1]  # in no stretch
            assert flat.tobytes() == expected.tobytes()
    return "done"


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("slot", [2**19, 1000])  # bytes: in one piece and in several
def test_operations_in_shared_memory(monkeypatch, size, slot):
    monkeypatch.setattr(communicator, "SLOT", slot)
    assert on_all(connected(size, slot), everything) == ["done"] * size


@pytest.mark.skipif(not has_mpi, reason="needs mpi4py and an MPI")
def test_operations_by_mpi():
    status, out, err = run_program(__file__, before=mpiexec(3))
    # Three processes write at once: words and line breaks may be out of order.
    assert (status, "".join(out.split())) == (0, 3 * "done"), err


def test_a_bank_is_not_overwritten_before_every_rank_has_read_it():
    """Rank 1 is slow after each barrier; the others are already in the next operation."""
    ranks, pause = connected(3), threading.Event()
    wait = ranks[1]._barrier.wait

    class Slow:
        parties = 3

        def wait(self):
            wait()
            pause.wait(0.02)

    ranks[1]._barrier = Slow()
    assert on_all(ranks, everything) == ["done"] * 3


def test_abort_ends_all_waiting_also_that_of_sums():
    def work(ranks):
        if ranks.rank == 2:
            return ranks.abort(1)
        ranks.start(np.zeros(8))
        return ranks.finish()

    results = on_all(connected(3), work)
    assert [type(result) for result in results[:2]] == [RankLostError] * 2


def test_without_mpi4py_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(DeviceError, match=r"pip install -e '\.\[mpi\]' mpich"):
        MPI()


# --- NCCL, emulated: a CuPy that notes its calls

IDENTITY = tuple(range(-64, 64))


def fake_device(monkeypatch, cupy, nccl):
    for name, module in (("", cupy), (".cuda", cupy.cuda), (".cuda.nccl", nccl)):
        monkeypatch.setitem(sys.modules, f"fake_cupy{name}", module)
    device = Device("cpu")
    device.xp = SimpleNamespace(__name__="fake_cupy", cuda=cupy.cuda)
    return device


def test_nccl_sums_after_the_computing_before_it_and_before_the_computing_after(monkeypatch):
    cupy = MagicMock()
    nccl, sums = cupy.cuda.nccl, cupy.cuda.Stream.return_value
    computing, event = cupy.cuda.get_current_stream.return_value, cupy.cuda.Event.return_value
    nccl.get_unique_id.side_effect = [IDENTITY]  # the first rank's, once
    device = fake_device(monkeypatch, cupy, nccl)
    ranks = on_all(connected(2), lambda ranks: NCCL(device, ranks))
    nccl.NcclCommunicator.assert_has_calls([call(2, IDENTITY, r) for r in (0, 1)], any_order=True)
    assert cupy.cuda.Stream.call_args == call(non_blocking=True)
    cupy.reset_mock()
    flat = SimpleNamespace(data=SimpleNamespace(ptr=1160), size=60, dtype=np.dtype(np.float32))
    ranks[1].start(flat)
    ranks[1].finish()
    assert cupy.mock_calls == [
        call.cuda.get_current_stream(),
        call.cuda.Event().record(computing),
        call.cuda.Stream().wait_event(event),
        call.cuda.nccl.NcclCommunicator().allReduce(
            1160, 1160, 60, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, sums.ptr
        ),
        call.cuda.Event().record(sums),
        call.cuda.get_current_stream(),
        call.cuda.get_current_stream().wait_event(event),
    ]


@pytest.mark.parametrize("nccl", [None, SimpleNamespace(available=False)])
def test_without_nccl_the_package_is_named_on_every_rank(monkeypatch, nccl):
    device = fake_device(monkeypatch, MagicMock(), nccl)
    for error in on_all(connected(2), lambda ranks: NCCL(device, ranks)):
        assert isinstance(error, DeviceError) and "'.[nccl12]'" in str(error)


if __name__ == "__main__":
    print(everything(MPI()), flush=True)
