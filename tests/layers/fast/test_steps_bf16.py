"""Every layer on bfloat16 arrays: what float32 gives for the same numbers, rounded once.

x, dy and weights are rounded first, so that both sides start alike. The host then computes in
float32; where a derivative looks at y again, y is the rounded one, as it is on a GPU.
"""

import numpy as np
import pytest

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from layers.fast.bfloat16 import round_bf16, to_bits
from layers.fast.plan import plan
from layers.fast.precision import host_values

IMAGE = (2, 6, 7, 5)

# Layers, the shape of x, and whether they make one step.
CASES = {
    "ReLU": ([ReLU], IMAGE, False),
    "Tanh": ([Tanh], IMAGE, False),
    "Dropout": ([lambda: Dropout(0.4)], IMAGE, False),
    "Dropout, inverted": ([lambda: Dropout(0.4, mode="inverted")], IMAGE, False),
    "Flatten": ([Flatten], IMAGE, False),
    "MaxPool2D": ([lambda: MaxPool2D(2, 1)], IMAGE, False),
    "MaxPool2D by rows": ([lambda: MaxPool2D(3, 2)], IMAGE, True),
    "LocalResponseNorm": ([lambda: LocalResponseNorm(3, alpha=0.5)], IMAGE, False),
    "LocalResponseNorm by rows": ([lambda: LocalResponseNorm(3, alpha=0.5)], IMAGE, True),
    "Linear": ([lambda: Linear(7, 5)], (3, 7), False),
    "Linear, one step": ([lambda: Linear(7, 5)], (3, 7), True),
    "Linear, ReLU": ([lambda: Linear(7, 5), ReLU], (3, 7), True),
    "Linear, ReLU, Dropout": ([lambda: Linear(7, 5), ReLU, lambda: Dropout(0.5)], (3, 7), True),
    "Conv2D": ([lambda: Conv2D(5, 4, 2, 2, (1, 0))], IMAGE, False),
    "Conv2D in groups, ReLU": ([lambda: Conv2D(4, 6, 2, groups=2), ReLU], (2, 3, 4, 4), True),
}


def rounded(values):
    """float32 numbers that are bfloat16."""
    values = np.ascontiguousarray(values, np.float32)
    return round_bf16(values, np.empty_like(values))


def make(title, device, precision):
    """The layers of a case with weights that are bfloat16, and the steps that compute them."""
    kinds, _, one_step = CASES[title]
    layers = [kind() for kind in kinds]
    rng = np.random.default_rng(11)
    for layer in layers:
        layer.to(device, "float32", precision)
        for parameter in layer.parameters():
            values = rounded(rng.standard_normal(parameter.value.shape))
            parameter.value[...] = device.array(values)
    steps = plan(layers) if one_step else layers
    assert len(steps) == 1
    return layers, steps[0]


def on_host(title, x, dy):
    """y, dx and the gradients of parameters by the host's float32."""
    layers, _ = make(title, Device("cpu"), "fp32")
    y = x
    for layer in layers:
        y = layer.forward(y)
    exact = y.copy()
    looks_again = len(layers) == 1 and "rows" not in title
    if looks_again:
        round_bf16(y, y)
    for layer in reversed(layers):
        dy = layer.backward(dy)
    return exact, dy, [parameter.grad for layer in layers for parameter in layer.parameters()]


def assert_rounded_once(mine, right):
    """`mine` is `right` rounded to bfloat16, but for what float32 sums may differ by."""
    assert mine.shape == right.shape
    np.testing.assert_array_equal(mine, rounded(mine))
    slack = 1e-6 * np.abs(right).max()
    assert (np.abs(mine - right) <= 2**-8 * np.abs(right) + slack).all()


@pytest.mark.parametrize("title", CASES)
def test_a_layer_gives_what_float32_gives_rounded_once(title, cuda_device):
    rng = np.random.default_rng(12)
    layers, step = make(title, cuda_device, "bf16")
    shape = CASES[title][1]
    x = rounded(rng.standard_normal(shape))
    y = step.forward(cuda_device.array(to_bits(x)))
    dy = rounded(rng.standard_normal(y.shape))
    y_copy = host_values(y).copy()
    dx = host_values(step.backward(cuda_device.array(to_bits(dy))))
    right_y, right_dx, right_gradients = on_host(title, x, dy)
    assert_rounded_once(y_copy, right_y)
    assert_rounded_once(dx, right_dx)
    gradients = [parameter.grad for layer in layers for parameter in layer.parameters()]
    for mine, right in zip(gradients, right_gradients, strict=True):
        mine = cuda_device.to_host(mine)
        assert mine.dtype == np.float32
        # Sums of exact products of bfloat16 in float32: nothing is rounded to 16 bits.
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("kind", [ReLU, lambda: MaxPool2D(2, 1), lambda: MaxPool2D(3, 2), Tanh])
def test_not_a_number_and_infinity_go_through(kind, cuda_device):
    layer = kind().to(cuda_device, precision="bf16")
    (step,) = plan([layer])
    x = np.ones((1, 5, 5, 3), np.float32)
    x[0, 2, 2, 0], x[0, 2, 2, 1] = np.nan, np.inf
    y = host_values(step.forward(cuda_device.array(to_bits(x))))
    top = 1 if isinstance(layer, Tanh) else np.inf
    assert np.isnan(y[..., 0]).any() and (y[..., 1] == top).any()
    assert np.isfinite(y[..., 2]).all()


def test_dropout_draws_the_same_masks_in_every_precision(cuda_device):
    x = np.ones((3, 50), np.float32)
    masks = []
    for precision, values in (("fp32", x), ("bf16", to_bits(x))):
        layer = Dropout(0.4).to(cuda_device, precision=precision)
        masks.append(host_values(layer.forward(cuda_device.array(values))) > 0)
    np.testing.assert_array_equal(*masks)
    assert 0 < masks[0].sum() < masks[0].size
