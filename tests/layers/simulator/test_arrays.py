"""The memory that a kernel sees: indices, rows, poison, shared arrays, atomics."""

from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32, int32
from simulated import line_of, refusal

from layers import simulator

HERE = Path(__file__).name


@cuda.jit
def read_at(x, k, out):
    if cuda.grid(1) == 2:
        out[0] = x[k]


@cuda.jit
def write_at(x, k):
    if cuda.grid(1) == 2:
        x[k] = 1


@pytest.mark.parametrize("shape, k", [(5, -1), (5, 5), ((2, 5), (1, -1)), ((2, 5), (2, 0)),
                                      ((2, 3, 5), (0, -1, 0)), ((2, 3, 5), (0, 0, 5)),
                                      (5, np.int64(-1)), ((2, 5), -1)])  # fmt: skip
def test_global_indices(shape, k):
    for text in (
        refusal(read_at, 1, 4, np.zeros(shape), k, np.zeros(1)),
        refusal(write_at, 1, 4, np.zeros(shape), k),
    ):
        inside = str(k).strip("()")
        assert f"x[{inside}] of shape {np.zeros(shape).shape}" in text
        assert "thread (2, 0, 0) of block (0, 0, 0)" in text


@cuda.jit
def one_too_far(y):
    i = cuda.grid(1)
    if i <= y.shape[0]:
        y[i] = i  # once too often


def test_the_last_thread_writes_past_the_end():
    y = np.zeros(11)
    text = refusal(one_too_far, 3, 4, y)
    assert "kernel one_too_far, thread (3, 0, 0) of block (2, 0, 0)" in text
    assert f"{__file__}:{line_of(one_too_far, 'once too often')}: IndexError: y[11]" in text
    np.testing.assert_array_equal(y, np.arange(11))


def test_an_index_error_is_an_index_error():
    with pytest.raises(IndexError) as caught:
        one_too_far[3, 4](np.zeros(11))
    assert isinstance(caught.value, simulator.SimulatorIndexError)
    assert isinstance(caught.value.__cause__, IndexError)


@cuda.jit
def shared_and_local_at(k):
    shared = cuda.shared.array((2, 4), float32)
    local = cuda.local.array(4, float32)
    if k < 0:
        shared[0, k] = 1
    local[k] = 1


@cuda.jit
def row_at(x, k):
    row = x[1]
    row[k] = 1


def test_indices_of_shared_and_local_arrays_and_of_rows():
    text = refusal(shared_and_local_at, 1, 1, -2)
    assert "shared array of line" in text and "[0, -2] of shape (2, 4): negative index" in text
    text = refusal(shared_and_local_at, 1, 1, 4)
    assert "local array of line" in text and "[4] of shape (4,)" in text
    assert "x[1][-1] of shape (3,)" in refusal(row_at, 1, 1, np.zeros((2, 3)), -1)
    assert "TypeError" in refusal(row_at, 1, 1, np.zeros((2, 3)), slice(1))


@cuda.jit
def read_unwritten(floats, ints, unsigned):
    shared = cuda.shared.array(2, float32)
    local = cuda.local.array((1, 2), float32)
    b = cuda.blockIdx.x
    floats[b, 0], floats[b, 1] = shared[1], local[0, 1]
    shared[1] = local[0, 1] = 1
    ints[b] = cuda.shared.array(1, np.int16)[0]
    unsigned[b] = cuda.local.array(1, np.uint8)[0]


def test_fresh_memory_is_poisoned_in_every_block():
    floats, ints, unsigned = np.zeros((3, 2)), np.zeros(3, np.int64), np.zeros(3, np.int64)
    read_unwritten[3, 1](floats, ints, unsigned)
    assert np.isnan(floats).all()
    assert (ints == -(2**15)).all() and (unsigned == 255).all()


@cuda.jit
def two_on_one_line(out):
    a, b = cuda.shared.array(1, float32), cuda.shared.array(1, float32)
    own = cuda.local.array(1, float32)
    i = own[0] = cuda.threadIdx.x
    if i == 0:
        a[0] = 1
        b[0] = 2
    cuda.syncthreads()
    out[i, 0], out[i, 1], out[i, 2] = a[0], b[0], own[0]


def test_two_shared_arrays_on_one_line_are_two():
    out = np.zeros((3, 3))
    two_on_one_line[1, 3](out)
    assert out.tolist() == [[1, 2, 0], [1, 2, 1], [1, 2, 2]]


@cuda.jit
def dynamic_shared(out):
    words = cuda.shared.array(0, int32)
    i = cuda.threadIdx.x
    out[i] = words[i]
    words[i] = i
    cuda.syncthreads()
    out[i] += words[3 - i]


def test_dynamic_shared_memory():
    out = np.zeros(4, np.int64)
    dynamic_shared[1, 4, 0, 16](out)
    assert out.tolist() == [2, 1, 0, -1]
    assert "[0] of shape (0,)" in refusal(dynamic_shared, 1, 4, out)  # none was asked for


@cuda.jit
def count_multiples(counts):
    cuda.atomic.add(counts, cuda.grid(1) % 3, 1)
    cuda.atomic.max(counts, 3, cuda.grid(1))


def test_atomics():
    counts = np.zeros(4, np.int32)
    count_multiples[4, 25](counts)
    assert counts.tolist() == [34, 33, 33, 99]
