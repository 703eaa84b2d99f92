"""LRN through shared memory and vectorized on a GPU, against the formula where tiles, windows and
groups end.
"""

import numpy as np
import oracles
import pytest
from tiers import computing

from layers import LocalResponseNorm
from layers.fast import lrn_vectorized
from layers.fast.bfloat16 import from_bits, to_bits
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


EIGHTS = {
    "one thread a group, both ends in it": ((1, 2, 3, 16), 2),
    "two threads a group": ((3, 1, 2, 48), 3),
    "the paper's channels, not whole blocks of rows": ((1, 3, 7, 96), 1),
    "a block for each row": ((2, 1, 1, 8 * lrn_vectorized.BLOCK), 1),
}


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("title", EIGHTS)
def test_eight_channels_a_thread_follow_the_formula(title, bits, cuda_device):
    shape, groups = EIGHTS[title]
    layer = LocalResponseNorm(5, 2.0, 0.5, 0.75, groups).to(cuda_device)
    step = LRNRows([layer], cuda_device, np.float32, "bf16" if bits else "fp32")
    rng = np.random.default_rng(5)
    x, dy = ((2 * rng.standard_normal(shape)).astype(np.float32) for _ in range(2))
    if bits:
        x, dy = (from_bits(to_bits(array)) for array in (x, dy))
        y = step.forward(cuda_device.array(to_bits(x)))
        dx = step.backward(cuda_device.array(to_bits(dy)))
        y, dx = (from_bits(cuda_device.to_host(array)) for array in (y, dx))
    else:
        y, dx = oracles.run(step, x, dy)
    assert step.vectorized
    for array, right in zip((y, dx), oracles.lrn(x, dy, 5, 2.0, 0.5, 0.75, groups), strict=True):
        if bits:  # half a step of bfloat16 of the number itself
            np.testing.assert_allclose(array, right, rtol=2**-8, atol=1e-5)
        else:
            oracles.assert_close(array, right, np.float32)


@pytest.mark.parametrize(
    ("shape", "size", "k", "beta", "groups", "dtype"),
    [
        ((2, 3, 3, 12), 5, 2.0, 0.75, 1, np.float32),
        ((2, 3, 3, 24), 5, 2.0, 0.75, 2, np.float32),
        ((2, 3, 3, 16), 3, 2.0, 0.75, 1, np.float32),
        ((2, 3, 3, 16), 5, 2.0, 0.7, 1, np.float32),
        ((2, 3, 3, 16), 5, 1e-13, 0.75, 1, np.float32),
        ((2, 3, 3, 16), 5, 2.0, 0.75, 1, np.float64),
        ((1, 1, 1, 8 * lrn_vectorized.BLOCK + 8), 5, 2.0, 0.75, 1, np.float32),
    ],
)
def test_whatever_else_goes_through_shared_memory(shape, size, k, beta, groups, dtype, cuda_device):
    layer = LocalResponseNorm(size, k, 0.5, beta, groups).to(cuda_device, dtype)
    step = by_rows(layer)
    x = np.random.default_rng(5).standard_normal(shape).astype(dtype)
    found = oracles.run(step, x, x)
    assert not step.vectorized
    for array, right in zip(found, oracles.lrn(x, x, size, k, 0.5, beta, groups), strict=True):
        oracles.assert_close(array, right, dtype)


@pytest.mark.parametrize("special", [np.nan, np.inf, 1e25])
def test_a_number_that_is_none_is_seen_in_its_window_alone(special, cuda_device):
    x = np.ones((1, 1, 3, 24), np.float32)
    x[0, 0, 1, 8] = special
    layer = LocalResponseNorm().to(cuda_device)
    y = cuda_device.to_host(by_rows(layer).forward(cuda_device.array(x)))
    near = np.zeros(x.shape, bool)
    near[0, 0, 1, 6:11] = True
    assert (y[~near] == y[0, 0, 0, 12]).sum() > 50 and np.isfinite(y[~near]).all()
    if special != 1e25:
        assert np.isnan(y[0, 0, 1, 8])
    else:  # its square is infinite: divided away, as in the book
        assert not y[near].any()


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
