"""Pooling by rows on a GPU: which windows it takes, and what it says.

Its values are held against the formula in tests/layers/test_max_pool.py, and its bits against those
of the book's kernels in test_agreement.py.
"""

import numpy as np
import pytest
from tiers import computing

from layers import MaxPool2D
from layers.fast import bfloat16, max_pool_vectorized
from layers.fast.max_pool import MaxPoolRows
from layers.fast.plan import plan


def test_other_windows_stay_with_the_book(cuda_device):
    for layer in (MaxPool2D(2, 2), MaxPool2D(3, 1), MaxPool2D(3, 3)):
        layer.to(cuda_device)
        assert plan([layer], cuda_device) == [layer]


def test_winners_take_a_byte_each(cuda_device):
    step = computing(MaxPool2D(3, 2).to(cuda_device), "fast")
    assert type(step) is MaxPoolRows
    y = step.forward(cuda_device.zeros((2, 7, 9, 5), np.float32))
    assert step.places.dtype == np.uint8 and step.places.shape == y.shape


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 7, 9, 4), (1, 3, 3, 12), (1, 8, 6, 36), (3, 4, 11, 8), (1, 3, 4, 520)]
)
def test_four_channels_a_thread_give_the_bits_of_one(shape, bits, cuda_device, monkeypatch):
    """Ties, NaNs and signed zeros among them."""
    rng = np.random.default_rng(0)
    # Few values, so that windows have ties; dy of both signs, and zeros of both.
    x = rng.integers(-2, 3, shape).astype(np.float32)
    x[rng.random(shape) < 0.05] = np.nan
    x[rng.random(shape) < 0.05] = -0.0
    found = []
    for vectorized in (True, False):
        layer = MaxPool2D(3, 2).to(cuda_device)
        step = MaxPoolRows([layer], cuda_device, np.float32, "bf16" if bits else "fp32")
        assert max_pool_vectorized.fits(step.dtype, x)
        if not vectorized:
            monkeypatch.setattr(max_pool_vectorized, "fits", lambda *_: False)
        stored = bfloat16.to_bits if bits else np.array
        y = step.forward(cuda_device.array(stored(x)))
        dy = np.random.default_rng(1).integers(-2, 3, y.shape).astype(np.float32)
        dy[dy == 2] = -0.0
        dx = step.backward(cuda_device.array(stored(dy)))
        found.append([cuda_device.to_host(a) for a in (y, step.places, dx)])
    for actual, expected in zip(*found, strict=True):
        word = f"uint{8 * actual.itemsize}"
        np.testing.assert_array_equal(actual.view(word), expected.view(word))


def test_complaints_are_the_layers(cuda_device):
    layer = MaxPool2D(3, 2).to(cuda_device)
    step = computing(layer, "fast")
    with pytest.raises(RuntimeError, match="maxpool2d: backward.. needs a forward"):
        step.backward(cuda_device.zeros((1, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 7, 5\).*3x3"):
        step.forward(cuda_device.zeros((2, 2, 7, 5), np.float32))
    assert step.forward(cuda_device.zeros((2, 3, 7, 5), np.float32)) is layer.y
