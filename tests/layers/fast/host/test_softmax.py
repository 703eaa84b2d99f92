"""The vectorized softmax of the host: its exponential, its largest number, the same bits always."""

import numba
import numpy as np
import pytest

from layers import Device
from layers.fast.host.softmax import exp_host, largest_host, sum_host
from layers.fast.plan import plan_loss

HOST = Device("cpu")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(dtype):
    rng = np.random.default_rng(1)
    logits, labels = (5 * rng.standard_normal((9, 301))).astype(dtype), rng.integers(301, size=9)
    whole = plan_loss(HOST, dtype)
    whole.forward(logits, labels)
    threads = numba.get_num_threads()
    try:
        for n, count in enumerate([1, threads] * 4):
            numba.set_num_threads(count)
            alone = plan_loss(HOST, dtype)
            alone.forward(logits[n : n + 1], labels[n : n + 1])
            np.testing.assert_array_equal(alone.probabilities[0], whole.probabilities[n])
            assert alone.losses[0] == whole.losses[n]
    finally:
        numba.set_num_threads(threads)


def test_the_exponential_is_right_to_its_last_digit():
    x = np.concatenate([np.linspace(-87, 0, 100_003), -np.geomspace(1e-45, 87, 10_001)])
    x = x.astype(np.float32)
    right, mine = np.exp(x.astype(np.float64)), x.copy()
    exp_host(mine)
    assert np.max(np.abs(mine - right) / right) < np.finfo(np.float32).eps
    halves = np.log(2) * -np.arange(0.5, 126, 1)  # where the rounding of x / ln 2 changes over
    x = np.float32(halves[:, None] * (1 + 1e-7 * np.arange(-3, 4)))
    right, mine = np.exp(x.astype(np.float64)), x.copy()
    exp_host(mine.reshape(-1))
    assert np.max(np.abs(mine - right) / right) < np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_exponential_at_its_ends(dtype):
    x = np.array([0.0, -0.0, -1e4, -np.inf, np.nan, -1e-30], dtype)
    exp_host(x)
    np.testing.assert_array_equal(x, [1, 1, 0, 0, np.nan, 1])


def test_the_exponential_has_the_same_bits_wherever_a_number_stands():
    numbers = np.float32(-40) * np.random.default_rng(0).random(70, np.float32)
    expected = numbers.copy()
    exp_host(expected)
    for length in range(1, 70):  # first and last of a group that is computed at once, and left over
        for part in (slice(0, length), slice(70 - length, 70)):
            alone = numbers[part].copy()
            exp_host(alone)
            np.testing.assert_array_equal(alone, expected[part])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 2, 7, 16, 33, 301])
def test_the_largest_is_found_wherever_it_stands_whatever_the_signs(size, dtype):
    rng = np.random.default_rng(size)
    for shift in (0, -9, 9):  # of both signs, all negative, all positive
        x = (rng.uniform(-4, 4, size) + shift).astype(dtype)
        for place in {0, size // 2, size - 1}:
            moved = np.roll(x, place - int(np.argmax(x)))
            assert largest_host(moved) == x.max()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_infinities_and_zeros_of_both_signs_are_in_order(dtype):
    assert largest_host(np.array([-np.inf, -1, -np.inf], dtype)) == -1
    assert largest_host(np.array([1, np.inf, -np.inf], dtype)) == np.inf
    assert largest_host(np.full(3, -np.inf, dtype)) == -np.inf
    assert largest_host(np.array([-0.0, 0.0, -1e-45], dtype)) == 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 7, 16, 65, 1000])
def test_the_sum_is_the_sum(size, dtype):
    x = np.random.default_rng(size).random(size).astype(dtype)
    # Of positive numbers: no rounding is larger than eps of the sum, and there are `size` of them.
    wanted = x.astype(np.float64).sum()
    assert abs(sum_host(x) - wanted) <= size * np.finfo(dtype).eps * wanted
