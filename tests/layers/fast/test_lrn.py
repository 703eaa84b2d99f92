"""LRN through shared memory on a GPU, against the formula where tiles and windows end."""

import numpy as np
import oracles
import pytest
from tiers import computing

from layers import LocalResponseNorm
from layers.fast.lrn import MOST_HALF, TILE, LRNRows
from layers.fast.plan import plan

# image, size, k, alpha, beta, groups; the others are in tests/layers/test_lrn.py.
CASES = {
    "several tiles, rows across their borders": ((1, 3, 4, 97), 5, 2.0, 0.5, 0.75, 1),
    "a row longer than a tile": ((1, 1, 1, TILE + 9), 5, 2.0, 0.5, 0.75, 1),
    "just a tile": ((1, 1, 4, TILE // 4), 5, 2.0, 0.5, 0.75, 2),
    "the widest window": ((1, 1, 2, TILE // 2 + 3), 2 * MOST_HALF + 1, 2.0, 0.5, 1.1, 1),
}


def by_rows(layer):
    """The layer's step."""
    step = computing(layer, "fast")
    assert type(step) is LRNRows
    return step


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_forward_and_gradient_follow_the_formula(title, dtype, cuda_device):
    shape, *constants = CASES[title]
    rng = np.random.default_rng(5)
    x = (2 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    layer = LocalResponseNorm(*constants).to(cuda_device, dtype)
    mine = oracles.run(by_rows(layer), x, dy)
    for array, right in zip(mine, oracles.lrn(x, dy, *constants), strict=True):
        assert array.dtype == dtype
        # A window's terms and a power or two roots: good to a few roundings.
        oracles.assert_close(array, right, dtype)


def test_a_window_too_wide_for_shared_memory_stays_with_the_book(cuda_device):
    layer = LocalResponseNorm(2 * MOST_HALF + 3).to(cuda_device)
    assert plan([layer], cuda_device) == [layer]


def test_the_layer_knows_its_output_and_complains_as_before(cuda_device):
    layer = LocalResponseNorm(groups=3).to(cuda_device)
    step = by_rows(layer)
    with pytest.raises(RuntimeError, match="localresponsenorm: backward.. needs a forward"):
        step.backward(cuda_device.zeros((1, 2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"3 groups.*\(6, 7, 5\)"):
        step.forward(cuda_device.zeros((2, 6, 7, 5), np.float32))
    assert step.forward(cuda_device.zeros((2, 6, 7, 3), np.float32)) is layer.y
