"""Asynchronous copies: late, in groups, poisoned until waited for; and what is refused."""

import numpy as np
import pytest
from numba import cuda, float32, uint32
from simulated import line_of, refusal

from layers import simulator
from layers.fast.conv.ptx import (
    copy_scalar,
    copy_vec4,
    cp_async,
    cp_async_commit_group,
    cp_async_wait_group,
    store_scalar,
    store_vec8,
)
from tinyconv.lab.checks import check_trace
from tinyconv.lab.steps import Launch

POISON = 0xFFFFFFFF


@cuda.jit
def three_groups(x, y, newest):
    # Two copies, one, and none: what has arrived when `newest` groups may still be on their way.
    tile = cuda.shared.array(12, uint32)
    cp_async(tile, 0, x, 0, True)
    cp_async(tile, 4, x, 4, True)
    cp_async_commit_group()
    cp_async(tile, 8, x, 8, True)
    cp_async_commit_group()
    cp_async_commit_group()
    cp_async_wait_group(newest)
    for i in range(12):
        y[i] = tile[i]
    cp_async_wait_group(0)


@pytest.mark.parametrize(("newest", "arrived"), [(3, 0), (2, 8), (1, 12), (0, 12), (9, 0)])
def test_groups_arrive_in_order_and_late(newest, arrived):
    x, y = np.arange(12, dtype=np.float32), np.zeros(12, np.uint32)
    three_groups[1, 1](x, y, newest)
    np.testing.assert_array_equal(y[:arrived], x.view(np.uint32)[:arrived])
    assert (y[arrived:] == POISON).all()


def test_commits_and_waits_are_in_the_trace():
    x, y = np.arange(12, dtype=np.float32), np.zeros(12, np.uint32)
    with simulator.record() as traces:
        three_groups[2, 2](x, y, 1)
    (trace,) = traces
    calls = [(event.call, event.newest) for event in trace.group_events]
    assert calls == [*[("commit", 0)] * 3, ("wait", 1), ("wait", 0)] * 4
    threads = [int(trace.segments["thread"][event.segment]) for event in trace.group_events]
    assert threads == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5
    # The first commit comes after the eight writes that two copies are recorded as.
    assert [event.after for event in trace.group_events[:3]] == [8, 12, 12]


@cuda.jit
def without(y, x, waiting):
    tile = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    cp_async(tile, 4 * t, x, 4 * t, True)
    cp_async_commit_group()
    if waiting:
        cp_async_wait_group(0)
    cuda.syncthreads()
    y[t] = tile[4 * (31 - t)]
    cuda.syncthreads()
    cp_async_wait_group(0)


def test_a_missing_wait_shows_in_the_result():
    x, y = np.arange(128, dtype=np.float32), np.zeros(32, np.float32)
    without[1, 32](y, x, False)
    assert np.isnan(y).all()
    without[1, 32](y, x, True)
    assert y.tolist() == list(range(124, -1, -4))


@cuda.jit
def no_commit(x, y):
    tile = cuda.shared.array(4, uint32)
    cp_async(tile, 0, x, 0, True)
    cp_async_wait_group(0)
    y[0] = tile[3]
    cp_async_commit_group()
    cp_async_wait_group(0)
    y[1] = tile[3]


def test_a_copy_that_is_in_no_group_is_not_waited_for():
    y = np.zeros(2, np.uint32)
    no_commit[1, 1](np.full(4, 7, np.uint32), y)
    assert y.tolist() == [POISON, 7]


@cuda.jit
def source_changes(x, y):
    tile = cuda.shared.array(4, uint32)
    cp_async(tile, 0, x, 0, True)
    cp_async_commit_group()
    x[1] = 9
    cp_async_wait_group(0)
    y[0] = tile[1]


def test_the_source_is_read_no_earlier_than_it_may_be():
    y = np.zeros(1, np.uint32)
    source_changes[1, 1](np.zeros(4, np.uint32), y)
    assert y[0] == 9


@cuda.jit
def nothing_inside(x, y, at):
    tile = cuda.shared.array(8, uint32)
    cp_async(tile, 4, x, at, False)
    cp_async_commit_group()
    cp_async_wait_group(0)
    for i in range(4):
        y[i] = tile[4 + i]


@pytest.mark.parametrize("at", [0, 3, -(1 << 30), 1 << 30])
def test_where_nothing_is_inside_nothing_is_read(at):
    x, y = np.full(4, np.nan, np.float32), np.ones(4, np.uint32)
    with simulator.record() as traces:
        nothing_inside[1, 1](x, y, at)
    assert not y.any()
    touched = {traces[0].arrays[number].name for number in traces[0].accesses["array"]}
    assert "x" not in touched and "y" in touched


@cuda.jit
def leaves(x, commit, wait):
    tile = cuda.shared.array(64, uint32)
    t = cuda.threadIdx.x
    cp_async(tile, 4 * t, x, 0, t > 2)
    cp_async(tile, 32 + 4 * t, x, 0, t > 2)
    if commit:
        cp_async_commit_group()
    if wait:
        cp_async_wait_group(1)


@pytest.mark.parametrize(("commit", "wait"), [(False, False), (True, False), (True, True)])
def test_no_copy_may_be_left_on_its_way(commit, wait):
    text = refusal(leaves, 1, 8, np.zeros(4, np.uint32), commit, wait)
    assert "returned with 2 asynchronous copies pending" in text
    assert "thread (0, 0, 0)" in text and "cp.async.wait_group 0" in text
    assert f"from line {line_of(leaves, 'cp_async(tile, 4 * t')}: " in text


def test_empty_groups_may_be_left():
    @cuda.jit
    def kernel(x):
        cp_async_commit_group()
        cp_async_commit_group()
        cp_async_wait_group(1)
        x[0] = 1

    x = np.zeros(1)
    kernel[1, 1](x)
    assert x[0] == 1


@cuda.jit
def use(x, y, kind, to, at):
    tile = cuda.shared.array(32, uint32)
    mine = cuda.local.array(32, float32)
    if kind == 0:
        cp_async(tile, to, x, at, True)
    if kind == 1:
        cp_async(y, to, x, at, True)
    if kind == 2:
        cp_async(tile, to, tile, at, True)
    if kind == 3:
        store_vec8(y, to, mine, at)
    if kind == 4:
        copy_vec4(tile, to, x, at)
    if kind == 5:
        copy_scalar(tile, to, x, at)
    if kind == 6:
        copy_vec4(y, to, x, at)
    if kind == 7:
        store_scalar(y, to, mine, at)


FLOATS, HALVES = np.zeros(33, np.float32), np.zeros(33, np.uint16)


@pytest.mark.parametrize(
    ("x", "y", "kind", "to", "at", "said"),
    [
        (FLOATS, FLOATS, 0, 2, 0, "cp.async to shared array of line"),
        (FLOATS, FLOATS, 0, 0, 5, "cp.async from x[5]: not at a multiple of 16 bytes"),
        (HALVES, FLOATS, 0, 0, 4, "cp.async from x[4]: not at a multiple of 16 bytes"),
        (FLOATS[1:], FLOATS, 0, 0, 4, "cp.async from x[4]: not at a multiple of 16 bytes"),
        (FLOATS, FLOATS, 0, 0, 32, "x[32:36]"),
        (HALVES, FLOATS, 0, 0, 32, "x[32:40]"),
        (FLOATS, FLOATS, 0, 0, -4, "x[-4:0]"),
        (FLOATS, FLOATS, 0, 32, 0, "[32:36]"),
        (FLOATS, FLOATS, 1, 0, 0, "y (global): it copies from global to shared memory"),
        (FLOATS, FLOATS, 2, 4, 0, "(shared) to shared array of line"),
        (FLOATS, HALVES, 3, 4, 0, "store_vec8 to y[4]: not at a multiple of 16 bytes"),
        (FLOATS, FLOATS, 3, 2, 0, "store_vec8 to y[2]: not at a multiple of 16 bytes"),
        (FLOATS, FLOATS, 3, 32, 0, "y[32:40]"),
        (FLOATS, FLOATS, 3, 0, 28, "[28:36]"),
        (FLOATS, FLOATS, 4, 0, 0, "x of float32 to shared array of line"),
        (HALVES, FLOATS, 5, 0, 0, "x of uint16 to shared array of line"),
        (FLOATS[2:], FLOATS, 6, 0, 0, "copy_vec4 from x[0]: not at a multiple of 16 bytes"),
        (FLOATS, FLOATS, 7, 33, 0, "y[33]"),
        (FLOATS, FLOATS, 7, 0, 32, "[32]"),
    ],
)
def test_what_is_refused(x, y, kind, to, at, said):
    text = refusal(use, 1, 1, x, y, kind, to, at)
    assert said in text
    # The line is the kernel's, not that of the intrinsic.
    assert f"{__file__}:{line_of(use, f'if kind == {kind}:') + 1}: " in text


# --- races: a copy may happen at any time between its begin and the end of the wait


@cuda.jit
def pass_on(x, y, first, second):
    # Two slices through one tile, each read by another thread than the one that copied it.
    tile = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    for turn in range(2):
        cp_async(tile, 4 * t, x, 128 * turn + 4 * t, True)  # begins
        cp_async_commit_group()
        cp_async_wait_group(0)  # arrives
        if first:
            cuda.syncthreads()
        y[32 * turn + t] = tile[4 * (31 - t)]  # reads
        if second:
            cuda.syncthreads()


def kinds_and_lines(*barriers):
    x, y = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    with simulator.record() as traces:
        pass_on[1, 32](x, y, *barriers)
    findings = check_trace(traces[0])
    mark = {line_of(pass_on, f"# {word}"): word for word in ("begins", "arrives", "reads")}
    return {(f.kind, *(mark[line.line] for line in f.lines)) for f in findings}, y


def test_two_barriers_are_enough():
    found, y = kinds_and_lines(True, True)
    assert found == set()
    assert y.tolist() == [*range(124, -1, -4), *range(252, 124, -4)]


def test_reading_what_another_thread_waited_for_is_a_race():
    found, _ = kinds_and_lines(False, True)
    assert ("race", "arrives", "reads") in found


def test_beginning_a_copy_onto_what_others_still_read_is_a_race():
    found, _ = kinds_and_lines(True, False)
    assert ("race", "reads", "begins") in found


@cuda.jit
def begins_too_early(x, y):
    # The copy is waited for after the barrier, yet it may have happened before it.
    tile = cuda.shared.array(128, uint32)
    t = cuda.threadIdx.x
    copy_vec4(tile, 4 * t, x, 4 * t)
    cuda.syncthreads()
    y[t] = tile[4 * (31 - t)]  # reads
    cp_async(tile, 4 * t, x, 4 * t, True)  # begins
    cp_async_commit_group()
    cuda.syncthreads()
    cp_async_wait_group(0)


def test_a_copy_may_happen_long_before_it_is_waited_for():
    with simulator.record() as traces:
        begins_too_early[1, 32](np.zeros(128, np.uint32), np.zeros(32, np.uint32))
    (race,) = check_trace(traces[0])
    wanted = [line_of(begins_too_early, f"# {word}") for word in ("reads", "begins")]
    assert sorted(line.line for line in race.lines) == wanted


# --- the trace


def test_what_a_trace_says_of_copies():
    x, y = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    with simulator.record() as traces:
        pass_on[1, 32](x, y, True, True)
    (trace,) = traces
    begins, arrives = (
        [p for p in trace.instructions if p.line == line_of(pass_on, f"# {word}")]
        for word in ("begins", "arrives")
    )
    assert [(p.vectorized > 0, p.arrival) for p in (*begins, *arrives)] == [
        (True, False),
        (True, True),
    ]
    assert (begins[0].width(4), begins[0].width(8)) == (4, 2)
    # 32 threads, 2 turns, 4 words: read once, written twice.
    count = {
        (trace.instructions[number].line, bool(write)): int(n)
        for (number, write), n in zip(
            *np.unique(trace.accesses[["instruction", "write"]], return_counts=True), strict=True
        )
    }
    assert count[begins[0].line, False] == count[begins[0].line, True] == 256
    assert count[arrives[0].line, True] == 256


def test_steps_of_a_picture_tell_every_access():
    for x in (np.arange(256, dtype=np.float32), np.arange(256, dtype=np.uint16)):
        y = np.zeros(64, np.float32)
        with simulator.record() as traces:
            (pass_on if x.itemsize == 4 else pass_on_halves)[1, 32](x, y, True, True)
        launch = Launch("copies", traces[0])
        steps = launch.block(0).steps
        told = sum(len(r.lanes) for step in steps for r in step.requests)
        assert told == len(traces[0].accesses)
        for step in steps:
            for request in step.requests:
                assert len(set(request.lanes)) == 32
                assert request.ways <= 1 or not step.write


@cuda.jit
def pass_on_halves(x, y, first, second):
    tile = cuda.shared.array(128, uint32)
    t = cuda.threadIdx.x
    cp_async(tile, 4 * t, x, 8 * t, True)
    cp_async_commit_group()
    cp_async_wait_group(0)
    cuda.syncthreads()
    y[t] = tile[4 * (31 - t)]
