"""Vectorized pooling on the host: any number of channels and of threads."""

import numba
import numpy as np
import oracles
import pytest
from tiers import computing

from layers import MaxPool2D
from layers.fast.host import max_pool
from layers.fast.host.max_pool import MaxPoolVectorized


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(5)
    x = rng.integers(9, size=(7, 9, 8, 21)).astype(np.float32)  # with many ties
    dy = rng.standard_normal((7, 4, 3, 21)).astype(np.float32)
    counts = range(1, numba.config.NUMBA_NUM_THREADS + 1)
    results = []
    before = numba.get_num_threads()
    try:
        for worth, count in [(2**30, before), *((0, count) for count in counts)]:
            monkeypatch.setattr(max_pool, "WORTH_WAKING", worth)
            numba.set_num_threads(count)
            step = computing(MaxPool2D(3, 2), "fast")
            assert type(step) is MaxPoolVectorized
            results.append(oracles.run(step, x, dy))
    finally:
        numba.set_num_threads(before)
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "size, stride, ceil", [(3, 2, True), (3, 2, False), (2, 2, False), (4, 1, False)]
)
@pytest.mark.parametrize("channels", [1, 7, 8, 9, 16, 21, 33])
def test_any_number_of_channels_gives_the_books_bits(channels, size, stride, ceil, dtype):
    rng = np.random.default_rng(channels)
    x = rng.integers(-3, 4, size=(2, 8, 9, channels)).astype(dtype)  # with many ties
    x[rng.random(x.shape) < 0.05] = np.nan
    x[rng.random(x.shape) < 0.05] = -np.inf
    pool = MaxPool2D(size, stride, ceil=ceil).to("cpu", dtype)
    dy = rng.standard_normal((2, *pool.output_shape(x.shape[1:]))).astype(dtype)
    book = oracles.run(pool, x, dy)
    places = pool.winner.copy()
    fast = computing(MaxPool2D(size, stride, ceil=ceil).to("cpu", dtype), "fast")
    for mine, right in zip(oracles.run(fast, x, dy), book, strict=True):
        np.testing.assert_array_equal(mine, right)
    np.testing.assert_array_equal(fast.winner, places)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_winner_may_be_any_pixel_of_a_window(size):
    places = size * size
    x = np.zeros((1, size, size, places))
    for place in range(places):  # another winner in every channel
        x[0, place // size, place % size, place] = 1 + place
    y, dx = oracles.run(
        computing(MaxPool2D(size, 1).to("cpu", np.float64), "fast"), x, np.ones((1, 1, 1, places))
    )
    np.testing.assert_array_equal(y.ravel(), np.arange(places) + 1)
    np.testing.assert_array_equal(dx, x != 0)
