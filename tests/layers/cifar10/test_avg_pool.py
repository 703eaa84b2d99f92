"""Average pooling against the formula, also where windows hang over the edge."""

import numpy as np
import oracles
import pytest
from layer_cases import POOL, POOL_CEIL

from layers import AvgPool2D

CASES = {title: (*case, False) for title, case in POOL.items()} | {
    f"ceil: {title}": (*case, True) for title, case in POOL_CEIL.items()
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_forward_and_gradient_follow_the_formula(title, dtype, device):
    shape, *rest = CASES[title]
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(dtype)
    drawn = []

    def draw(y_shape):
        drawn.append(rng.standard_normal(y_shape).astype(dtype))
        return drawn[0]

    y, dx = oracles.avg_pool(x, draw, *rest)
    layer = AvgPool2D(*rest).to(device, dtype)
    oracles.run(layer, x + 1, drawn[0] + 1)  # what an earlier pass left must not stay
    found = oracles.run(layer, x, drawn[0])
    for mine, right in zip(found, (y, dx), strict=True):
        assert mine.dtype == dtype
        oracles.assert_close(mine, right, dtype)


def test_a_window_over_the_edge_is_the_mean_of_what_is_inside(device):
    x = np.array([[1.0, 2, 3, 10], [4, 5, 6, 20], [7, 8, 9, 30], [1, 1, 1, 8]])
    layer = AvgPool2D(3, 2, ceil=True).to(device, np.float64)
    y, dx = oracles.run(layer, x.reshape(1, 4, 4, 1), np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(y[0, ..., 0], [[5, 13], [4.5, 12]])
    # The last pixel is in the last window alone, which has four.
    assert dx[0, 3, 3, 0] == 0.25 and dx[0, 0, 0, 0] == pytest.approx(1 / 9)
    assert dx.sum() == pytest.approx(4)


def test_sizes_and_images_that_do_not_fit_are_refused(device):
    with pytest.raises(ValueError, match="AvgPool2D: kernel_size and stride .* not 0, 1"):
        AvgPool2D(0, 1)
    layer = AvgPool2D(3, 2).to(device, np.float32)
    with pytest.raises(ValueError, match=r"\(2, 7, 5\) has no whole window of 3x3"):
        layer.forward(device.zeros((1, 2, 7, 5), np.float32))
