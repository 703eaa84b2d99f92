"""LRN's second rung against the formula and against the first rung."""

import numpy as np
import oracles
import pytest

from layers import LocalResponseNorm
from layers.fast.lrn import MOST_HALF, TILE, LRNRowsStep
from layers.fast.plan import plan

SHAPE = (2, 6, 7, 5)

# image, size, k, alpha, beta, groups
CASES = {
    "α 0.5": (SHAPE, 5, 2.0, 0.5, 0.75, 1),
    "the paper's α": (SHAPE, 5, 2.0, 1e-4, 0.75, 1),
    "size 1": (SHAPE, 1, 2.0, 0.5, 0.75, 1),
    "β above 1": (SHAPE, 3, 0.5, 0.9, 1.3, 1),
    "β 0": (SHAPE, 3, 2.0, 0.5, 0.0, 1),
    "window wider than the channels": (SHAPE, 13, 2.0, 0.5, 0.75, 1),
    "one channel": ((2, 4, 3, 1), 5, 2.0, 0.5, 0.75, 1),
    "two groups": ((2, 4, 3, 6), 5, 2.0, 0.5, 0.75, 2),
    "a group for each channel": ((2, 3, 2, 5), 3, 2.0, 0.5, 0.75, 5),
    "several tiles, rows across their borders": ((1, 3, 4, 97), 5, 2.0, 0.5, 0.75, 1),
    "a row longer than a tile": ((1, 1, 1, TILE + 9), 5, 2.0, 0.5, 0.75, 1),
    "just a tile": ((1, 1, 4, TILE // 4), 5, 2.0, 0.5, 0.75, 2),
    "the widest window": ((1, 1, 2, TILE // 2 + 3), 2 * MOST_HALF + 1, 2.0, 0.5, 1.1, 1),
}


def fused(layer):
    """The layer's second rung."""
    (step,) = plan([layer])
    assert isinstance(step, LRNRowsStep)
    step.device, step.dtype = layer.device, layer.dtype
    return step


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_forward_and_gradient_follow_the_formula(title, dtype, cuda_device):
    shape, *constants = CASES[title]
    rng = np.random.default_rng(5)
    x = (2 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    layer = LocalResponseNorm(*constants).to(cuda_device, dtype)
    mine = oracles.run(fused(layer), x, dy)
    for array, right in zip(mine, oracles.lrn(x, dy, *constants), strict=True):
        assert array.dtype == dtype
        # A window's terms and a power or two roots: good to a few roundings.
        oracles.assert_close(array, right, dtype)


def test_not_a_number_reaches_its_window_and_no_further(cuda_device):
    x, dy = np.ones((1, 2, 1, 9)), np.ones((1, 2, 1, 9))
    x[0, 0, 0, 4] = np.nan
    layer = LocalResponseNorm(3, alpha=0.5).to(cuda_device, np.float64)
    y, dx = oracles.run(fused(layer), x, dy)
    np.testing.assert_array_equal(np.isnan(y[0, 0, 0]), [0, 0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(np.isnan(dx[0, 0, 0]), [0, 0, 1, 1, 1, 1, 1, 0, 0])
    assert not np.isnan(y[0, 1]).any() and not np.isnan(dx[0, 1]).any()


def test_a_window_too_wide_for_shared_memory_stays_on_the_first_rung(cuda_device):
    layer = LocalResponseNorm(2 * MOST_HALF + 3).to(cuda_device)
    assert plan([layer]) == [layer]


def test_the_layer_knows_its_output_and_complains_as_before(cuda_device):
    layer = LocalResponseNorm(groups=3).to(cuda_device)
    step = fused(layer)
    with pytest.raises(RuntimeError, match="needs a forward"):
        step.backward(cuda_device.zeros((1, 2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"3 groups.*\(6, 7, 5\)"):
        step.forward(cuda_device.zeros((2, 6, 7, 5), np.float32))
    assert step.forward(cuda_device.zeros((2, 6, 7, 3), np.float32)) is layer.y
