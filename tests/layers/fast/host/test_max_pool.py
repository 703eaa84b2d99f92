"""Vectorized pooling on the host: three pixels at a time, and any number of threads."""

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
    x = rng.integers(9, size=(7, 9, 8, 5)).astype(np.float32)  # with many ties
    dy = rng.standard_normal((7, 4, 3, 5)).astype(np.float32)
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


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_winner_may_be_any_pixel_of_a_window_that_three_does_not_divide(size):
    places = size * size
    x = np.zeros((1, size, size, places))
    for place in range(places):  # another winner in every channel
        x[0, place // size, place % size, place] = 1 + place
    y, dx = oracles.run(
        computing(MaxPool2D(size, 1).to("cpu", np.float64), "fast"), x, np.ones((1, 1, 1, places))
    )
    np.testing.assert_array_equal(y.ravel(), np.arange(places) + 1)
    np.testing.assert_array_equal(dx, x != 0)
