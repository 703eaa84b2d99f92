"""Linear, ReLU and dropout in one step: what the three give one by one."""

import numpy as np
import oracles
import pytest

from layers import Dropout, Linear, ReLU
from layers.fast.linear import LinearStep
from layers.fast.reductions import WARPS

KINDS = {
    "linear": lambda: (),
    "relu": lambda: (ReLU(),),
    "paper dropout": lambda: (ReLU(), Dropout(0.4)),
    "inverted dropout": lambda: (ReLU(), Dropout(0.4, mode="inverted")),
}
SIZES = [(3, 7, 5), (1, 1, 1), (70, 3, 33)]


def make(kind, device, dtype, inputs, outputs):
    """The layers, with the same weights and masks each time."""
    rng = np.random.default_rng(4)
    layers = [Linear(inputs, outputs), *KINDS[kind]()]
    for layer in layers:
        layer.to(device, dtype)
        layer.set_seed(5, 3)
        layer.set_step(7)
    for parameter in layers[0].parameters():
        parameter.value[...] = device.array(rng.standard_normal(parameter.value.shape), dtype)
    return layers


def one_by_one(layers, x, dy, train):
    device = layers[0].device
    x = device.array(x)
    for layer in layers:
        x = layer.forward(x, train)
    dy = device.array(dy)
    for layer in reversed(layers):
        dy = layer.backward(dy)
    return [device.to_host(array).copy() for array in (layers[-1].y, dy)]


def together(layers, x, dy, train):
    device, step = layers[0].device, LinearStep(*layers)
    y = step.forward(device.array(x), train)
    assert all(layer.y is y for layer in layers)
    dx = step.backward(device.array(dy))
    return [device.to_host(array).copy() for array in (y, dx)]


def compare(kind, sizes, device, dtype, train, spoil=lambda x, dy: None):
    images, inputs, outputs = sizes
    rng = np.random.default_rng(8)
    x = rng.standard_normal((images, inputs)).astype(dtype)
    dy = rng.standard_normal((images, outputs)).astype(dtype)
    spoil(x, dy)
    parts = [make(kind, device, dtype, inputs, outputs) for _ in range(2)]
    right, mine = one_by_one(parts[0], x, dy, train), together(parts[1], x, dy, train)
    right += oracles.gradients(parts[0][0])
    mine += oracles.gradients(parts[1][0])
    for actual, expected in zip(mine[:3], right[:3], strict=True):  # y, dx, dw
        np.testing.assert_array_equal(actual, expected)
    if device.is_cuda and images > WARPS:  # db: the same sum in another order
        oracles.assert_close(mine[3], right[3], dtype)
    else:
        np.testing.assert_array_equal(mine[3], right[3])
    return mine


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_gives_what_its_layers_give(kind, sizes, dtype, train, device):
    compare(kind, sizes, device, dtype, train)


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number_passes_through(kind, device):
    def spoil(x, dy):
        x[1, 2] = np.nan
        dy[0, 1] = np.nan

    y, dx, dw, db = compare(kind, SIZES[0], device, np.float64, True, spoil)
    assert np.isnan(y[1]).any() and not np.isnan(y[0]).any()
    assert np.isnan(dw).any()


def test_dropout_moves_on_in_training_only(device):
    linear, relu, dropout = make("paper dropout", device, np.float64, 7, 5)
    step, x = LinearStep(linear, relu, dropout), device.array(np.ones((3, 7)))
    first = device.to_host(step.forward(x)).copy()
    assert dropout.step == 8
    step.forward(x, train=False)
    assert dropout.step == 8
    assert (device.to_host(step.forward(x)) != first).any()
    dropout.set_step(7)
    np.testing.assert_array_equal(device.to_host(step.forward(x)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_without_input_gradient_the_parameters_get_theirs(kind, device):
    layers = make(kind, device, np.float64, 7, 5)
    step = LinearStep(*layers)
    x, dy = device.array(np.ones((3, 7))), device.array(np.ones((3, 5)))
    step.forward(x)
    step.backward(dy)
    wanted = oracles.gradients(layers[0])
    layers[0].input_gradient = False
    for parameter in layers[0].parameters():
        parameter.grad[...] = np.nan
    assert step.backward(dy) is None
    for mine, right in zip(oracles.gradients(layers[0]), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_smaller_batches_after_larger_ones(device):
    linear, relu = make("relu", device, np.float64, 7, 5)
    step = LinearStep(linear, relu)
    x = np.random.default_rng(0).standard_normal((4, 7))
    whole = device.to_host(step.forward(device.array(x))).copy()
    part = step.forward(device.array(x[:2]))
    assert part.shape == (2, 5)
    np.testing.assert_allclose(device.to_host(part), whole[:2], rtol=1e-14)
    assert step.backward(device.array(np.ones((2, 5)))).shape == (2, 7)


def test_complaints_are_the_layers(device):
    linear, relu = make("relu", device, np.float64, 7, 5)
    linear.name, relu.name = "fc6", "relu6"
    step = LinearStep(linear, relu)
    assert step.name == "fc6+relu6" and step.notes() == {"relu6": "(in fc6)"}
    with pytest.raises(RuntimeError, match="fc6: backward.. needs a forward"):
        step.backward(device.zeros((3, 5), np.float64))
    with pytest.raises(ValueError, match=r"fc6: an input of shape \(6,\)"):
        step.forward(device.zeros((3, 6), np.float64))
    step.forward(device.zeros((3, 7), np.float64))
    with pytest.raises(ValueError, match=r"fc6: dy has shape \(3, 4\)"):
        step.backward(device.zeros((3, 4), np.float64))
