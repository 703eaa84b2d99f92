"""LRN by distance on the host: its power, and the same bits with any number of threads."""

import numba
import numpy as np
import oracles
from tiers import computing

from layers import LocalResponseNorm
from layers.fast.host.lrn import LRNByDistance, power_host


def test_the_papers_power_is_rounded_once_and_lets_nan_through():
    s = np.random.default_rng(3).uniform(1, 1e4, 1000).astype(np.float32)
    s[7] = np.nan
    out = np.empty_like(s)
    power_host(s, np.float32(0.75), out)
    np.testing.assert_array_equal(out, (s.astype(np.float64) ** -0.75).astype(np.float32))
    power_host(s, np.float32(0.6), out)
    # NumPy's float32 power, and the compiler's, are within an ulp or two of the exact one.
    np.testing.assert_allclose(out, s.astype(np.float64) ** np.float32(-0.6), rtol=3e-7)


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(5)
    x, dy = (rng.standard_normal((3, 5, 4, 7)).astype(np.float32) for _ in range(2))
    step = computing(LocalResponseNorm(3, alpha=0.5), "fast")
    assert type(step) is LRNByDistance
    before, results = numba.get_num_threads(), []
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            results.append(oracles.run(step, x, dy))
    finally:
        numba.set_num_threads(before)
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])
