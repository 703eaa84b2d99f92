"""Every layer in bf16: what float32 gives for the same numbers, rounded once.

x, dy and weights are rounded first, so that both sides start alike. The right side is the book's
layer on the host, in float32. On a GPU a layer of the book stands between conversions and never
sees a rounded y. On the host y is rounded in place, and derivatives that look at y again see that.
"""

import numpy as np
import pytest
from tiers import computing

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
from layers.fast.bfloat16 import from_bits, round_bf16, to_bits
from layers.fast.lrn import MOST_HALF
from layers.fast.precision import BITS

IMAGE = (2, 6, 7, 5)
TOO_WIDE = 2 * MOST_HALF + 3

# Layers, the shape of x, and the steps on a GPU without those that convert.
CASES = {
    "ReLU": ([ReLU], IMAGE, ["ReLU"]),
    "Tanh": ([Tanh], IMAGE, ["Tanh"]),
    "Dropout": ([lambda: Dropout(0.4)], IMAGE, ["Dropout"]),
    "Dropout, inverted": ([lambda: Dropout(0.4, mode="inverted")], IMAGE, ["Dropout"]),
    "Flatten": ([Flatten], IMAGE, ["FlattenStep"]),
    "MaxPool2D": ([lambda: MaxPool2D(2, 1)], IMAGE, ["MaxPool2D"]),
    "MaxPool2D by rows": ([lambda: MaxPool2D(3, 2)], IMAGE, ["MaxPoolRows"]),
    "LocalResponseNorm": ([lambda: LocalResponseNorm(3, alpha=0.5)], IMAGE, ["LRNRows"]),
    "LocalResponseNorm, β not 0.75": (
        [lambda: LocalResponseNorm(5, alpha=0.5, beta=1.3)],
        IMAGE,
        ["LRNRows"],
    ),
    "LocalResponseNorm, too wide for shared memory": (
        [lambda: LocalResponseNorm(TOO_WIDE, alpha=0.5)],
        IMAGE,
        ["LocalResponseNorm"],
    ),
    "Linear": ([lambda: Linear(7, 5)], (3, 7), ["LinearStep"]),
    "Linear, ReLU": ([lambda: Linear(7, 5), ReLU], (3, 7), ["LinearStep"]),
    "Linear, ReLU, Dropout": (
        [lambda: Linear(7, 5), ReLU, lambda: Dropout(0.5)],
        (3, 7),
        ["LinearStep"],
    ),
    "Conv2D": ([lambda: Conv2D(5, 4, 2, 2, (1, 0))], IMAGE, ["TensorConv"]),
    "Conv2D in groups, ReLU": (
        [lambda: Conv2D(4, 6, 2, groups=2), ReLU],
        (2, 3, 4, 4),
        ["TensorConv"],
    ),
}


def rounded(values):
    """float32 numbers that are bfloat16."""
    values = np.ascontiguousarray(values, np.float32)
    return round_bf16(values, np.empty_like(values))


def make(title, device):
    """The layers of a case, with weights that are bfloat16."""
    layers = [kind() for kind in CASES[title][0]]
    rng = np.random.default_rng(11)
    for layer in layers:
        layer.to(device)
        for parameter in layer.parameters():
            values = rounded(rng.standard_normal(parameter.value.shape))
            parameter.value[...] = device.array(values)
    return layers


def by_the_book(title, x, dy, round_y=False):
    """y, dx and the gradients of parameters by the host's float32."""
    layers = make(title, Device("cpu"))
    y = x
    for layer in layers:
        y = layer.forward(y)
    exact = y.copy()
    if round_y:
        round_bf16(y, y)
    for layer in reversed(layers):
        dy = layer.backward(dy)
    return exact, dy, [parameter.grad for layer in layers for parameter in layer.parameters()]


def assert_rounded_once(mine, right):
    """`mine` is `right` rounded to bfloat16, but for what float32 sums may differ by."""
    assert mine.shape == right.shape and mine.dtype == np.float32
    np.testing.assert_array_equal(mine, rounded(mine))
    slack = 1e-6 * np.abs(right).max()
    assert (np.abs(mine - right) <= 2**-8 * np.abs(right) + slack).all()


def assert_right(mine, right, device):
    y, dx, gradients = mine
    assert_rounded_once(y, right[0])
    assert_rounded_once(dx, right[1])
    for each, wanted in zip(gradients, right[2], strict=True):
        each = device.to_host(each)
        assert each.dtype == np.float32
        # Sums of exact products of bfloat16 in float32: nothing is rounded to 16 bits.
        np.testing.assert_allclose(each, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def gradients(layers):
    return [parameter.grad for layer in layers for parameter in layer.parameters()]


def drawn(title):
    """x and dy, bfloat16 numbers."""
    kinds, shape, _ = CASES[title]
    rng = np.random.default_rng(12)
    image = shape[1:]
    for kind in kinds:
        image = kind().output_shape(image)
    return rounded(rng.standard_normal(shape)), rounded(rng.standard_normal((shape[0], *image)))


@pytest.mark.parametrize("title", CASES)
def test_bfloat16_on_a_gpu_is_float32_rounded_once(title, cuda_device):
    """uint16 goes in and comes out, as between the steps of a net."""
    layers, (x, dy) = make(title, cuda_device), drawn(title)
    step = computing(layers, "fast", "bf16", float32_ends=False)
    steps = [type(each).__name__ for each in getattr(step, "steps", [step])]
    assert [kind for kind in steps if kind[:2] != "To"] == CASES[title][2]
    found = []
    for go, values in ((step.forward, x), (step.backward, dy)):
        bits = cuda_device.array(to_bits(values))
        out = go(bits)
        assert out.dtype == BITS
        found.append(from_bits(cuda_device.to_host(out)))
        np.testing.assert_array_equal(cuda_device.to_host(bits), to_bits(values))
    right = by_the_book(title, x, dy)
    assert_right((*found, gradients(layers)), right, cuda_device)


@pytest.mark.parametrize("title", CASES)
def test_a_whole_takes_and_gives_float32(title, device):
    """x and dy are rounded on their way in; the caller's arrays stay as they were."""
    layers, (x, dy) = make(title, device), drawn(title)
    rng = np.random.default_rng(13)
    # 2⁻¹⁰ of a number is less than half a step of bfloat16: rounding gives x and dy back.
    near_x, near_dy = (
        each * (1 + np.float32(2**-10) * rng.choice(np.float32([-1, 1]), each.shape))
        for each in (x, dy)
    )
    np.testing.assert_array_equal(rounded(near_x), x)
    step = computing(layers, "fast", "bf16")
    found = []
    for go, values in ((step.forward, near_x), (step.backward, near_dy)):
        given = device.array(values)
        out = go(given)
        assert out.dtype == np.float32
        found.append(device.to_host(out).copy())
        np.testing.assert_array_equal(device.to_host(given), values)
    looks_again = not device.is_cuda and len(layers) == 1
    right = by_the_book(title, x, dy, round_y=looks_again)
    assert_right((*found, gradients(layers)), right, device)


@pytest.mark.parametrize("kind", [ReLU, lambda: MaxPool2D(2, 1), lambda: MaxPool2D(3, 2), Tanh])
def test_not_a_number_and_infinity_go_through(kind, cuda_device):
    layer = kind().to(cuda_device)
    step = computing(layer, "fast", "bf16", float32_ends=False)
    x = np.ones((1, 5, 5, 3), np.float32)
    x[0, 2, 2, 0], x[0, 2, 2, 1] = np.nan, np.inf
    y = from_bits(cuda_device.to_host(step.forward(cuda_device.array(to_bits(x)))))
    top = 1 if isinstance(layer, Tanh) else np.inf
    assert np.isnan(y[..., 0]).any() and (y[..., 1] == top).any()
    assert np.isfinite(y[..., 2]).all()


def test_dropout_draws_the_same_masks_in_every_precision(device):
    x = np.ones((3, 50), np.float32)
    masks = []
    for precision in ("fp32", "tf32", "bf16"):
        step = computing(Dropout(0.4).to(device), "fast", precision)
        masks.append(device.to_host(step.forward(device.array(x))) > 0)
    for other in masks[1:]:
        np.testing.assert_array_equal(other, masks[0])
    assert 0 < masks[0].sum() < masks[0].size


def test_without_input_gradient_no_conversion_makes_one(device):
    layers, (x, dy) = make("Conv2D in groups, ReLU", device), drawn("Conv2D in groups, ReLU")
    step = computing(layers, "fast", "bf16")
    step.forward(device.array(x))
    step.backward(device.array(dy))
    wanted = [device.to_host(each).copy() for each in gradients(layers)]
    layers[0].input_gradient = False
    assert step.backward(device.array(dy)) is None
    for mine, right in zip(gradients(layers), wanted, strict=True):
        np.testing.assert_array_equal(device.to_host(mine), right)


def test_a_step_in_bf16_allocates_nothing_the_second_time(device):
    layers = make("Linear, ReLU, Dropout", device) + [Tanh().to(device)]
    step = computing(layers, "fast", "bf16")
    x, dy = (device.array(each) for each in drawn("Linear, ReLU, Dropout"))
    taken = []
    for _ in range(2):
        step.forward(x)
        step.backward(dy)
        taken.append([dict(part.buffer._flat) for part in (*step.steps, *layers)])
    for before, after in zip(*taken, strict=True):
        assert before.keys() == after.keys()
        assert all(before[name] is after[name] for name in before)
