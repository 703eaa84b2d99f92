"""Linear, ReLU and dropout in one step: the roundings of the three, and the state they keep."""

import numpy as np
import oracles
import pytest
from tiers import computing

from layers import Device, Dropout, Linear, ReLU
from layers.fast.linear import LinearStep
from layers.fast.reductions import WARPS

KINDS = {
    "linear": lambda: (),
    "relu": lambda: (ReLU(),),
    "paper dropout": lambda: (ReLU(), Dropout(0.4)),
    "inverted dropout": lambda: (ReLU(), Dropout(0.4, mode="inverted")),
}
SIZES = [(3, 7, 5), (1, 1, 1), (70, 3, 33)]


def make(kind, device, dtype, inputs=7, outputs=5):
    """The layers, with the same weights and masks each time, and their step."""
    rng = np.random.default_rng(4)
    layers = [Linear(inputs, outputs), *KINDS[kind]()]
    for layer in layers:
        layer.to(device, dtype)
        layer.set_seed(5, 3)
        layer.set_step(7)
    for parameter in layers[0].parameters():
        parameter.value[...] = device.array(rng.standard_normal(parameter.value.shape), dtype)
    step = computing(layers, "fast")
    assert type(step) is LinearStep
    return layers, step


def one_by_one(layers, x, dy, train):
    device = layers[0].device
    x = device.array(x)
    for layer in layers:
        x = layer.forward(x, train)
    dy = device.array(dy)
    for layer in reversed(layers):
        dy = layer.backward(dy)
    return [device.to_host(array).copy() for array in (layers[-1].y, dy)]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_rounds_as_its_layers_do(kind, sizes, dtype, train, device):
    """The products are the same calls, and each element after them is rounded alike."""
    images, inputs, outputs = sizes
    rng = np.random.default_rng(8)
    x = rng.standard_normal((images, inputs)).astype(dtype)
    dy = rng.standard_normal((images, outputs)).astype(dtype)
    layers, step = make(kind, device, dtype, inputs, outputs)
    right = [*one_by_one(layers, x, dy, train), *oracles.gradients(step)]
    for layer in layers:
        layer.set_step(7)
    mine = [*oracles.run(step, x, dy, train), *oracles.gradients(step)]
    for actual, expected in zip(mine[:3], right[:3], strict=True):  # y, dx, dw
        np.testing.assert_array_equal(actual, expected)
    if device.is_cuda and images > WARPS:  # db: the same sum in another order
        oracles.assert_close(mine[3], right[3], dtype)
    else:
        np.testing.assert_array_equal(mine[3], right[3])


def test_dropout_moves_on_in_training_only(device):
    (_, _, dropout), step = make("paper dropout", device, np.float64)
    x = device.array(np.ones((3, 7)))
    first = device.to_host(step.forward(x)).copy()
    assert dropout.step == 8
    step.forward(x, train=False)
    assert dropout.step == 8
    assert (device.to_host(step.forward(x)) != first).any()
    dropout.set_step(7)
    np.testing.assert_array_equal(device.to_host(step.forward(x)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_without_input_gradient_the_parameters_get_theirs(kind, device):
    layers, step = make(kind, device, np.float64)
    x, dy = device.array(np.ones((3, 7))), device.array(np.ones((3, 5)))
    step.forward(x)
    step.backward(dy)
    wanted = oracles.gradients(step)
    layers[0].input_gradient = False
    for parameter in layers[0].parameters():
        parameter.grad[...] = np.nan
    assert step.backward(dy) is None
    for mine, right in zip(oracles.gradients(step), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_smaller_batches_after_larger_ones(device):
    _, step = make("relu", device, np.float64)
    x = np.random.default_rng(0).standard_normal((4, 7))
    whole = device.to_host(step.forward(device.array(x))).copy()
    part = step.forward(device.array(x[:2]))
    assert part.shape == (2, 5)
    # A product of other sides may be summed in another order: a few roundings of seven terms.
    np.testing.assert_allclose(device.to_host(part), whole[:2], rtol=1e-14)
    assert step.backward(device.array(np.ones((2, 5)))).shape == (2, 7)


def test_complaints_name_the_layer_or_the_step(device):
    (linear, relu), step = make("relu", device, np.float64)
    linear.name, relu.name = "fc6", "relu6"
    library = "cuBLAS" if device.is_cuda else "BLAS"
    assert step.name == "fc6+relu6"
    assert step.notes() == {"fc6": f"({library})", "relu6": "(in fc6)"}
    with pytest.raises(RuntimeError, match=r"fc6\+relu6: backward.. needs a forward"):
        step.backward(device.zeros((3, 5), np.float64))
    with pytest.raises(ValueError, match=r"fc6: an input of shape \(6,\)"):
        step.forward(device.zeros((3, 6), np.float64))
    step.forward(device.zeros((3, 7), np.float64))
    with pytest.raises(ValueError, match=r"fc6\+relu6: dy has shape \(3, 4\)"):
        step.backward(device.zeros((3, 4), np.float64))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_training_step_allocates_nothing_for_its_rounded_copies(precision):
    linear = Linear(7, 5).to("cpu")
    step = LinearStep([linear], Device("cpu"), np.float32, precision)
    x, dy = np.ones((4, 7), np.float32), np.ones((4, 5), np.float32)
    taken = []
    for _ in range(2):
        step.forward(x)
        step.backward(dy)
        taken.append((step.x.ctypes.data, step.w.ctypes.data))
    assert taken[0] == taken[1]
    assert step.x.ctypes.data != x.ctypes.data
