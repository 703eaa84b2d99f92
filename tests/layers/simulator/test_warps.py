"""Shuffles, votes and matches, against NumPy; and what no simulator of single threads can do."""

import numpy as np
import pytest
from numba import cuda, float32, int32
from simulated import line_of, refusal

from layers import simulator
from tinyconv.lab.checks import check_trace

FULL = 0xFFFFFFFF
LANES = np.arange(32)


@cuda.jit
def shuffle(x, y, kind, by):
    i = cuda.threadIdx.x
    value = x[i]
    if kind == 0:
        y[i] = cuda.shfl_sync(FULL, value, by)
    elif kind == 1:
        y[i] = cuda.shfl_up_sync(FULL, value, by)
    elif kind == 2:
        y[i] = cuda.shfl_down_sync(FULL, value, by)
    else:
        y[i] = cuda.shfl_xor_sync(FULL, value, by)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("by", [0, 1, 5, 16, 31])
def test_shuffles_of_two_warps(dtype, by):
    x = np.random.default_rng(by).integers(-99, 99, 64).astype(dtype)
    sources = [
        np.full(32, by),
        np.where(by <= LANES, LANES - by, LANES),
        np.where(LANES + by < 32, LANES + by, LANES),
        LANES ^ by,
    ]
    for kind, source in enumerate(sources):
        y = np.zeros_like(x)
        shuffle[1, 64](x, y, kind, by)
        np.testing.assert_array_equal(y, x.reshape(2, 32)[:, source].ravel())


@cuda.jit
def sum_of_warp(x, total):
    value = x[cuda.grid(1)]
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_down_sync(FULL, value, distance)
    if cuda.laneid == 0:
        total[cuda.grid(1) // 32] = value


@pytest.mark.parametrize("seed", [None, 3])
def test_a_sum_without_shared_memory(seed):
    x, total = np.arange(128, dtype=np.float32), np.zeros(4, np.float32)
    if seed is None:
        sum_of_warp[2, 64](x, total)
    else:
        with simulator.shuffled(seed):
            sum_of_warp[2, 64](x, total)
    assert total.tolist() == x.reshape(4, 32).sum(axis=1).tolist()


@cuda.jit
def from_a_lane_that_is_not_there(y):
    i = cuda.threadIdx.x
    if i >= 20:
        return
    y[i] = cuda.shfl_down_sync(FULL, float32(i), 3)
    y[32 + i] = cuda.shfl_down_sync(FULL, int32(i), 3)


def test_what_a_lane_that_has_returned_would_give_is_poison():
    y = np.zeros(64, np.float32)
    from_a_lane_that_is_not_there[1, 32](y)
    np.testing.assert_array_equal(y[:17], np.arange(3, 20))
    assert np.isnan(y[17:20]).all() and (y[49:52] == np.iinfo(np.int32).min).all()


@cuda.jit
def vote(x, y, mask):
    i = cuda.threadIdx.x
    if not mask >> i & 1:
        return
    y[0, i] = cuda.all_sync(mask, x[i] > 2)
    y[1, i] = cuda.any_sync(mask, x[i] > 2)
    y[2, i] = cuda.eq_sync(mask, x[i] > 2)
    y[3, i] = cuda.ballot_sync(mask, x[i] > 2)
    y[4, i] = cuda.match_any_sync(mask, x[i])
    bits, same = cuda.match_all_sync(mask, x[i])
    y[5, i], y[6, i] = bits, same
    y[7, i] = cuda.lanemask_lt()


@pytest.mark.parametrize("mask", [FULL, 0x0000FFF0, 1 << 31])
@pytest.mark.parametrize("values", [[1, 5], [4, 4], [0, 2]])
def test_votes_and_matches(mask, values):
    x = np.random.default_rng(mask % 97).choice(values, 32)
    y = np.zeros((8, 32), np.int64)
    vote[1, 32](x, y, mask)
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    over = [x[lane] > 2 for lane in lanes]
    same = len({x[lane] for lane in lanes}) == 1
    for lane in lanes:
        assert y[:4, lane].tolist() == [
            *(all(over), any(over), len(set(over)) == 1),
            sum(1 << at for at in lanes if x[at] > 2),
        ]
        assert y[4, lane] == sum(1 << at for at in lanes if x[at] == x[lane])
        assert y[5:7, lane].tolist() == ([mask, 1] if same else [0, 0])
        assert y[7, lane] == 2**lane - 1
    assert not y[:, [lane for lane in range(32) if lane not in lanes]].any()


@cuda.jit
def outside_its_mask(x):
    cuda.ballot_sync(0x7, 1)  # three lanes


@cuda.jit
def in_both_branches(x):
    i = cuda.threadIdx.x
    if i < 16:
        x[i] = cuda.shfl_sync(FULL, x[i], 0)  # lower
    else:
        x[i] = cuda.shfl_sync(FULL, x[i], 0)  # upper


@cuda.jit
def of_a_byte(x):
    cuda.shfl_sync(FULL, x[0], 1)


def test_lanes_that_do_not_come_and_types_that_do_not_go():
    text = refusal(outside_its_mask, 1, 4, np.zeros(1))
    assert "ballot_sync(0x00000007) by lane 3" in text
    assert f":{line_of(outside_its_mask, '# three lanes')}: " in text
    text = refusal(in_both_branches, 1, 32, np.zeros(32, np.float32))
    assert "shfl_sync(0xffffffff) in" in text and "16 threads: (16, 0, 0)" in text
    assert "shfl_sync of uint8: it takes" in refusal(of_a_byte, 1, 32, np.zeros(1, np.uint8))


@cuda.jit
def neighbour_after_a_shuffle(x):
    tile = cuda.shared.array(32, float32)
    i = cuda.threadIdx.x
    tile[i] = i
    other = cuda.shfl_xor_sync(FULL, float32(i), 1)
    x[i] = tile[31 - i] + other


def test_a_shuffle_orders_no_memory():
    with simulator.record() as traces:
        neighbour_after_a_shuffle[1, 32](np.zeros(32, np.float32))
    assert [issue.kind for issue in check_trace(traces[0])] == ["race"]


@cuda.jit
def ask(x, what):
    if what == 0:
        cuda.activemask()
    elif what == 1:
        cuda.cg.this_grid().sync()
    else:
        x[0] = cuda.ldcg(x, 0)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (0, "cuda.activemask: which lanes happen to run together is not simulated"),
        (1, "cuda.cg: cooperative groups, such as grid().sync(), are not simulated"),
        (2, "cuda.ldcg: cache hints are not simulated"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(what, said):
    assert said in refusal(ask, 1, 1, np.zeros(2), what)


# --- what no GPU has


@cuda.jit
def two_tiles(x, large):
    first = cuda.shared.array((64, 96), float32)
    first[0, 0] = 1
    if large:
        second = cuda.shared.array((64, 97), float32)  # too much
        second[0, 0] = 1


def test_more_shared_memory_than_a_block_has():
    two_tiles[1, 1](np.zeros(1), False)
    text = refusal(two_tiles, 1, 1, np.zeros(1), True)
    assert "49,408 bytes of shared memory in a block" in text and "49,152 together" in text
    assert f":{line_of(two_tiles, '# too much')}: " in text


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ((1, (1, 1, 65)), "64 in z"),
        (((1, 65536), 1), "65535 at most in y and in z"),
        ((1, 1, 0, 233_473), "232,448 at most"),
    ],
)
def test_launches_that_no_gpu_takes(configuration, said):
    with pytest.raises(ValueError, match=said):
        two_tiles[configuration]
