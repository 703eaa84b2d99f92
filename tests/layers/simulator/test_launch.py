"""Launches: arguments, dimensions, order, arithmetic; errors, and the launch after them."""

import math
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32
from simulated import line_of, refusal

HERE = Path(__file__).name


@cuda.jit
def add_neighbours(x, y):
    i = cuda.grid(1)
    if 0 < i < x.shape[0] - 1:
        y[i] = x[i - 1] + x[i + 1]


def test_elements_are_computed_in_place():
    x = np.arange(10, dtype=np.float32)
    y = np.zeros(10, np.float32)
    add_neighbours[3, 4](x, y)
    np.testing.assert_array_equal(y[1:-1], x[:-2] + x[2:])


@pytest.mark.parametrize("blocks", [3, (3,), (3, 1), (3, 1, 1), np.int64(3), [3]])
def test_dimensions_may_be_numbers_or_tuples(blocks):
    x = np.arange(10, dtype=np.float32)
    y = np.zeros(10, np.float32)
    add_neighbours[blocks, 4](x, y)
    assert y[8] == 16


def test_views_are_written_through_whatever_their_strides():
    x = np.arange(20, dtype=np.float32)[::2]
    whole = np.zeros((10, 3), np.float32)
    y = whole[::-1, 1]
    add_neighbours[1, 10](x, y)
    np.testing.assert_array_equal(y[1:-1], x[:-2] + x[2:])
    assert not whole[:, 0].any() and not whole[:, 2].any()


def test_device_arrays_and_hints():
    x, y = cuda.to_device(np.arange(10, dtype=np.float32)), np.zeros(10, np.float32)
    add_neighbours[1, 10](x, cuda.Out(y))
    assert y[8] == 16
    add_neighbours[1, 10](cuda.In(y), x)
    assert x.copy_to_host()[7] == y[6] + y[8]
    add_neighbours[1, 10](x, cuda.In(y))
    assert y[8] == 16, "what goes in only must not come out"


@cuda.jit
def note_order(seen, at):
    n = cuda.atomic.add(at, 0, 1)
    x, y, z = cuda.grid(3)
    seen[n, 0], seen[n, 1], seen[n, 2] = x, y, z


def test_order_is_x_fastest_block_after_block():
    grid, block = (2, 1, 2), (2, 3, 2)
    at = np.zeros(1, np.int32)
    seen = np.zeros((48, 3), np.int32)
    note_order[grid, block](seen, at)
    expected = [
        [bx * 2 + tx, by * 3 + ty, bz * 2 + tz]
        for bz in range(2) for by in range(1) for bx in range(2)
        for tz in range(2) for ty in range(3) for tx in range(2)
    ]  # fmt: skip
    assert at[0] == 48
    assert seen.tolist() == expected


@cuda.jit
def note_sizes(out):
    x, y = cuda.gridsize(2)
    out[0], out[1], out[2] = cuda.gridsize(1), x, y
    out[3], out[4], out[5] = cuda.gridsize(3)
    out[6], out[7], out[8] = cuda.blockDim.y, cuda.gridDim.z, cuda.warpsize
    out[9] = cuda.laneid


def test_sizes():
    out = np.zeros(10, np.int64)
    note_sizes[(2, 3, 4), (5, 7, 1)](out)
    assert out.tolist() == [10, 10, 21, 10, 21, 4, 7, 4, 32, 34 % 32]


@cuda.jit
def arithmetic(out, hashed, tenth, step, pair):
    out[0] = out[0] / float32(0) + float32(1)
    out[1] = math.exp(float32(0)) * tenth
    out[2] = pair[0][1] + pair[1]
    hashed[0] = hashed[0] * hashed[1] + np.uint32(step)


def test_arithmetic_is_that_of_the_gpu_and_silent():
    out = np.array([1, 0, 0], np.float32)
    hashed = np.array([4000000000, 4000000000], np.uint32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arithmetic[1, 1](out, hashed, np.float32(0.1), 7, (np.arange(3.0), 0.5))
    assert out.tolist() == [np.inf, np.float32(0.1), 1.5]
    assert hashed[0] == (4000000000 * 4000000000 + 7) % 2**32


@cuda.jit
def types_kept(x, same):
    same[0] = (x[0] * x[1] + float32(0.5)).dtype == x.dtype
    same[1] = x.ndim == 2 - 1 and x.size == 2 and len(x) == 2


def test_float32_stays_float32():
    same = np.zeros(2, np.bool_)
    types_kept[1, 1](np.ones(2, np.float32), same)
    assert same.all()


@cuda.jit
def sum_rows(x, out):
    i = cuda.grid(1)
    row = x[i]
    for j in range(row.shape[0]):
        out[i] += row[j]


def test_rows():
    x = np.arange(12.0).reshape(3, 4)
    out = np.zeros(3)
    sum_rows[1, 3](x, out)
    np.testing.assert_array_equal(out, x.sum(axis=1))


def test_a_configured_kernel_keeps_its_dimensions():
    x, y = np.ones(10, np.float32), np.zeros(10, np.float32)
    small, large = add_neighbours[1, 3], add_neighbours[1, 10]
    small(x, y)
    assert y.sum() == 2 * 2
    large(x, y)
    assert y.sum() == 2 * 8


@pytest.mark.parametrize(
    "configuration, text",
    [
        ((0, 32), "blocks must be positive"),
        ((1, (32, 0)), "threads must be positive"),
        ((1, (32, 33)), "1024 at most"),
        ((1, 1.5), "integers"),
        ((1, (1, 1, 1, 1)), "one to three"),
        (1, "blocks, threads"),
    ],
)
def test_impossible_dimensions_are_refused(configuration, text):
    with pytest.raises(ValueError, match=text):
        add_neighbours[configuration]


def test_a_kernel_without_dimensions_is_refused():
    with pytest.raises(ValueError, match="add_neighbours"):
        add_neighbours(np.ones(3), np.ones(3))


# --- errors, and after them


@cuda.jit(device=True, inline="always")
def fails_on_thread_three(i):
    if i == 3:
        raise KeyError("three")  # here
    return cuda.threadIdx.x


@cuda.jit
def calls_device_function(x):
    cuda.syncthreads()
    x[cuda.grid(1)] = fails_on_thread_three(cuda.grid(1))


def test_an_error_in_a_device_function_names_kernel_and_line():
    x = np.full(8, -1)
    text = refusal(calls_device_function, 4, 2, x)
    assert "kernel calls_device_function, thread (1, 0, 0) of block (1, 0, 0)" in text
    assert f"{__file__}:{line_of(fails_on_thread_three, '# here')}: KeyError: 'three'" in text
    assert x.tolist() == [0, 1, 0, -1, -1, -1, -1, -1]


def test_a_device_function_is_plain_python_on_the_host():
    with pytest.raises(KeyError):
        fails_on_thread_three(3)


def test_a_wrong_number_of_arguments():
    assert "add_neighbours() missing" in refusal(add_neighbours, 1, 1, np.zeros(1))


@cuda.jit
def launches_another(x):
    add_neighbours[1, 1](x, x)


@cuda.jit
def wait_for_host(started, go_on):
    started.set()
    go_on.wait(30)


def test_one_kernel_at_a_time():
    assert "one kernel at a time" in refusal(launches_another, 1, 1, np.zeros(3))
    started, go_on = threading.Event(), threading.Event()
    other = threading.Thread(target=wait_for_host[1, 1], args=(started, go_on))
    other.start()
    try:
        assert started.wait(30)
        with pytest.raises(RuntimeError, match="cannot launch add_neighbours while another"):
            add_neighbours[1, 1](np.zeros(3), np.zeros(3))
    finally:
        go_on.set()
        other.join()
