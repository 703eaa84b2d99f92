"""Local response normalization: both tiers against the formula, with α large and small."""

import numpy as np
import oracles
import pytest
from layer_cases import LRN as CASES
from tiers import both_tiers, computing

from layers import LocalResponseNorm

pytestmark = pytest.mark.first_read


@both_tiers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_forward_and_gradient_follow_the_formula(title, dtype, tier, device):
    shape, *constants = CASES[title]
    rng = np.random.default_rng(5)
    x = (2 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    step = computing(LocalResponseNorm(*constants).to(device, dtype), tier)
    for mine, right in zip(oracles.run(step, x, dy), oracles.lrn(x, dy, *constants), strict=True):
        assert mine.dtype == dtype
        # A dozen terms and a power; s^−β in float32 is good to a few roundings.
        oracles.assert_close(mine, right, dtype)


def test_the_defaults_are_the_papers():
    layer = LocalResponseNorm()
    assert (layer.size, layer.k, layer.alpha, layer.beta) == (5, 2.0, 1e-4, 0.75)
    assert layer.groups == 1


@both_tiers
def test_alpha_is_not_divided_by_the_size_of_the_window(tier, device):
    layer = LocalResponseNorm(5, k=2.0, alpha=0.5, beta=1.0).to(device, np.float64)
    y, _ = oracles.run(computing(layer, tier), np.ones((1, 1, 1, 5)))
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


@both_tiers
def test_not_a_number_reaches_its_window_and_no_further(tier, device):
    x, dy = np.ones((1, 2, 1, 9)), np.ones((1, 2, 1, 9))
    x[0, 0, 0, 4] = np.nan
    layer = LocalResponseNorm(3, alpha=0.5).to(device, np.float64)
    y, dx = oracles.run(computing(layer, tier), x, dy)
    np.testing.assert_array_equal(np.isnan(y[0, 0, 0]), [0, 0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(np.isnan(dx[0, 0, 0]), [0, 0, 1, 1, 1, 1, 1, 0, 0])
    assert not np.isnan(y[0, 1]).any() and not np.isnan(dx[0, 1]).any()


@both_tiers
def test_groups_that_do_not_divide_the_channels_are_refused_with_the_shape(tier, device):
    step = computing(LocalResponseNorm(groups=3).to(device), tier)
    with pytest.raises(ValueError, match=r"3 groups.*\(6, 7, 5\)"):
        step.forward(device.zeros((2, 6, 7, 5), np.float32))
