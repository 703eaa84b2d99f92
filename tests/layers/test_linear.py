"""The fully connected layer: both tiers' matrix products against three loops."""

import numpy as np
import oracles
import pytest
from layer_cases import LINEAR as SIZES
from tiers import both_tiers, computing

from layers import Linear


def make(device, dtype, images=3, inputs=7, outputs=5):
    rng = np.random.default_rng(4)
    layer = Linear(inputs, outputs).to(device, dtype)
    x = rng.standard_normal((images, inputs)).astype(dtype)
    dy = rng.standard_normal((images, outputs)).astype(dtype)
    w = rng.standard_normal((outputs, inputs)).astype(dtype)
    b = rng.standard_normal(outputs).astype(dtype)
    layer.weight.value[...], layer.bias.value[...] = device.array(w), device.array(b)
    return layer, x, dy, w, b


@both_tiers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", SIZES)
def test_forward_and_all_gradients_follow_the_formula(sizes, dtype, tier, device):
    layer, x, dy, w, b = make(device, dtype, *sizes)
    images, inputs, outputs = sizes
    y, dx = np.zeros((images, outputs)), np.zeros((images, inputs))
    dw, db = np.zeros((outputs, inputs)), np.zeros(outputs)
    for n in range(images):
        for o in range(outputs):
            y[n, o] += b[o]
            db[o] += dy[n, o]
            for i in range(inputs):
                y[n, o] += float(x[n, i]) * float(w[o, i])
                dx[n, i] += float(dy[n, o]) * float(w[o, i])
                dw[o, i] += float(dy[n, o]) * float(x[n, i])
    mine = *oracles.run(computing(layer, tier), x, dy), *oracles.gradients(layer)
    for actual, right in zip(mine, (y, dx, dw, db), strict=True):
        assert actual.dtype == dtype
        oracles.assert_close(actual, right, dtype)


@both_tiers
def test_without_input_gradient_the_weights_gradients_are_the_same(tier, device):
    layer, x, dy, _, _ = make(device, np.float64)
    step = computing(layer, tier)
    oracles.run(step, x, dy)
    dw, db = oracles.gradients(layer)
    layer.input_gradient = False
    for parameter in layer.parameters():
        parameter.grad[...] = np.nan
    _, dx = oracles.run(step, x, dy)
    assert dx is None
    for mine, right in zip(oracles.gradients(layer), (dw, db), strict=True):
        np.testing.assert_array_equal(mine, right)


def test_parameters_are_weight_and_bias():
    layer = Linear(7, 5)
    assert layer.parameters() == [layer.weight, layer.bias]
    assert layer.weight.value.shape == (5, 7)
    assert layer.bias.value.shape == (5,)
    assert layer.multiply_adds((7,)) == 35


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 5), (5, 0), (-1, 5)])
def test_sizes_below_one_are_refused(inputs, outputs):
    with pytest.raises(ValueError, match=f"at least 1, not {inputs} and {outputs}"):
        Linear(inputs, outputs)


@both_tiers
@pytest.mark.parametrize("shape", [(3, 6), (3, 7, 1), (3, 1, 1, 7)])
def test_an_input_of_another_shape_is_refused_with_both_shapes(shape, tier, device):
    step = computing(Linear(7, 5).to(device), tier)
    with pytest.raises(ValueError) as caught:
        step.forward(device.zeros(shape, np.float32))
    assert str(shape[1:]) in str(caught.value)
    assert "(5, 7)" in str(caught.value)
