"""What a warp does as one: who must be there, who gets what, and what it does not order."""

import numpy as np
import pytest
from numba import cuda, float32, uint32
from simulated import line_of, refusal

from layers import simulator
from layers.fast.conv.mma import (
    cvt_rna_tf32,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_bf16,
    mma_tf32,
)
from layers.simulator import running
from tinyconv.lab.checks import check_trace


@cuda.jit
def multiply(x, missing):
    a = cuda.local.array(4, uint32)
    b = cuda.local.array(2, uint32)
    sums = cuda.local.array(4, float32)
    t = cuda.threadIdx.x
    for i in range(4):
        a[i] = 0
        b[i % 2] = 0
        sums[i] = t
    if t == missing:
        return
    mma_tf32(a, 0, b, 0, sums, 0)  # together
    x[t] = sums[3]


def test_one_lane_that_has_returned_is_missing():
    x = np.zeros(64, np.float32)
    text = refusal(multiply, 1, 64, x, 39)
    assert "no thread can continue" in text
    line = line_of(multiply, "# together")
    assert f"wait at mma_tf32() in {__file__}:{line}: 31 threads: (32, 0, 0), (33, 0, 0)" in text
    assert "have returned: 33 threads" in text and "(39, 0, 0)" not in text
    assert (x[:32] == np.arange(32)).all() and not x[32:].any()


def test_a_warp_that_is_not_whole_cannot():
    text = refusal(multiply, 1, 40, np.zeros(40, np.float32), -1)
    assert "mma_tf32()" in text and "8 threads: (32, 0, 0)" in text
    multiply[1, 64](np.zeros(64, np.float32), -1)


@cuda.jit
def in_both_branches(x):
    tiles = cuda.shared.array(256, uint32)
    words = cuda.local.array(4, uint32)
    t = cuda.threadIdx.x
    if t < 16:
        ldmatrix_x4(words, 0, tiles, 4 * t)  # lower
    else:
        ldmatrix_x4(words, 0, tiles, 4 * t)  # upper


def test_the_same_call_at_two_places_is_two():
    text = refusal(in_both_branches, 1, 32, np.zeros(1))
    lower, upper = (line_of(in_both_branches, f"# {half}") for half in ("lower", "upper"))
    assert f":{lower}: 16 threads: (0, 0, 0)" in text
    assert f":{upper}: 16 threads: (16, 0, 0)" in text


@cuda.jit
def one_waits_elsewhere(x):
    words = cuda.local.array(4, uint32)
    sums = cuda.local.array(4, float32)
    if cuda.threadIdx.x == 5:
        cuda.syncthreads()
    mma_bf16(words, 0, words, 0, sums, 0)


def test_a_lane_at_a_barrier_is_missing():
    text = refusal(one_waits_elsewhere, 1, 32, np.zeros(1))
    assert "mma_bf16() in" in text and "31 threads" in text
    assert "syncthreads() in" in text and "1 thread: (5, 0, 0)" in text


@cuda.jit
def warps_at_their_own_pace(x):
    words = cuda.local.array(4, uint32)
    sums = cuda.local.array(4, float32)
    t = cuda.threadIdx.x
    for i in range(4):
        words[i] = 0x3F800000  # 1.0
        sums[i] = 0
    for _ in range(1 + t // 32):
        mma_tf32(words, 0, words, 0, sums, 0)
    cuda.syncthreads()
    x[t] = sums[t % 4]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_each_warp_meets_by_itself(seed):
    x = np.zeros(96, np.float32)
    if seed is None:
        warps_at_their_own_pace[1, 96](x)
    else:
        with simulator.shuffled(seed):
            warps_at_their_own_pace[1, 96](x)
    assert (x == np.repeat([8, 16, 24], 32)).all()


# --- a collective orders nothing


@cuda.jit
def neighbour_after_a_collective(x):
    tile = cuda.shared.array(32, float32)
    words = cuda.local.array(4, uint32)
    sums = cuda.local.array(4, float32)
    t = cuda.threadIdx.x
    for i in range(4):
        words[i] = 0
        sums[i] = 0
    tile[t] = t  # written
    mma_tf32(words, 0, words, 0, sums, 0)
    x[t] = tile[31 - t]  # read


def test_a_collective_is_no_barrier_for_memory():
    with simulator.record() as traces:
        neighbour_after_a_collective[1, 32](np.zeros(32, np.float32))
    assert traces[0].barrier_events == []
    (race,) = check_trace(traces[0])
    assert race.kind == "race" and race.count == 32
    wanted = [line_of(neighbour_after_a_collective, mark) for mark in ("# written", "# read")]
    assert [line.line for line in race.lines] == wanted


@cuda.jit
def fragments_of_others(y, barrier):
    tiles = cuda.shared.array(128, uint32)
    words = cuda.local.array(4, uint32)
    t = cuda.threadIdx.x
    for i in range(4):
        tiles[32 * i + t] = t
    if barrier:
        cuda.syncwarp()
    ldmatrix_x4_trans(words, 0, tiles, 4 * t)  # rows
    y[t] = words[0]


def test_rows_that_other_lanes_wrote_are_read_after_a_barrier():
    for barrier in (True, False):
        with simulator.record() as traces:
            fragments_of_others[1, 32](np.zeros(32, np.uint32), barrier)
        findings = check_trace(traces[0])
        assert {finding.kind for finding in findings} == (set() if barrier else {"race"})
    line = line_of(fragments_of_others, "# rows")
    assert line in [line.line for line in findings[0].lines]


# --- what is read and written is checked as everywhere


@cuda.jit
def use(kind, at):
    tiles = cuda.shared.array(132, uint32)
    words = cuda.local.array(4, uint32)
    sums = cuda.local.array(4, float32)
    if kind == 0:
        ldmatrix_x4(words, 0, tiles, at)
    if kind == 1:
        ldmatrix_x4_trans(words, 0, tiles, at)
    if kind == 2:
        mma_tf32(words, at, words, 0, sums, 0)
    if kind == 3:
        mma_bf16(words, 0, words, at, sums, 0)
    if kind == 4:
        mma_tf32(words, 0, words, 0, sums, at)
    if kind == 5:
        cvt_rna_tf32(words, at)
    if kind == 6:
        ldmatrix_x4(words, at, tiles, 0)
    if kind == 7:
        ldmatrix_x4(words, 0, words, at)


@pytest.mark.parametrize(
    ("kind", "at", "said"),
    [
        (0, 2, "ldmatrix_x4 from shared array of line"),
        (1, 129, "ldmatrix_x4_trans from shared array of line"),
        (0, 132, "132:136"),
        (1, -4, "-4:0"),
        (2, 1, "1:5"),
        (2, -1, "-1:3"),
        (3, 3, "3:5"),
        (4, 4, "4:8"),
        (5, 4, "4:5"),
        (5, -1, "-1:0"),
        (6, 1, "1:5"),
        (7, 0, "that is local, not shared memory"),
    ],
)
def test_misaligned_rows_and_indices_outside(kind, at, said):
    text = refusal(use, 1, 32, kind, at)
    assert said in text
    assert ("not at a multiple of 16 bytes" in text) == (at in (2, 129))
    # The line is the kernel's, not that of the intrinsic.
    (line,) = (n for n in [line_of(use, f"if kind == {kind}:") + 1])
    assert f"{__file__}:{line}: " in text


@cuda.jit
def poisoned(y, kind):
    words = cuda.local.array(4, uint32)
    sums = cuda.local.array(4, float32)
    for i in range(4):
        if kind != 0:
            words[i] = 0
        if kind != 1:
            sums[i] = 0
    mma_tf32(words, 0, words, 0, sums, 0)
    y[cuda.threadIdx.x] = sums[2]


@pytest.mark.parametrize("kind", [0, 1])
def test_operands_and_sums_that_nobody_wrote_are_nan(kind):
    y = np.zeros(32, np.float32)
    poisoned[1, 32](y, kind)
    assert np.isnan(y).all()


def test_outside_of_a_launch_there_is_no_warp():
    with pytest.raises(RuntimeError, match="simulated by the scheduler only"):
        running()
