"""Barriers of blocks and warps, and what is said when threads wait for ever."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32, int32
from simulated import line_of, refusal

HERE = Path(__file__).name


@cuda.jit
def reverse_and_vote(x, votes):
    shared = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    shared[i] = x[i]
    cuda.syncthreads()
    x[i] = shared[cuda.blockDim.x - 1 - i]
    votes[0, i] = cuda.syncthreads_count(i % 3 == 0)
    votes[1, i] = cuda.syncthreads_and(i < 50)
    votes[2, i] = cuda.syncthreads_or(i == 49)


@pytest.mark.parametrize("threads", [50, 51])
def test_block_barriers(threads):
    x = np.arange(threads, dtype=np.float32)
    votes = np.full((3, threads), -1)
    reverse_and_vote[1, threads](x, votes)
    np.testing.assert_array_equal(x, np.arange(threads)[::-1])
    assert (votes[0] == 17).all()
    assert (votes[1] == (threads == 50)).all()
    assert (votes[2] == 1).all()


@cuda.jit
def sum_of_warp(x):
    scratch = cuda.shared.array(80, int32)
    i = cuda.threadIdx.x
    scratch[i] = x[i]
    cuda.syncwarp()
    step = 16
    while step > 0:
        other = scratch[i ^ step] if i ^ step < cuda.blockDim.x else 0
        cuda.syncwarp()
        scratch[i] += other
        cuda.syncwarp()
        step //= 2
    x[i] = scratch[i]


def test_syncwarp_with_a_last_warp_that_is_not_whole():
    x = np.arange(80, dtype=np.int32)
    sums = [np.arange(32).sum(), np.arange(32, 64).sum(), np.arange(64, 80).sum()]
    sum_of_warp[1, 80](x)
    np.testing.assert_array_equal(x, np.repeat(sums, [32, 32, 16]))


@cuda.jit
def halves_of_a_warp(x):
    scratch = cuda.shared.array(32, int32)
    i = cuda.threadIdx.x
    scratch[i] = i
    if i < 16:
        cuda.syncwarp(0x0000FFFF)
        x[i] = scratch[15 - i]
    elif i < 30:
        cuda.syncwarp(0xFFFF0000)  # the last two lanes have returned, which exempts them
        x[i] = scratch[45 - i]


def test_syncwarp_of_part_of_a_warp():
    x = np.zeros(32, np.int32)
    halves_of_a_warp[1, 32](x)
    assert x.tolist() == [*range(15, -1, -1), *range(29, 15, -1), 0, 0]


@cuda.jit
def each_warp_at_its_own_pace(x):
    i = cuda.threadIdx.x
    for _ in range(i // 32):
        cuda.syncwarp()
    cuda.syncthreads()
    x[i] = 1


def test_warps_may_pass_different_numbers_of_their_barriers():
    x = np.zeros(128, np.int32)
    each_warp_at_its_own_pace[1, 128](x)
    assert x.all()


@cuda.jit
def halve_until_all_are_odd(x):
    i = cuda.threadIdx.x
    while cuda.syncthreads_or(x[i] % 2 == 0):
        if x[i] % 2 == 0:
            x[i] //= 2


def test_a_barrier_in_the_condition_of_a_loop():
    x = np.array([5, 12, 64, 6])
    halve_until_all_are_odd[1, 4](x)
    assert x.tolist() == [5, 3, 1, 3]


@cuda.jit
def some_return_early(x):
    i = cuda.threadIdx.x
    if i >= 5:
        return
    cuda.syncthreads()  # never opens
    x[i] = 1


def test_a_thread_that_returned_before_the_barrier():
    x = np.zeros(8)
    text = refusal(some_return_early, 1, 8, x)
    assert "kernel some_return_early, block (0, 0, 0)" in text
    line = line_of(some_return_early, "never opens")
    assert f"{HERE}:{line}: 5 threads: (0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), ..." in text
    assert "have returned: 3 threads: (5, 0, 0), (6, 0, 0), (7, 0, 0)" in text
    assert not x.any()


@cuda.jit
def barrier_in_both_branches(x):
    if cuda.threadIdx.x == 2:
        cuda.syncthreads()  # one
    else:
        cuda.syncthreads()  # many


@cuda.jit
def barriers_of_two_kinds_on_one_line(x):
    cuda.syncthreads() if cuda.threadIdx.x == 2 else cuda.syncthreads_or(1)


def test_barriers_in_branches_are_different_barriers():
    text = refusal(barrier_in_both_branches, 1, 4, np.zeros(1))
    one, many = (line_of(barrier_in_both_branches, f"# {s}") for s in ("one", "many"))
    assert f"wait at syncthreads() in {__file__}:{one}: 1 thread: (2, 0, 0)" in text
    assert f"{HERE}:{many}: 3 threads: (0, 0, 0), (1, 0, 0), (3, 0, 0)" in text
    text = refusal(barriers_of_two_kinds_on_one_line, 1, 4, np.zeros(1))
    assert "syncthreads()" in text and "syncthreads_or()" in text


@cuda.jit
def warp_diverges(x):
    i = cuda.threadIdx.x
    if i % 2 == 0:
        cuda.syncwarp()
    else:
        cuda.syncthreads()


@cuda.jit
def lane_outside_its_mask(x):
    cuda.syncwarp(0x7)


def test_divergence_inside_a_warp():
    text = refusal(warp_diverges, 1, 64, np.zeros(1))
    assert "syncwarp(0xffffffff)" in text and "16 threads: (0, 0, 0), (2, 0, 0)" in text
    assert "syncthreads()" in text and "32 threads: (1, 0, 0)" in text
    assert "by lane 3" in refusal(lane_outside_its_mask, 1, 4, np.zeros(1))


@cuda.jit
def loop_of_unequal_length(x):
    for _ in range(2 + (cuda.threadIdx.x == 1)):
        cuda.syncthreads()


def test_one_barrier_too_many():
    text = refusal(loop_of_unequal_length, (1, 1, 2), 4, np.zeros(1))
    assert "1 thread: (1, 0, 0)" in text and "have returned: 3 threads" in text


@cuda.jit
def fails_between_barriers(x):
    cuda.syncthreads()
    x[cuda.threadIdx.x + 1] = 1
    cuda.syncthreads()


def test_the_next_launch_does_not_feel_the_last_error():
    for kernel in (some_return_early, fails_between_barriers):
        refusal(kernel, 1, 8, np.zeros(8))
        assert globals()["cuda"] is sys.modules["numba.cuda"]
        test_block_barriers(50)
