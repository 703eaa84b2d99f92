"""Collective operations: by shared memory, where ranks are threads, and by MPI under mpiexec.

The ranks of mpiexec are processes of this file: python test_communicator.py
"""

import subprocess
import sys
import threading

import numpy as np
import pytest
from rank_runs import environment, has_mpi, mpiexec
from rank_threads import connected, on_all

from tinyconv.data.loader import part
from tinyconv.parallel import communicator
from tinyconv.parallel.communicator import MPI, CommunicatorError, add_in_order


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
    rows = ranks.exchange(np.array([own, 0.1], np.float64))
    assert rows.tolist() == [[rank, 0.1] for rank in range(size)]
    single = ranks.exchange(np.array(2**63 + own, np.uint64))
    assert single.tolist() == [2**63 + rank for rank in range(size)]
    long = np.arange(201, dtype=np.int32) * (own + 1)
    assert all(
        (row == long // (own + 1) * n).all() for n, row in enumerate(ranks.exchange(long), 1)
    )
    texts = ranks.texts("" if own == 1 else f"Rang {own} ≥ é")
    assert texts == ["" if rank == 1 else f"Rang {rank} ≥ é" for rank in range(size)]
    data = [bytes(range(256)) * 9 + b"abc", b"", b"2"]
    for root in range(min(size, 3)):
        assert ranks.broadcast(data[root] if own == root else b"", root) == data[root]
    for dtype in (np.float32, np.float64):
        steps = np.random.default_rng(0).standard_normal((3, size, 2003)).astype(dtype)
        flat = np.zeros(2003, dtype)
        ranks.attach(flat)
        for step in steps:
            flat[...] = step[own]
            for stretch in (slice(700, 2003), slice(2, 700), slice(0, 1)):
                ranks.start(stretch)
            ranks.finish()
            expected = step[0].copy()
            for row in step[1:]:
                expected += row
            expected[1] = step[own, 1]  # in no stretch
            assert flat.tobytes() == expected.tobytes()
    ranks.close()
    return "done"


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("slot", [2**19, 1000])  # bytes: in one piece and in several
def test_operations_in_shared_memory(monkeypatch, size, slot):
    monkeypatch.setattr(communicator, "SLOT", slot)
    barrier, memory = threading.Barrier(size, timeout=30), bytearray(2 * size * slot)
    ranks = [communicator.SharedMemory(rank, barrier, memory) for rank in range(size)]
    assert on_all(ranks, everything) == ["done"] * size


@pytest.mark.skipif(not has_mpi, reason="needs mpi4py and an MPI")
def test_operations_by_mpi():
    done = subprocess.run(
        [*mpiexec(3), sys.executable, __file__],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Three processes write at once: words and line breaks may be out of order.
    assert (done.returncode, "".join(done.stdout.split())) == (0, 3 * "done"), done.stderr


def test_a_bank_is_not_overwritten_before_every_rank_has_read_it(monkeypatch):
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
        ranks.attach(np.zeros(8))
        if ranks.rank == 2:
            return ranks.abort(1)
        ranks.start(slice(0, 8))
        return ranks.finish()

    results = on_all(connected(3), work)
    assert [type(result) for result in results[:2]] == [threading.BrokenBarrierError] * 2


def test_without_mpi4py_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(CommunicatorError, match=r"pip install -e '\.\[mpi\]' mpich"):
        MPI()


if __name__ == "__main__":
    print(everything(MPI()), flush=True)
