"""The checks but races: planted faults are reported with array, index, line and thread."""

import numpy as np
import planted
import pytest
import textbook
from numba import cuda, float32
from planted import N
from simulated import line_of

from layers import LocalResponseNorm, simulator
from tinyconv.lab.cases import CASES
from tinyconv.lab.checks import check_kernel, check_trace
from tinyconv.lab.issues import KINDS


def floats(n=N):
    return np.arange(1, n + 1, dtype=np.float32)


def zeros(n=N):
    return np.zeros(n, np.float32)


def only(report, kind):
    """The one issue of `kind`."""
    (issue,) = [issue for issue in report.issues if issue.kind == kind]
    assert str(issue) in str(report).replace("\n  ", "\n") and kind in KINDS
    return issue


def lines(issue):
    return [line.line for line in issue.lines]


def check(kernel, *args, grid=1, outputs=("y",), **options):
    return check_kernel(kernel, grid, N, args, outputs, **options)


# --- reads of what no thread wrote


def test_a_window_one_too_wide_reads_what_nothing_wrote():
    kernel = planted.window_too_wide
    report = check(kernel, floats(), zeros())
    issue = only(report, "unwritten")
    assert len(report.issues) == 1 and not report.ok
    assert issue.array == f"shared array of line {line_of(kernel, 'shared.array')}"
    assert (issue.index, issue.count) == ((N,), 1)
    assert lines(issue) == [line_of(kernel, "# one beyond")]
    assert issue.threads[0].thread == (N - 1, 0, 0)
    assert "nothing ever writes it" in str(issue) and "y[i] = tile[i] +" in str(issue)


def test_a_local_array_that_is_filled_in_part():
    kernel = planted.local_unwritten
    issue = only(check(kernel, floats(), zeros()), "unwritten")
    assert issue.array == f"local array of line {line_of(kernel, 'local.array')}"
    assert (issue.index, issue.count) == ((2,), N)  # each thread has its own
    assert lines(issue) == [line_of(kernel, "# part[2]")]


def test_an_output_that_is_added_to():
    kernel, y = planted.output_unwritten, zeros()
    issue = only(check(kernel, floats(), y), "unwritten")
    assert (issue.array, issue.index, issue.count) == ("y", (0,), N)
    assert lines(issue) == [line_of(kernel, "# adds")]
    assert "only later" in str(issue)
    assert np.isnan(y).all()  # and so it shows
    assert check(kernel, floats(), zeros(), outputs=()).ok


# --- what the simulator refuses


def test_an_unguarded_edge_is_a_stray_index():
    kernel = planted.unguarded_edge
    report = check(kernel, floats(100), zeros(100), grid=2)
    issue = only(report, "index")
    assert len(report.issues) == 1  # what it had no time to write is no fault of its own
    assert (issue.array, issue.index) == ("x", (100,))
    assert lines(issue) == [line_of(kernel, "# no guard")]
    assert issue.threads == (((1, 0, 0), (100 - N, 0, 0)),)
    assert issue.lines[0].source.startswith("y[i] = x[i]") and report.orders == 0


def test_a_negative_index():
    issue = only(check(planted.negative_index, floats(), zeros()), "index")
    assert (issue.array, issue.index) == ("x", (-1,))
    assert lines(issue) == [line_of(planted.negative_index, "# x[-1]")]
    assert "negative index" in str(issue)


def test_a_stray_index_into_a_row():
    x = np.ones((N, 5), np.float32)
    issue = only(check(planted.row_too_short, x, zeros()), "index")
    assert (issue.array, issue.index) == ("x[5]", (5,))
    assert lines(issue) == [line_of(planted.row_too_short, "# a row of 5")]


def test_a_barrier_in_a_branch():
    kernel = planted.barrier_in_a_branch
    issue = only(check(kernel, floats(), zeros()), "barrier")
    assert lines(issue) == [line_of(kernel, "# not for all")]
    assert issue.count == 40 and issue.threads[0].thread == (0, 0, 0)
    assert "have returned: 24 threads" in str(issue)


def test_another_exception():
    x = np.ones(N, object)  # Python's own numbers: NumPy's would give inf
    issue = only(check(planted.divides_by_zero, x, zeros(), outputs=()), "error")
    assert lines(issue) == [line_of(planted.divides_by_zero, "# int / 0")]
    assert "ZeroDivisionError" in str(issue)


# --- coverage


def test_an_element_without_a_writer():
    kernel, y = planted.missing_writer, zeros(100)
    report = check(kernel, floats(100), y, grid=2)
    issue = only(report, "missing")
    assert (issue.array, issue.index, issue.count) == ("y", (99,), 1)
    assert lines(issue) == [line_of(kernel, "# nearly all")] and not issue.threads
    assert np.isnan(y[99]) and (y[:99] == floats(99)).all()
    said = check(kernel, floats(100), zeros(100), grid=2, partial={"y": "the last is padding"})
    assert said.ok and "the last is padding" in str(said)


def test_an_output_that_is_never_written():
    issue = only(check(planted.writes_nothing, floats(), zeros()), "missing")
    assert issue.count == N and "no line that ran writes to it" in str(issue)


def test_gaps_of_a_view_have_its_own_indices():
    whole = np.zeros((4, 10), np.float32)
    y = whole[::2, 1:7].T.reshape(-1)  # a copy
    assert check(planted.missing_writer, floats(12), y).issues[0].index == (11,)
    y = np.zeros((50, 3), np.float32)[:, 1]
    issue = only(check(planted.missing_writer, floats(50), y), "missing")
    assert (issue.index, issue.count) == ((49,), 1)


def test_an_element_written_twice():
    kernel = planted.twice_in_turn
    report = check(kernel, floats(), zeros())
    issue = only(report, "rewritten")
    assert len(report.issues) == 1  # ordered by the barrier, and the same value: no race
    assert (issue.array, issue.count) == ("y", N)
    assert lines(issue) == [line_of(kernel, "# once"), line_of(kernel, "# and again")]
    assert [thread.thread for thread in issue.threads] == [(N - 1, 0, 0), (0, 0, 0)]
    said = check(kernel, floats(), zeros(), rewritten={"y": "to show how"})
    assert said.ok and "declared: y: to show how" in str(said)


def test_two_writers_are_a_race_and_write_twice():
    report = check(planted.two_blocks_one_element, floats(3 * N), zeros(2 * N - 1), grid=2)
    assert {issue.kind for issue in report.issues} == {"race", "rewritten"}
    assert only(report, "rewritten").index == (N - 1,)


# --- order


def test_a_result_that_depends_on_the_order():
    kernel = planted.append_atomically
    x, found, count = floats(), zeros(), np.zeros(1, int)
    report = check(kernel, x, found, count, outputs=("found",))
    issue = only(report, "order")
    assert len(report.issues) == 1 and report.orders == 1
    assert (issue.array, len(issue.index)) == ("found", 1)
    assert lines(issue) == [line_of(kernel, "# next")]
    assert f"{found[issue.index]} with threads" in str(issue) and "seed 0" in str(issue)
    # The caller has the result of the usual order, once.
    assert found.tolist() == x.tolist() and count[0] == N
    assert check(kernel, x, found, count * 0, outputs=("found",), orders=0).ok


def test_a_sum_whose_last_bits_depend_on_the_order():
    x = np.random.default_rng(0).standard_normal(4 * N).astype(np.float32)
    report = check(planted.sum_in_any_order, x, zeros(1), grid=4, outputs=())
    issue = only(report, "order")
    assert (issue.array, issue.index) == ("total", (0,))
    assert lines(issue) == [line_of(planted.sum_in_any_order, "# adds")]
    ones = np.ones(4 * N, np.float32)
    assert check(planted.sum_in_any_order, ones, zeros(1), grid=4, outputs=()).ok


def test_a_fault_of_other_orders_only():
    kernel = planted.fails_in_other_orders
    report = check(kernel, np.zeros(1), zeros(), orders=20)
    issue = only(report, "index")
    assert issue.index[0] > N and lines(issue) == [line_of(kernel, "# too far")]
    assert "Only with its threads in the order of seed" in str(issue)


# --- the call


def test_the_arrays_of_the_caller():
    x, y = floats(), np.full(N, 7, np.float32)
    x.flags.writeable = False
    assert check(textbook.copy_kernel, x, y).ok
    assert y.tolist() == x.tolist()


def test_an_output_that_overlaps_is_left_as_it_is():
    x = floats() ** 2
    report = check(planted.stencil, x, x)
    assert not np.isnan(x).any()
    assert {issue.kind for issue in report.issues} == {"race", "missing", "order"}


def test_integers_are_poisoned_too():
    y = np.zeros(100, np.int32)
    check(planted.missing_writer, floats(100), y, grid=2)
    assert y[99] == np.iinfo(np.int32).min


def test_names_must_be_those_of_arrays():
    with pytest.raises(ValueError, match="copy_kernel: no array parameter 'z', only x, y"):
        check(textbook.copy_kernel, floats(), zeros(), outputs=("z",))
    with pytest.raises(ValueError, match="no array parameter 'stride'"):
        kernel, grid, block, args, outputs = textbook.strided_copy()
        check_kernel(kernel, grid, block, args, outputs, partial={"stride": "no array"})


@cuda.jit
def of_pairs(pairs, y):
    tile = cuda.shared.array(0, float32)
    i = cuda.threadIdx.x
    tile[i] = pairs[0][i]
    cuda.syncthreads()
    y[i] = tile[i ^ 1] * pairs[1][i]


@cuda.jit
def of_nothing(n):
    cuda.syncthreads()


def test_tuples_device_arrays_and_dynamic_shared_memory():
    y = cuda.to_device(zeros())
    pairs = floats(), floats()
    report = check(of_pairs, pairs, y, shared_bytes=4 * N)
    assert report.ok and y.copy_to_host()[:2].tolist() == [2, 2]
    said = check(of_pairs, pairs, y, outputs=("pairs[1]",), shared_bytes=4 * N)
    assert {issue.array for issue in said.issues} == {"pairs[1]"}
    issue = only(check(of_pairs, pairs, y, shared_bytes=4 * N - 4), "index")
    assert issue.array.startswith("shared array") and issue.index == (N - 1,)


def test_a_kernel_of_no_arrays_and_an_array_of_no_dimensions():
    assert check(of_nothing, 3, outputs=()).ok
    issue = only(check(of_nothing, np.zeros(()), outputs=("n",)), "missing")
    assert issue.index == () and "n[()]" in str(issue)
    assert check(of_nothing, np.zeros((0, 3)), outputs=("n",)).ok


def test_a_trace_knows_its_arrays_only():
    with simulator.record() as traces:
        textbook.copy_kernel[1, N](floats(), zeros())
    with pytest.raises(ValueError, match="copy_kernel: no array 'z', only x, y"):
        check_trace(traces[0], ("z",))


def test_a_trace_of_a_layer_can_be_checked():
    layer = LocalResponseNorm(3, alpha=0.5).to("cuda:0")
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 5)).astype(np.float32)
    with simulator.record() as traces:
        layer.backward(layer.forward(x))
    assert [check_trace(trace, CASES[trace.kernel].outputs) for trace in traces] == [[], []]
