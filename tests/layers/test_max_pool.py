"""Max pooling: both tiers against the formula; ties, gaps, edges and not-a-number."""

import numpy as np
import oracles
import pytest
from layer_cases import POOL, POOL_CEIL
from tiers import both_tiers, computing

from layers import MaxPool2D

pytestmark = pytest.mark.first_read


CASES = {title: (*case, False) for title, case in POOL.items()} | {
    f"ceil: {title}": (*case, True) for title, case in POOL_CEIL.items()
}


def pooling(tier, device, dtype=np.float64, size=3, stride=2, ceil=False):
    """The layer, or the step that computes it."""
    return computing(MaxPool2D(size, stride, ceil).to(device, dtype), tier)


def without_ties(rng, shape, dtype):
    """Shuffled numbers of both signs, no two alike."""
    count = int(np.prod(shape))
    return (rng.permutation(count) - count / 2 + 0.25).reshape(shape).astype(dtype)


@both_tiers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_forward_and_gradient_follow_the_formula(title, dtype, tier, device):
    shape, size, stride, ceil = CASES[title]
    rng = np.random.default_rng(3)
    x = without_ties(rng, shape, dtype)
    drawn = []

    def draw(y_shape):
        drawn.append(rng.standard_normal(y_shape).astype(dtype))
        return drawn[0]

    y, dx = oracles.max_pool(x, draw, size, stride, ceil)
    mine_y, mine_dx = oracles.run(pooling(tier, device, dtype, size, stride, ceil), x, drawn[0])
    np.testing.assert_array_equal(mine_y, y)  # a maximum is one of the inputs: no rounding
    oracles.assert_close(mine_dx, dx, dtype)
    assert mine_y.dtype == mine_dx.dtype == dtype


@both_tiers
def test_all_numbers_negative_have_a_maximum_too(tier, device):
    x = -1 - np.arange(2 * 5 * 5 * 3, dtype=np.float64).reshape(2, 5, 5, 3)
    y, _ = oracles.run(pooling(tier, device), x)
    np.testing.assert_array_equal(y, x[:, 0:3:2, 0:3:2])


@both_tiers
def test_minus_infinity_is_a_number_like_others(tier, device):
    x = np.full((1, 3, 3, 1), -np.inf)
    y, dx = oracles.run(pooling(tier, device), x, np.ones((1, 1, 1, 1)))
    assert y.item() == -np.inf
    assert dx[0, 0, 0, 0] == 1
    assert dx.sum() == 1


@both_tiers
def test_the_first_of_equals_wins_and_gets_the_whole_gradient(tier, device):
    x = np.zeros((1, 3, 4, 2))
    x[0, 0, 2, 0] = x[0, 1, 0, 0] = x[0, 2, 1, 0] = 5  # (0, 2) comes first, row by row
    dy = np.array([[[[2.0, 3.0]]]])
    y, dx = oracles.run(pooling(tier, device), x, dy)
    np.testing.assert_array_equal(y, [[[[5, 0]]]])
    expected = np.zeros(x.shape)
    expected[0, 0, 2, 0] = 2
    expected[0, 0, 0, 1] = 3  # nine zeros tie: the first
    np.testing.assert_array_equal(dx, expected)


@both_tiers
def test_an_input_that_wins_four_windows_gets_all_their_gradients(tier, device):
    x = np.zeros((1, 5, 5, 1))
    x[0, 2, 2, 0] = 1
    dy = np.array([[1.0, 20.0], [300.0, 4000.0]]).reshape(1, 2, 2, 1)
    _, dx = oracles.run(pooling(tier, device), x, dy)
    assert dx[0, 2, 2, 0] == 4321
    assert np.count_nonzero(dx) == 1


@both_tiers
def test_gradients_of_several_windows_are_added_in_the_order_of_the_windows(tier, device):
    x = np.zeros((2, 5, 5, 3), np.float32)
    x[:, 2, 2] = 1
    dy = np.random.default_rng(1).standard_normal((2, 2, 2, 3)).astype(np.float32)
    dy *= np.float32([[1e4, 1], [1e-3, 1e2]])[None, :, :, None]  # any other order rounds otherwise
    _, dx = oracles.run(pooling(tier, device, np.float32), x, dy)
    expected = ((dy[:, 0, 0] + dy[:, 0, 1]) + dy[:, 1, 0]) + dy[:, 1, 1]
    np.testing.assert_array_equal(dx[:, 2, 2], expected)


@both_tiers
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 2)])
def test_not_a_number_wins_its_windows_and_takes_their_gradient(place, tier, device):
    x = np.arange(2 * 3 * 5 * 1, dtype=np.float64).reshape(2, 3, 5, 1)
    x[1, place[0], place[1], 0] = np.nan
    y, dx = oracles.run(pooling(tier, device), x, np.ones((2, 1, 2, 1)))
    windows = 2 if place[1] == 2 else 1
    assert np.isnan(y[1]).sum() == windows
    assert not np.isnan(y[0]).any()
    assert dx[1, place[0], place[1], 0] == windows


@both_tiers
def test_what_no_window_holds_gets_no_gradient(tier, device):
    layer = pooling(tier, device, size=2, stride=3)
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 2))
    oracles.run(layer, x, np.ones((2, 2, 2, 2)))
    layer.buffer("dx", x.shape)[...] = np.nan  # whatever was there before
    _, dx = oracles.run(layer, x, np.ones((2, 2, 2, 2)))
    assert not dx[:, 2].any()
    assert not dx[:, 5].any()
    assert not dx[:, :, [2, 5, 6]].any()


def test_the_2012_code_makes_12_windows_of_24_pixels():
    assert MaxPool2D(3, 2, ceil=True).output_shape((24, 24, 64)) == (12, 12, 64)
    assert MaxPool2D(3, 2).output_shape((24, 24, 64)) == (11, 11, 64)


@both_tiers
def test_of_two_nans_in_a_window_over_the_edge_the_last_wins(tier, device):
    x = np.zeros((1, 4, 4, 1))
    x[0, 3, 2, 0] = x[0, 3, 3, 0] = np.nan
    _, dx = oracles.run(pooling(tier, device, ceil=True), x, np.ones((1, 2, 2, 1)))
    assert dx[0, 3, 3, 0] == 1  # only the last window holds it
    assert dx[0, 3, 2, 0] == 1  # the one to its left


@pytest.mark.parametrize(("size", "stride"), [(0, 1), (2, 0), (-1, 2), (3, -2)])
def test_sizes_below_one_are_refused(size, stride):
    with pytest.raises(ValueError, match=f"at least 1, not {size}, {stride}"):
        MaxPool2D(size, stride)


@both_tiers
@pytest.mark.parametrize("shape", [(2, 2, 7, 5), (2, 7, 2, 5), (2, 7, 5), (2, 7, 5, 3, 1)])
def test_an_image_without_a_whole_window_is_refused_with_both_shapes(shape, tier, device):
    layer = pooling(tier, device, np.float32)
    with pytest.raises(ValueError) as caught:
        layer.forward(device.zeros(shape, np.float32))
    assert str(shape[1:]) in str(caught.value)
    assert "3x3" in str(caught.value)
