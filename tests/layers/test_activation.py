"""ReLU and tanh: host and kernels against the formula, and the numbers at the edge."""

import math

import numpy as np
import oracles
import pytest

from layers import ReLU, Tanh

pytestmark = pytest.mark.first_read

SHAPES = [(2, 6, 7, 5), (3, 43), (1, 1), (2, 64)]  # (2, 64) is just one block of threads


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_relu_and_its_gradient_follow_the_formula(shape, dtype, device):
    rng = np.random.default_rng(1)
    # Away from 0, where the derivative jumps.
    x = (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.1, 2.0, shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    y, dx = oracles.run(ReLU().to(device, dtype), x, dy)
    assert y.dtype == dx.dtype == dtype
    for i in np.ndindex(shape):
        assert y[i] == (x[i] if x[i] > 0 else 0)
        assert dx[i] == (dy[i] if x[i] > 0 else 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_tanh_and_its_gradient_follow_the_formula(shape, dtype, device):
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    right_y, right_dx = np.empty(shape), np.empty(shape)
    for i in np.ndindex(shape):
        right_y[i] = math.tanh(float(x[i]))
        right_dx[i] = float(dy[i]) / math.cosh(float(x[i])) ** 2
    y, dx = oracles.run(Tanh().to(device, dtype), x, dy)
    assert y.dtype == dx.dtype == dtype
    # One function and three operations, no sum. 1 − y² loses digits where y is near 1, of which
    # the comparison with the largest element takes account.
    oracles.assert_close(y, right_y, dtype, terms=10)
    oracles.assert_close(dx, right_dx, dtype, terms=10)


def test_relu_has_slope_zero_at_zero(device):
    x = np.array([[0.0, -0.0, 1e-300, -1e-300]])
    y, dx = oracles.run(ReLU().to(device, np.float64), x, np.full((1, 4), 7.0))
    np.testing.assert_array_equal(y, [[0, 0, 1e-300, 0]])
    np.testing.assert_array_equal(dx, [[0, 0, 7, 0]])


def test_infinities_pass_relu_and_saturate_tanh(device):
    x, dy = np.array([[np.inf, -np.inf]]), np.ones((1, 2))
    y, dx = oracles.run(ReLU().to(device, np.float64), x, dy)
    np.testing.assert_array_equal(y, [[np.inf, 0]])
    np.testing.assert_array_equal(dx, [[1, 0]])
    y, dx = oracles.run(Tanh().to(device, np.float64), x, dy)
    np.testing.assert_array_equal(y, [[1, -1]])
    np.testing.assert_array_equal(dx, [[0, 0]])


@pytest.mark.parametrize("layer", [ReLU, Tanh])
def test_not_a_number_is_not_silently_zero(layer, device):
    x = np.array([[np.nan, 1.0]])
    y, _ = oracles.run(layer().to(device, np.float64), x)
    assert np.isnan(y[0, 0])
    assert not np.isnan(y[0, 1])


@pytest.mark.parametrize("layer", [ReLU, Tanh])
def test_a_gradient_that_is_not_a_number_stays_one(layer, device):
    _, dx = oracles.run(layer().to(device, np.float64), np.ones((1, 2)), np.array([[np.nan, 1.0]]))
    assert np.isnan(dx[0, 0])
    assert not np.isnan(dx[0, 1])
