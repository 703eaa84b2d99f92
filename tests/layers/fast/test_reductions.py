"""Sums and means in two passes: right, and the same bits in whatever order blocks run."""

import math

import numpy as np
import oracles
import pytest

from layers import simulator
from layers.fast.reductions import (
    FEWEST_ROWS,
    MOST_PARTS,
    parts_of,
    rows_in_part,
    sum_rows,
    totals_of,
)
from layers.layer import Buffers


def total_of(x, device):
    """The sums over the rows of x, on the host."""
    buffer = Buffers(device, x.dtype)
    total = device.empty(x.shape[1:], x.dtype)
    sum_rows(device.array(x), total, buffer)
    return device.to_host(total).copy()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (130, 5), (67, 33), (64, 32), (129, 65)])
def test_columns_are_summed(shape, dtype, cuda_device):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    expected = [math.fsum(column) for column in x.T.tolist()]
    oracles.assert_close(total_of(x, cuda_device), expected, dtype)


def test_integers_are_summed_exactly_and_nothing_twice(cuda_device):
    x = np.arange(200 * 3, dtype=np.float64).reshape(200, 3)
    np.testing.assert_array_equal(total_of(x, cuda_device), x.sum(axis=0))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128 * 55 * 55, MOST_PARTS * FEWEST_ROWS + 1])
def test_parts_cover_all_rows_and_none_is_empty(rows):
    parts, height = parts_of(rows), rows_in_part(rows)
    assert 1 <= parts <= MOST_PARTS
    assert (parts - 1) * height < rows <= parts * height


def test_the_bits_do_not_depend_on_the_order_of_blocks_and_threads(cuda_device):
    if not simulator.installed:
        pytest.skip("the simulator is off: set NUMBA_ENABLE_CUDASIM=1")
    x = np.random.default_rng(1).standard_normal((200, 5)).astype(np.float32)
    first = total_of(x, cuda_device)
    for seed in range(3):
        with simulator.shuffled(seed):
            np.testing.assert_array_equal(total_of(x, cuda_device), first)


def test_one_bad_number_spoils_its_column_and_no_other(cuda_device):
    x = np.ones((70, 4))
    x[69, 2] = np.nan
    np.testing.assert_array_equal(total_of(x, cuda_device), [70, 70, np.nan, 70])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 300])
def test_the_totals_of_a_batch(count, dtype, cuda_device):
    losses = np.random.default_rng(2).standard_normal(count).astype(dtype)
    hits = (np.arange(count) % 3 == 0).astype(dtype)
    totals, skip = cuda_device.empty((2,), dtype), cuda_device.zeros((1,), np.int32)
    totals_of(cuda_device.array(losses), cuda_device.array(hits), totals, skip)
    expected = math.fsum(losses.tolist()) / count
    size = float(np.abs(losses).max())
    assert abs(float(totals[0]) - expected) <= oracles.rounding(dtype) * size
    assert float(totals[1]) == -(-count // 3) and int(skip[0]) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_mean_that_is_not_finite_is_flagged_for_good(value, cuda_device):
    losses, skip = np.ones(5), cuda_device.zeros((1,), np.int32)
    totals = cuda_device.empty((2,), np.float64)
    losses[3] = value
    for each in (losses, np.ones(5)):
        totals_of(cuda_device.array(each), cuda_device.array(np.ones(5)), totals, skip)
        assert int(skip[0]) == 1
    assert float(totals[0]) == 1.0
