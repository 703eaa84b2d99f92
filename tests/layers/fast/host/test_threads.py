"""The host's threads: how work is divided, what is raised, what NumPy is told before it loads."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracles
import pytest

from layers.fast.host import threads

ROOT = Path(__file__).resolve().parents[4]
HOST = SimpleNamespace(is_cuda=False, xp=np)


def use(count, monkeypatch):
    """From now on `count` threads."""
    monkeypatch.setattr(threads, "SPLITS", True)
    monkeypatch.setattr(threads, "get_num_threads", lambda: count)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 64])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_shares_cover_everything_once_in_order_and_evenly(count, workers, monkeypatch):
    use(workers, monkeypatch)
    shares = threads.shares(count)
    assert [n for share in shares for n in range(count)[share]] == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert len(lengths) == min(count, workers) and max(lengths) - min(lengths) <= 1


def test_one_share_where_blas_has_threads_of_its_own(monkeypatch):
    use(4, monkeypatch)
    monkeypatch.setattr(threads, "SPLITS", False)
    assert threads.shares(10) == [slice(0, 10)]


def test_each_part_has_a_thread_and_the_first_is_done_here(monkeypatch):
    meeting, where = threading.Barrier(3), {}

    def work(number, part):
        meeting.wait(timeout=30)  # all three are at work at once
        where[number] = threading.get_ident(), part

    parts = [slice(0, 2), slice(2, 3), slice(3, 9)]
    threads.in_parallel(work, parts)
    assert where[0][0] == threading.get_ident() and len({ident for ident, _ in where.values()}) == 3
    assert [where[number][1] for number in range(3)] == parts


@pytest.mark.parametrize("broken", [0, 1])
def test_what_one_raises_is_raised_when_all_are_done(broken):
    here, done = threading.Event(), []

    def work(number, part):
        if number == broken:
            here.set()
            raise ValueError(f"part {number}")
        here.wait(timeout=30)
        done.append(number)

    with pytest.raises(ValueError, match=f"part {broken}"):
        threads.in_parallel(work, [slice(0, 1), slice(1, 2)])
    assert done == [1 - broken]


def test_numpys_warnings_are_as_the_caller_wants_them_in_every_thread():
    large = np.full(2, 1e308)

    def work(number, part):
        large[part] * 10

    parts = [slice(0, 1), slice(1, 2)]
    with np.errstate(over="ignore"):
        threads.in_parallel(work, parts)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        threads.in_parallel(work, [slice(0, 0), slice(1, 2)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 5, 130), (130, 5, 7), (1, 3, 2), (4, 4, 4)])
def test_a_product_in_stretches_is_the_product(shape, dtype, monkeypatch):
    use(3, monkeypatch)
    monkeypatch.setattr(threads, "WORTH_IT", 0)
    rng = np.random.default_rng(1)
    rows, inner, columns = shape
    a, b = rng.standard_normal((inner, rows)).T, rng.standard_normal((inner, columns))
    whole = np.full((rows, 2 * columns), np.nan, dtype)
    threads.multiply(HOST, (a.astype(dtype), b.astype(dtype), whole[:, ::2]))
    oracles.assert_close(whole[:, ::2], a @ b, dtype)
    assert np.isnan(whole[:, 1::2]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("workers", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", [(3, 12, 7), (2, 300, 5), (1, 4, 2), (5, 21, 129)])
def test_a_fully_connected_product_is_turned_and_gives_the_same(shape, workers, dtype, monkeypatch):
    use(workers, monkeypatch)
    monkeypatch.setattr(threads, "WORTH_IT", 0)
    rng = np.random.default_rng(1)
    rows, inner, columns = shape
    x, w = rng.standard_normal((rows, inner)), rng.standard_normal((columns, inner))
    whole = np.full((rows, 2 * columns), np.nan, dtype)
    for _ in range(2):  # the second time in memory that the first has used
        threads.multiply(HOST, (x.astype(dtype), w.astype(dtype).T, whole[:, ::2]))
        oracles.assert_close(whole[:, ::2], x @ w.T, dtype, terms=inner)
        assert np.isnan(whole[:, 1::2]).all()


def test_only_long_sums_of_few_rows_with_transposed_weights_are_turned(monkeypatch):
    use(1, monkeypatch)
    monkeypatch.setattr(threads, "WORTH_IT", 0)
    turned = []

    def own_array(shape, dtype):
        turned.append(shape)
        return np.empty(shape, dtype)

    monkeypatch.setattr(threads, "own_array", own_array)

    def multiply(rows, inner, columns, transposed=True):
        w = np.ones((columns, inner)).T if transposed else np.ones((inner, columns))
        out = np.zeros((rows, columns))
        threads.multiply(HOST, (np.ones((rows, inner)), w, out))
        np.testing.assert_array_equal(out, inner)

    multiply(3, 12, 7)
    assert turned == [(7, 3)]
    multiply(3, 11, 7)  # short sums
    multiply(7, 12, 3)  # more rows than columns
    multiply(3, 12, 7, transposed=False)
    assert turned == [(7, 3)]


def test_a_threads_own_array_is_used_again_and_is_nobody_elses():
    def in_a_thread_of_its_own(ask):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask()))
        thread.start()
        thread.join()
        return answers[0]

    def ask():
        large = threads.own_array((3, 4), np.float64)
        small = threads.own_array((2, 5), np.float32)
        larger = threads.own_array((1000, 4), np.float64)
        assert (large.shape, small.shape, larger.shape) == ((3, 4), (2, 5), (1000, 4))
        assert (large.dtype, small.dtype) == (np.float64, np.float32)
        assert np.shares_memory(large, small) and not np.shares_memory(large, larger)
        assert np.shares_memory(threads.own_array((5,), np.float64), larger)
        assert larger.ctypes.data % 64 == 0
        return larger

    assert not np.shares_memory(in_a_thread_of_its_own(ask), in_a_thread_of_its_own(ask))


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_several_products_at_once_each_cut_along_its_own_longer_side(workers, monkeypatch):
    use(workers, monkeypatch)
    monkeypatch.setattr(threads, "WORTH_IT", 0)
    rng = np.random.default_rng(1)
    dy, x, w = (rng.standard_normal(shape) for shape in [(3, 5), (3, 40), (5, 40)])
    one = rng.standard_normal((1, 2))
    triples = [
        (dy.T, x, np.full((5, 40), np.nan)),
        (dy, w, np.full((3, 40), np.nan)),
        (x, w.T, np.full((3, 5), np.nan)),
        (one, one.T, np.full((1, 1), np.nan)),  # fewer stretches than threads
    ]
    threads.multiply(HOST, *triples)
    for a, b, out in triples:
        oracles.assert_close(out, a @ b, np.float64)


def test_the_caller_says_how_many_threads_multiply(monkeypatch):
    here = threading.get_ident()
    use(3, monkeypatch)
    # Numba counts for each thread by itself; those of the pool have never been told.
    monkeypatch.setattr(
        threads, "get_num_threads", lambda: 3 if threading.get_ident() == here else 8
    )
    monkeypatch.setattr(threads, "WORTH_IT", 0)
    a, b, out = np.ones((4, 30)), np.ones((30, 300)), np.full((4, 300), np.nan)
    threads.multiply(HOST, (a, b, out))
    np.testing.assert_array_equal(out, 30)


def test_few_elements_are_left_to_one_thread_and_only_these(monkeypatch):
    use(3, monkeypatch)
    for side, wanted in ((threads.WORTH_WAKING - 1, 1), (threads.WORTH_WAKING, 3)):
        x, found = np.zeros((side, 1), bool), []
        threads.in_rows(lambda part, number, found=found: found.append((len(part), number)), [x], 7)
        assert len(found) == wanted
        assert sum(length for length, _ in found) == side and {n for _, n in found} == {7}


def test_small_products_and_those_of_a_gpu_are_made_in_one(monkeypatch):
    use(3, monkeypatch)
    whole, stretches = [], []
    xp = SimpleNamespace(matmul=lambda a, b, out: whole.append(out.shape))
    monkeypatch.setattr(threads, "multiply_stretch", lambda *call: stretches.append(call[3]))
    large, small = ((np.zeros((side, side)),) * 3 for side in (200, 9))
    threads.multiply(SimpleNamespace(is_cuda=True, xp=xp), large, small)
    threads.multiply(SimpleNamespace(is_cuda=False, xp=xp), small, small)
    assert whole == [(200, 200), (9, 9), (9, 9), (9, 9)] and not stretches
    threads.multiply(SimpleNamespace(is_cuda=False, xp=xp), large)
    assert sorted(stretches, key=str) == [slice(0, 66), slice(133, 200), slice(66, 133)]
    assert len(whole) == 4


# --- in a process of its own


def printed(program, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in threads.BLAS}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


ASK = (
    "import layers.fast.host.threads as t, os; print(t.SPLITS, t.threads(), os.environ[t.BLAS[0]])"
)


def test_blas_gets_one_thread_if_it_is_told_in_time():
    assert printed(f"import layers; {ASK}") == ["True", "2", "1"]
    assert printed(f"import numpy; {ASK}") == ["False", "1", "1"]


def test_a_number_of_threads_that_somebody_chose_is_kept():
    assert printed(ASK, OPENBLAS_NUM_THREADS="3") == ["False", "1", "3"]


AFTER_A_FORK = """
import os
from layers.fast.host.threads import in_parallel

done = []
parts = [slice(0, 1), slice(1, 2)]
in_parallel(lambda number, part: None, parts)
child = os.fork()
if child == 0:
    in_parallel(lambda number, part: done.append(number), parts)
    os._exit(len(done))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_makes_threads_of_its_own():
    assert printed(AFTER_A_FORK) == ["2"]
