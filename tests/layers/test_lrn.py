"""Local response normalization: host and kernels against the formula, with α large and small."""

import numpy as np
import oracles
import pytest

from layers import LocalResponseNorm
from layers.lrn import power_host

SHAPE = (2, 6, 7, 5)

# image, size, k, alpha, beta, groups; with the paper's α = 1e-4 a wrong window would pass unseen.
CASES = {
    "α 0.5": (SHAPE, 5, 2.0, 0.5, 0.75, 1),
    "the paper's α": (SHAPE, 5, 2.0, 1e-4, 0.75, 1),
    "size 1": (SHAPE, 1, 2.0, 0.5, 0.75, 1),
    "size 3": (SHAPE, 3, 1.0, 0.5, 0.75, 1),
    "β above 1": (SHAPE, 3, 0.5, 0.9, 1.3, 1),
    "β 0": (SHAPE, 3, 2.0, 0.5, 0.0, 1),
    "window wider than the channels": (SHAPE, 13, 2.0, 0.5, 0.75, 1),
    "one channel": ((2, 4, 3, 1), 5, 2.0, 0.5, 0.75, 1),
    "two groups": ((2, 4, 3, 6), 5, 2.0, 0.5, 0.75, 2),
    "a group for each channel": ((2, 3, 2, 5), 3, 2.0, 0.5, 0.75, 5),
    "groups smaller than the window": ((1, 3, 4, 6), 7, 2.0, 0.5, 0.75, 3),
    "rows of numbers": ((3, 11), 5, 2.0, 0.5, 0.75, 1),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_forward_and_gradient_follow_the_formula(title, dtype, device):
    shape, *constants = CASES[title]
    rng = np.random.default_rng(5)
    x = (2 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    layer = LocalResponseNorm(*constants).to(device, dtype)
    for mine, right in zip(oracles.run(layer, x, dy), oracles.lrn(x, dy, *constants), strict=True):
        assert mine.dtype == dtype
        # A dozen terms and a power; s^−β in float32 is good to a few roundings.
        oracles.assert_close(mine, right, dtype)


def test_the_defaults_are_the_papers():
    layer = LocalResponseNorm()
    assert (layer.size, layer.k, layer.alpha, layer.beta) == (5, 2.0, 1e-4, 0.75)
    assert layer.groups == 1


def test_alpha_is_not_divided_by_the_size_of_the_window(device):
    layer = LocalResponseNorm(5, k=2.0, alpha=0.5, beta=1.0).to(device, np.float64)
    y, _ = oracles.run(layer, np.ones((1, 1, 1, 5)))
    # 3, 4, 5, 4 and 3 neighbours: s = 2 + 0.5 · 3 = 3.5, and so on.
    np.testing.assert_allclose(y.ravel(), 1 / np.array([3.5, 4, 4.5, 4, 3.5]), rtol=1e-15)


@pytest.mark.parametrize("size", [0, 2, 4, -1])
def test_an_even_size_is_refused(size):
    with pytest.raises(ValueError, match=f"odd, at least 1, not {size}"):
        LocalResponseNorm(size)


@pytest.mark.parametrize(("k", "alpha"), [(0, 1e-4), (-1.0, 1e-4), (2.0, -0.5)])
def test_constants_that_could_divide_by_zero_are_refused(k, alpha):
    with pytest.raises(ValueError, match="k > 0 and alpha >= 0"):
        LocalResponseNorm(5, k, alpha)


def test_less_than_one_group_is_refused():
    with pytest.raises(ValueError, match="groups must be at least 1, not 0"):
        LocalResponseNorm(groups=0)


def test_groups_that_do_not_divide_the_channels_are_refused_with_the_shape(device):
    layer = LocalResponseNorm(groups=3).to(device)
    with pytest.raises(ValueError, match=r"3 groups.*\(6, 7, 5\)"):
        layer.forward(device.zeros((2, 6, 7, 5), np.float32))


def test_the_papers_power_is_rounded_once_and_lets_nan_through():
    s = np.random.default_rng(3).uniform(1, 1e4, 1000).astype(np.float32)
    s[7] = np.nan
    out = np.empty_like(s)
    power_host(s, np.float32(0.75), out)
    np.testing.assert_array_equal(out, (s.astype(np.float64) ** -0.75).astype(np.float32))
    power_host(s, np.float32(0.6), out)
    # NumPy's float32 power, and the compiler's, are within an ulp or two of the exact one.
    np.testing.assert_allclose(out, s.astype(np.float64) ** np.float32(-0.6), rtol=3e-7)
