"""Pooling's second rung: the bits of the first, ties and not-a-number included."""

import numpy as np
import oracles
import pytest

from layers import MaxPool2D
from layers.fast.max_pool import MaxPoolRowsStep
from layers.fast.plan import plan

SHAPES = [(2, 7, 9, 5), (2, 6, 7, 5), (1, 3, 3, 1), (3, 4, 3, 2), (1, 5, 10, 3), (1, 8, 4, 130)]


def both(x, dy, device, dtype=np.float64):
    """(y, dx) of the first rung and of the second."""
    layer = MaxPool2D(3, 2).to(device, dtype)
    (step,) = plan([layer])
    assert isinstance(step, MaxPoolRowsStep)
    step.device, step.dtype = layer.device, layer.dtype
    return oracles.run(layer, x, dy), oracles.run(step, x, dy)


def assert_same_bits(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(np.signbit(one), np.signbit(other))


def gradient(rng, shape):
    n, h, w, c = shape
    return rng.standard_normal((n, (h - 3) // 2 + 1, (w - 3) // 2 + 1, c))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_are_those_of_the_first_rung(shape, dtype, cuda_device):
    rng = np.random.default_rng(3)
    assert_same_bits(*both(rng.standard_normal(shape), gradient(rng, shape), cuda_device, dtype))


def test_a_net_that_never_saw_the_first_rung_follows_the_formula(cuda_device):
    rng = np.random.default_rng(4)
    x = rng.permutation(2 * 7 * 9 * 5).reshape(2, 7, 9, 5).astype(np.float64)
    dy = gradient(rng, x.shape)
    _, (y, dx) = both(x, dy, cuda_device)
    right_y, right_dx = oracles.max_pool(x, lambda shape: dy, 3, 2)
    np.testing.assert_array_equal(y, right_y)
    oracles.assert_close(dx, right_dx, np.float64)


def test_among_equals_the_first_wins_and_sums_have_the_same_order(cuda_device):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 3, (2, 9, 11, 4)).astype(np.float32)  # ties everywhere
    x[0, 2, 2] = x[0, 4, 6] = 9  # each wins four windows
    dy = gradient(rng, x.shape) * 10.0 ** rng.integers(-8, 8, (2, 4, 5, 4))
    assert_same_bits(*both(x, dy, cuda_device, np.float32))


def test_not_a_number_and_infinities_win_as_before(cuda_device):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 7, 9, 3))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(x.shape) < 0.2] = -np.inf
    x[1, :3, :3] = -np.inf
    x[1, 4:, 6:] = np.nan
    dy = gradient(rng, x.shape)
    dy[0, 0, 0] = np.nan
    dy[0, 1, 1] = -0.0
    assert_same_bits(*both(x, dy, cuda_device))


def test_other_windows_stay_on_the_first_rung(cuda_device):
    for layer in (MaxPool2D(2, 2), MaxPool2D(3, 1), MaxPool2D(3, 3)):
        layer.to(cuda_device)
        assert plan([layer]) == [layer]


def test_complaints_are_the_layers(cuda_device):
    layer = MaxPool2D(3, 2).to(cuda_device)
    (step,) = plan([layer])
    with pytest.raises(RuntimeError, match="needs a forward"):
        step.backward(cuda_device.zeros((1, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 7, 5\).*3x3"):
        step.forward(cuda_device.zeros((2, 2, 7, 5), np.float32))
