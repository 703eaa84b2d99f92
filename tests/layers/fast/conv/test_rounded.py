"""In TF32 what a convolution multiplies is rounded as it is written: products keep their bits.

The steps of a plan, which round for each other, against the same steps that know of no other.
"""

import numpy as np
import pytest

from layers import Conv2D, MaxPool2D, ReLU, Tanh
from layers.fast.bfloat16 import round_tf32
from layers.fast.conv.steps import TensorConv
from layers.fast.max_pool import MaxPoolRows
from layers.fast.plan import plan

pytestmark = pytest.mark.full  # three whole tiles a direction, twice


def net(device):
    """Convolution, pooling, two convolutions; whole chunks, so that no image is rearranged."""
    layers = [
        *(Conv2D(8, 8, 2), ReLU(), MaxPool2D(3, 2), Conv2D(8, 8, 2, padding=1), ReLU()),
        *(Conv2D(8, 12, 2), ReLU()),
    ]
    rng = np.random.default_rng(2)
    for layer in layers:
        layer.to(device)
        for parameter in layer.parameters():
            parameter.value[...] = device.array(rng.standard_normal(parameter.value.shape))
    return layers


def alone(layers, device):
    """The same steps, none of which follows another."""
    parts = layers[:2], layers[2:3], layers[3:5], layers[5:]
    kinds = TensorConv, MaxPoolRows, TensorConv, TensorConv
    return [kind(part, device, np.float32, "tf32") for kind, part in zip(kinds, parts, strict=True)]


def run(steps, device):
    """y, dx, and by step dw and db."""
    rng = np.random.default_rng(3)
    y = device.array(rng.standard_normal((1, 8, 7, 8)).astype(np.float32))
    for step in steps:
        y = step.forward(y)
    found = [device.to_host(y).copy()]
    dy = device.array(rng.standard_normal(y.shape).astype(np.float32))
    for step in reversed(steps):
        dy = step.backward(dy)
    found.append(device.to_host(dy).copy())
    gradients = {
        parameter.name: device.to_host(parameter.grad).copy()
        for step in steps
        for layer in step.layers
        for parameter in layer.parameters()
    }
    return found, gradients, steps


@pytest.fixture(scope="module")
def both(cuda_device):
    """What the plan's steps give, and those that know of no other."""
    layers = net(cuda_device)
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            parameter.name = f"{number} {parameter.name}"
    together = plan(layers, cuda_device, np.float32, "tf32")
    return run(together, cuda_device), run(alone(layers, cuda_device), cuda_device)


def test_products_keep_their_bits(both):
    (found, gradients, steps), (right, expected, _) = both
    for actual, wanted in zip(found, right, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    for name, wanted in expected.items():
        if not name.endswith("bias"):
            np.testing.assert_array_equal(gradients[name], wanted, name)
    assert [step.y_is_rounded for step in steps] == [False, True, True, False]
    assert [step.dz_is_rounded for step in steps if isinstance(step, TensorConv)] == [True] * 3


def test_a_bias_has_the_sum_of_what_was_not_rounded_where_dz_is_made(both):
    (_, gradients, _), (_, expected, _) = both
    same = {n: np.array_equal(gradients[n], expected[n]) for n in expected if n.endswith("bias")}
    # dz of the convolution in the middle is the dx that the last one masks and rounds.
    assert list(same.values()) == [True, False, True]
    for name in same:
        np.testing.assert_allclose(gradients[name], expected[name], rtol=2e-3, atol=2e-3)


def test_what_is_handed_on_is_rounded(both):
    (_, _, steps), _ = both
    for step in steps:
        y = np.asarray(step.device.to_host(step.y))
        rounded = round_tf32(y, np.empty_like(y))
        assert np.array_equal(rounded, y) == step.y_is_rounded


def test_a_layer_of_the_book_before_a_convolution_rounds_nothing(cuda_device):
    layers = [Tanh().to(cuda_device), Conv2D(4, 4, 1).to(cuda_device)]
    x = cuda_device.array(np.linspace(-2, 2, 16, dtype=np.float32).reshape(1, 2, 2, 4))
    _, found, steps = run_from(plan(layers, cuda_device, np.float32, "tf32"), x)
    _, right, _ = run_from([layers[0], TensorConv(layers[1:], cuda_device, np.float32, "tf32")], x)
    np.testing.assert_array_equal(found, right)
    assert not steps[1].x_is_rounded


def run_from(steps, x):
    """y and dx, for a dy of ones."""
    device = steps[0].device
    for step in steps:
        x = step.forward(x)
    y = device.to_host(x).copy()
    dy = device.array(np.ones(y.shape, np.float32))
    for step in reversed(steps):
        dy = step.backward(dy)
    return y, device.to_host(dy).copy(), steps
