"""Pooling by rows on a GPU: which windows it takes, and what it says.

Its values are held against the formula in tests/layers/test_max_pool.py, and its bits against those
of the book's kernels in test_agreement.py.
"""

import numpy as np
import pytest
from tiers import computing

from layers import MaxPool2D
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


def test_complaints_are_the_layers(cuda_device):
    layer = MaxPool2D(3, 2).to(cuda_device)
    step = computing(layer, "fast")
    with pytest.raises(RuntimeError, match="maxpool2d: backward.. needs a forward"):
        step.backward(cuda_device.zeros((1, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 7, 5\).*3x3"):
        step.forward(cuda_device.zeros((2, 2, 7, 5), np.float32))
    assert step.forward(cuda_device.zeros((2, 3, 7, 5), np.float32)) is layer.y
