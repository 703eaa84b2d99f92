"""What a SimulatorError carries: kernel, block, thread, file, line, cause; index; waits."""

import numpy as np
import pytest
from numba import cuda, float32
from simulated import line_of

from layers.simulator import SimulatorDeadlockError, SimulatorError, SimulatorIndexError


def error_of(kernel, blocks, threads, *args):
    with pytest.raises(SimulatorError) as caught:
        kernel[blocks, threads](*args)
    return caught.value


def where(error):
    return error.kernel, error.block, error.thread, error.file, error.line


@cuda.jit
def too_far(x):
    x[cuda.blockIdx.y, cuda.grid(1)] = 1  # too far


def test_an_index_error():
    error = error_of(too_far, (3, 2), 4, np.zeros((2, 10)))
    assert type(error) is SimulatorIndexError and isinstance(error, IndexError)
    line = line_of(too_far, "# too far")
    assert where(error) == ("too_far", (2, 0, 0), (2, 0, 0), __file__, line)
    assert (error.array, error.index) == ("x", (0, 10))
    assert type(error.index[1]) is int
    assert type(error.cause).__mro__[1] is IndexError and error.cause is error.__cause__
    assert error.what.startswith("IndexError: x[0, 10] of shape (2, 10): ")
    place = f"kernel too_far, thread (2, 0, 0) of block (2, 0, 0), {__file__}:{line}"
    assert str(error) == f"{place}: {error.what}"


@cuda.jit
def index_of_many_kinds(x, k):
    tile = cuda.shared.array((2, 4), float32)
    if k == 0:
        tile[1, -1] = 0
    if k == 1:
        x[2][np.int64(7)] = 0
    if k == 2:
        x[1.5] = 0
    if k == 3:
        (1, 2)[k]
    if k >= 4:
        x[0].memory(8 - k, 3)  # as an emulated intrinsic does


@pytest.mark.parametrize(
    ("k", "array", "index"),
    [
        (0, "shared array of line", (1, -1)),
        (1, "x[2]", (7,)),
        (2, "x", None),
        (3, "", None),
        # Of three elements, the first that is outside of five.
        (4, "x[0]", (5,)),
        (10, "x[0]", (-2,)),
    ],
)
def test_the_array_and_the_index(k, array, index):
    error = error_of(index_of_many_kinds, 1, 1, np.zeros((3, 5)), k)
    assert type(error) is SimulatorIndexError
    assert error.line == line_of(index_of_many_kinds, f"if k == {k}" if k < 4 else "if k >= 4") + 1
    assert error.index == index
    assert error.array.startswith(array) if array else not error.array


@cuda.jit(device=True)
def reciprocal(v):
    return 1 / v  # fails


@cuda.jit
def divides(x):
    cuda.syncthreads()
    x[0] = reciprocal(1 - cuda.threadIdx.x)


def test_another_exception():
    error = error_of(divides, 1, (3, 2), np.zeros(1))
    assert type(error) is SimulatorError
    line = line_of(reciprocal, "# fails")
    assert where(error) == ("divides", (0, 0, 0), (1, 0, 0), __file__, line)
    assert type(error.cause) is ZeroDivisionError and error.cause is error.__cause__
    assert error.what == f"ZeroDivisionError: {error.cause}"


@cuda.jit
def three_ways(x):
    i = cuda.threadIdx.x
    if i < 2:
        return
    if i < 4:
        cuda.syncwarp(0x0000001C)  # half
    cuda.syncthreads()  # whole


def test_a_deadlock():
    error = error_of(three_ways, (1, 2), 7, np.zeros(1))
    assert type(error) is SimulatorDeadlockError
    half, whole = (line_of(three_ways, f"# {word}") for word in ("half", "whole"))
    first, second = error.waits
    assert (first.call, first.file, first.line) == ("syncwarp(0x0000001c)", __file__, half)
    assert first.threads == ((2, 0, 0), (3, 0, 0))
    assert (second.call, second.file, second.line) == ("syncthreads()", __file__, whole)
    assert second.threads == ((4, 0, 0), (5, 0, 0), (6, 0, 0))
    assert error.returned == ((0, 0, 0), (1, 0, 0))
    assert where(error) == ("three_ways", (0, 0, 0), (2, 0, 0), __file__, half)
    assert error.cause is None
    assert str(error).splitlines() == [
        "kernel three_ways, block (0, 0, 0): no thread can continue, as barriers wait for threads "
        "that never come",
        f"  wait at syncwarp(0x0000001c) in {__file__}:{half}: 2 threads: (2, 0, 0), (3, 0, 0)",
        f"  wait at syncthreads() in {__file__}:{whole}: "
        "3 threads: (4, 0, 0), (5, 0, 0), (6, 0, 0)",
        "  have returned: 2 threads: (0, 0, 0), (1, 0, 0)",
    ]


@cuda.jit
def nobody_returns(x):
    if cuda.threadIdx.x == 0:
        cuda.syncthreads()
    else:
        cuda.syncthreads_or(1)


def test_a_deadlock_of_waits_only():
    error = error_of(nobody_returns, 1, 40, np.zeros(1))
    assert [len(wait.threads) for wait in error.waits] == [1, 39] and error.returned == ()
    assert "have returned" not in str(error) and "..." in str(error)
