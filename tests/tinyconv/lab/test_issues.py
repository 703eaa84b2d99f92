"""Issues of launches that fail: built from the attributes of the simulator's errors."""

import os

import numpy as np
import planted
import pytest
from planted import N
from simulated import line_of

from layers.simulator import SimulatorError
from tinyconv.lab.checks import check_kernel
from tinyconv.lab.issues import Issue, Line, Worker, failure

FILE = planted.__file__
NEAR = os.path.relpath(FILE)


def failed(kernel, grid, *args):
    """The issue of a launch that fails, and the report's, which must be the same."""
    with pytest.raises(SimulatorError) as caught:
        kernel[grid, N](*args)
    issue = failure(caught.value)
    report = check_kernel(kernel, grid, N, args, orders=0)
    assert report.issues[0] == issue
    return issue


def floats(n=N):
    return np.ones(n, np.float32)


def line_at(kernel, mark):
    number = line_of(kernel, mark)
    return Line.of(FILE, number), number


def test_an_index():
    line, number = line_at(planted.unguarded_edge, "# no guard")
    worker = Worker((1, 0, 0), (100 - N, 0, 0))
    message = (
        "IndexError: x[100] of shape (100,): index 100 is out of bounds for axis 0 with size 100\n"
        "  thread (36, 0, 0) of block (1, 0, 0)\n"
        f"    at {NEAR}:{number}: y[i] = x[i]  # no guard"
    )
    issue = failed(planted.unguarded_edge, 2, floats(100), floats(100))
    assert issue == Issue("index", "x", (100,), (line,), (worker,), message)


def test_an_index_into_a_row():
    line, number = line_at(planted.row_too_short, "# a row of 5")
    worker = Worker((0, 0, 0), (5, 0, 0))
    message = (
        "IndexError: x[5][5] of shape (5,): index 5 is out of bounds for axis 0 with size 5\n"
        "  thread (5, 0, 0) of block (0, 0, 0)\n"
        f"    at {NEAR}:{number}: y[i] = row[i]  # a row of 5"
    )
    x = np.ones((N, 5), np.float32)
    issue = failed(planted.row_too_short, 1, x, floats())
    assert issue == Issue("index", "x[5]", (5,), (line,), (worker,), message)


def test_another_exception():
    line, number = line_at(planted.divides_by_zero, "# int / 0")
    worker = Worker((0, 0, 0), (0, 0, 0))
    message = (
        "ZeroDivisionError: division by zero\n"
        "  thread (0, 0, 0) of block (0, 0, 0)\n"
        f"    at {NEAR}:{number}: y[i] = x[i] / (i // N)  # int / 0"
    )
    issue = failed(planted.divides_by_zero, 1, np.ones(N, object), floats())
    assert issue == Issue("error", "", None, (line,), (worker,), message)


def test_a_barrier():
    line, number = line_at(planted.barrier_in_a_branch, "# not for all")
    worker = Worker((0, 0, 0), (0, 0, 0))
    message = (
        "kernel barrier_in_a_branch, block (0, 0, 0): no thread can continue, as barriers wait "
        "for threads that never come\n"
        f"  wait at syncthreads() in {FILE}:{number}: 40 threads: "
        "(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), ...\n"
        "  have returned: 24 threads: (40, 0, 0), (41, 0, 0), (42, 0, 0), (43, 0, 0), ..."
    )
    issue = failed(planted.barrier_in_a_branch, 1, floats(), floats())
    assert issue == Issue("barrier", "", None, (line,), (worker,), message, count=40)


def test_a_remark_stands_at_the_end():
    with pytest.raises(SimulatorError) as caught:
        planted.negative_index[1, N](floats(), floats())
    plain, remarked = failure(caught.value), failure(caught.value, "\n  Only once.")
    assert remarked.message == f"{plain.message}\n  Only once."
    assert (plain.array, plain.index) == ("x", (-1,))
