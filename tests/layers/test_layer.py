"""The contract of `layers/layer.py`, held against every layer and step."""

import tracemalloc

import numpy as np
import oracles
import pytest
from marks import long
from tiers import TIERS, computing, layers_of

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    Parameter,
    ReLU,
    Tanh,
)
from layers.layer import Buffers

# Layers, and the shape of one image that they take.
LAYERS = {
    "Conv2D": ([lambda: Conv2D(5, 4, 3, stride=2, padding=(0, 2))], (6, 7, 5)),
    "Conv2D in groups": ([lambda: Conv2D(4, 6, 2, padding=1, groups=2)], (3, 5, 4)),
    "MaxPool2D": ([lambda: MaxPool2D(3, 2)], (6, 7, 5)),
    "MaxPool2D with gaps": ([lambda: MaxPool2D(2, 3)], (6, 7, 3)),
    "LocalResponseNorm": ([lambda: LocalResponseNorm(3, alpha=0.5)], (3, 4, 5)),
    "LocalResponseNorm in groups": (
        [lambda: LocalResponseNorm(5, alpha=0.5, groups=2)],
        (3, 2, 6),
    ),
    "ReLU": ([ReLU], (6, 7, 5)),
    "Tanh": ([Tanh], (6, 7, 5)),
    "Dropout": ([lambda: Dropout(0.4)], (6, 7, 5)),
    "Dropout, inverted": ([lambda: Dropout(0.4, mode="inverted")], (6, 7, 5)),
    "Flatten": ([Flatten], (6, 7, 5)),
    "Linear": ([lambda: Linear(7, 5)], (7,)),
    # What only the fast tier computes together:
    "Conv2D, ReLU": ([lambda: Conv2D(5, 4, 3, stride=2, padding=(0, 2)), ReLU], (6, 7, 5)),
    "Conv2D, ReLU, shared": ([lambda: Conv2D(2, 3, 2, algorithm="shared"), ReLU], (3, 4, 2)),
    "Conv2D, ReLU, tiled": (
        [lambda: Conv2D(5, 4, 3, 2, (0, 2), algorithm="tiled"), ReLU],
        (6, 7, 5),
    ),
    "Linear, ReLU": ([lambda: Linear(7, 5), ReLU], (7,)),
    "Linear, ReLU, Dropout": ([lambda: Linear(7, 5), ReLU, lambda: Dropout(0.4)], (7,)),
}
SINGLE = [title for title, (kinds, _) in LAYERS.items() if len(kinds) == 1]
FLOAT32 = ("Conv2D, ReLU, tiled",)
"""Steps that there are in no other dtype."""

FAST = {
    "cpu": [
        *("Conv2D", "Conv2D in groups", "MaxPool2D", "MaxPool2D with gaps", "LocalResponseNorm"),
        *("LocalResponseNorm in groups", "Linear"),
        *("Conv2D, ReLU", "Linear, ReLU", "Linear, ReLU, Dropout"),
    ],
    "cuda:0": [
        *("MaxPool2D", "LocalResponseNorm", "LocalResponseNorm in groups", "Linear"),
        *("Conv2D, ReLU, shared", "Linear, ReLU", "Linear, ReLU, Dropout"),
    ],
}
"""By device: what has a step there."""

EVERY = [
    *[(title, "simple", device) for title in SINGLE for device in FAST],
    *[(title, "fast", device) for device, titles in FAST.items() for title in titles],
]
TILED = ("Conv2D, ReLU, tiled", "fast", "cuda:0")
"""Takes seconds in the simulator: only where the buffers that it adds could matter."""
OWN_OUTPUT = [each for each in EVERY if each[0] != "Flatten"]  # a view of its input


def over(cases):
    return pytest.mark.parametrize(("title", "tier", "device"), cases, indirect=["device"])


every_layer = over(EVERY)
book_layer = pytest.mark.parametrize("title", SINGLE)


def make(title, tier, device, dtype=np.float64):
    """What computes the layers, with random weights, and a function that draws x and dy.

    The function takes a batch size. Layers, not a step, in tier "simple".
    """
    kinds, image = LAYERS[title]
    dtype = np.float32 if title in FLOAT32 else dtype
    layers = [kind().to(device, dtype) for kind in kinds]
    rng = np.random.default_rng(13)
    for parameter in (p for layer in layers for p in parameters_of(layer)):
        values = rng.standard_normal(parameter.value.shape)
        parameter.value[...] = device.array(values, dtype)
    shape = image
    for layer in layers:
        shape = layer.output_shape(shape)

    def draw(images):
        # Standard normal numbers: no ties for pooling, and with this seed none near 0 for ReLU.
        x = rng.standard_normal((images, *image)).astype(dtype)
        return x, rng.standard_normal((images, *shape)).astype(dtype)

    layer = computing(layers, tier)
    assert (layer is layers[0]) == (tier == "simple")
    return layer, draw


def parameters_of(layer):
    return [parameter for each in layers_of(layer) for parameter in each.parameters()]


def everything(layer, x, dy):
    """y, dx and all parameter gradients of training step 0, as host copies."""
    for each in layers_of(layer):
        each.set_step(0)
    return *oracles.run(layer, x, dy), *oracles.gradients(layer)


def other_than(dtype):
    """The other of the two dtypes."""
    return np.dtype(np.float64 if dtype == np.float32 else np.float32)


def address(array):
    """Where an array's memory begins."""
    return array.data.ptr if hasattr(array, "get") else array.ctypes.data


# --- host and kernels


@pytest.mark.parametrize("dtype", [long(np.float64), np.float32])
@book_layer
def test_kernels_agree_with_the_host(title, dtype, cuda_device):
    layer, draw = make(title, "simple", cuda_device, dtype)
    x, dy = draw(2)
    kernels = everything(layer, x, dy)
    on_host = everything(layer.to("cpu"), x, dy)
    for mine, right in zip(kernels, on_host, strict=True):
        assert mine.dtype == right.dtype == dtype
        oracles.assert_close(mine, right, dtype)


# --- what comes in


@every_layer
def test_strided_arrays_give_the_same_as_contiguous_ones(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    expected = everything(layer, x, dy)

    def every_second(array):
        wide = device.zeros((*array.shape, 2), array.dtype)
        wide[..., 1] = device.array(array)
        return wide[..., 1]

    def transposed(array):
        return device.array(array.T).T

    for strided in (every_second, transposed):
        for each in layers_of(layer):
            each.set_step(0)
        y = device.to_host(layer.forward(strided(x))).copy()
        dx = device.to_host(layer.backward(strided(dy))).copy()
        for mine, right in zip((y, dx, *oracles.gradients(layer)), expected, strict=True):
            np.testing.assert_array_equal(mine, right)


@over([*EVERY, TILED])
def test_x_and_dy_are_left_as_they_were(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    x_device, dy_device = device.array(x), device.array(dy)
    values = [device.to_host(parameter.value).copy() for parameter in parameters_of(layer)]
    layer.forward(x_device)
    layer.backward(dy_device)
    np.testing.assert_array_equal(device.to_host(x_device), x)
    np.testing.assert_array_equal(device.to_host(dy_device), dy)
    for parameter, value in zip(parameters_of(layer), values, strict=True):
        np.testing.assert_array_equal(device.to_host(parameter.value), value)


@every_layer
def test_another_dtype_is_refused_by_name(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    other = other_than(layer.dtype)
    with pytest.raises(ValueError, match=f"x is {other}, the layer computes in {layer.dtype}"):
        layer.forward(device.array(x, other))
    layer.forward(device.array(x))
    with pytest.raises(ValueError, match=f"dy is {other}, the layer computes in {layer.dtype}"):
        layer.backward(device.array(dy, other))
    with pytest.raises(ValueError, match="x is int64"):
        layer.forward(device.array(x, np.int64))


@every_layer
def test_a_dy_of_another_shape_is_refused_with_both_shapes(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    y = layer.forward(device.array(x))
    for shape in ((3, *dy.shape[1:]), (2, dy[0].size + 1), (*dy.shape, 1), dy.shape[1:]):
        with pytest.raises(ValueError) as caught:
            layer.backward(device.zeros(shape, layer.dtype))
        assert str(shape) in str(caught.value)
        assert str(y.shape) in str(caught.value)


@every_layer
def test_an_input_of_no_images_or_one_dimension_is_refused(title, tier, device):
    layer, draw = make(title, tier, device)
    x, _ = draw(2)
    for shape in ((0, *x.shape[1:]), (5,)):
        with pytest.raises(ValueError) as caught:
            layer.forward(device.zeros(shape, layer.dtype))
        assert str(shape) in str(caught.value)


@every_layer
def test_lists_are_refused_and_told_what_to_use(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    with pytest.raises(ValueError, match=r"needs x as a \w+ array.*list.*device\.array"):
        layer.forward(x.tolist())
    layer.forward(device.array(x))
    with pytest.raises(ValueError, match=r"needs dy as a \w+ array.*list.*device\.array"):
        layer.backward(dy.tolist())


# --- order of calls


@every_layer
def test_backward_needs_a_forward(title, tier, device):
    layer, draw = make(title, tier, device)
    _, dy = draw(2)
    with pytest.raises(RuntimeError, match="needs a forward"):
        layer.backward(device.array(dy))


@every_layer
def test_backward_needs_a_new_forward_after_a_move(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    layer.forward(device.array(x))
    dtype = layer.dtype if title in FLOAT32 else other_than(layer.dtype)
    for each in layers_of(layer):
        each.to(device, dtype)
    layer = computing(layers_of(layer), tier)  # a net plans again after a move
    with pytest.raises(RuntimeError, match="needs a forward"):
        layer.backward(device.array(dy, dtype))


@every_layer
def test_backward_twice_gives_the_same_twice(title, tier, device):
    """Gradients are overwritten, not added up."""
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    expected = everything(layer, x, dy)[1:]
    dx = device.to_host(layer.backward(device.array(dy))).copy()
    for mine, right in zip((dx, *oracles.gradients(layer)), expected, strict=True):
        np.testing.assert_array_equal(mine, right)


# --- buffers


@every_layer
def test_batches_of_changing_size_do_not_disturb_each_other(title, tier, device):
    layer, draw = make(title, tier, device)
    for images in (2, 1, 4, 3, 2):
        x, dy = draw(images)
        fresh, _ = make(title, tier, device)  # without buffers
        for mine, right in zip(everything(layer, x, dy), everything(fresh, x, dy), strict=True):
            np.testing.assert_array_equal(mine, right)


@over([*EVERY, TILED])
def test_nothing_depends_on_what_the_buffers_held(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = draw(2)
    expected = everything(layer, x, dy)
    for array in [*layer.buffer._flat.values(), *(p.grad for p in parameters_of(layer))]:
        array[...] = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    for mine, right in zip(everything(layer, x, dy), expected, strict=True):
        np.testing.assert_array_equal(mine, right)


@over([*OWN_OUTPUT, TILED])
def test_results_stay_in_the_same_memory_from_step_to_step(title, tier, device):
    layer, draw = make(title, tier, device)
    x, dy = (device.array(array) for array in draw(3))
    gradients = [address(parameter.grad) for parameter in parameters_of(layer)]
    y, dx = layer.forward(x), layer.backward(dy)
    assert layer.forward(x) is y
    assert layer.backward(dy) is dx
    layer.forward(x[:2], train=False)  # the smaller last batch of an evaluation
    assert address(layer.forward(x)) == address(y)
    assert address(layer.backward(dy)) == address(dx)
    assert [address(parameter.grad) for parameter in parameters_of(layer)] == gradients


LARGE = {
    "Conv2D": ([Conv2D(5, 4, 3, stride=2, padding=(0, 2))], (31, 37, 5)),
    "Conv2D in groups": ([Conv2D(4, 6, 2, padding=1, groups=2)], (21, 27, 4)),
    "MaxPool2D": ([MaxPool2D(3, 2)], (31, 37, 5)),
    "LocalResponseNorm": ([LocalResponseNorm(3)], (21, 27, 5)),
    "ReLU": ([ReLU()], (21, 27, 5)),
    "Tanh": ([Tanh()], (21, 27, 5)),
    "Dropout": ([Dropout(0.4)], (21, 27, 5)),
    "Flatten": ([Flatten()], (21, 27, 5)),
    "Linear": ([Linear(1500, 900)], (1500,)),
    "Conv2D, ReLU": ([Conv2D(5, 4, 3, stride=2, padding=(0, 2)), ReLU()], (31, 37, 5)),
    "Linear, ReLU, Dropout": ([Linear(1500, 900), ReLU(), Dropout(0.4)], (1500,)),
}
LARGE_TIERS = [
    (title, tier) for title in LARGE for tier in TIERS if tier == "simple" or title in FAST["cpu"]
]


@pytest.mark.parametrize(("title", "tier"), LARGE_TIERS)
def test_a_training_step_allocates_nothing_on_the_host(title, tier):
    layers, image = LARGE[title]
    layer = computing([each.to("cpu", np.float32) for each in layers], tier)
    x = np.random.default_rng(0).standard_normal((40, *image), np.float32)
    dy = np.ones_like(layer.forward(x))
    layer.backward(dy)
    peaks = []
    tracemalloc.start()
    for _ in range(3):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        layer.forward(x)
        layer.backward(dy)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    # Small Python objects come and go, and NumPy broadcasts through a buffer of 8192 numbers. What
    # a step allocates, each of three does; what other threads of this process do, not each.
    assert min(peaks) < 50_000 < min(x.nbytes, dy.nbytes) / 2


def test_a_smaller_buffer_is_a_view_of_the_larger_one(device):
    buffers = Buffers(device, np.float32)
    large = buffers("a", (3, 4, 5))
    assert large.shape == (3, 4, 5)
    assert large.dtype == np.float32
    small = buffers("a", (2, 4, 5))
    assert address(small) == address(large)
    assert address(buffers("a", (3, 4, 5))) == address(large)
    assert buffers("a", (5, 2)).shape == (5, 2)
    assert buffers("a", (4, 4, 5)).shape == (4, 4, 5)
    assert buffers("b", (2, 3), np.int32).dtype == np.int32


def test_buffers_of_two_names_are_two_arrays(device):
    buffers = Buffers(device, np.float64)
    a, b = buffers("a", (4,)), buffers("b", (4,))
    a[...], b[...] = 1, 2
    np.testing.assert_array_equal(device.to_host(a), 1)


def test_layers_do_not_share_buffers(device):
    one, two = (ReLU().to(device, np.float64) for _ in range(2))
    x = device.array(np.ones((1, 4)))
    assert address(one.forward(x)) != address(two.forward(x))


# --- device and dtype


@book_layer
def test_a_moved_layer_keeps_its_weights_and_changes_their_dtype(title, device):
    layer, _ = make(title, "simple", device, np.float32)
    before = [device.to_host(parameter.value).copy() for parameter in layer.parameters()]
    assert layer.to(device, np.float64) is layer
    assert layer.dtype == np.float64
    for parameter, value in zip(layer.parameters(), before, strict=True):
        assert parameter.value.dtype == parameter.grad.dtype == np.float64
        assert parameter.value.shape == parameter.grad.shape
        np.testing.assert_array_equal(device.to_host(parameter.value), value)
    layer.to("cpu")  # no dtype: as before
    assert layer.dtype == np.float64
    assert layer.device == Device("cpu")


@book_layer
def test_numbers_that_are_not_float32_or_float64_are_refused(title):
    layer = LAYERS[title][0][0]()
    for dtype in (int, "int32", np.float16, np.complex64):
        with pytest.raises(ValueError, match=f"{np.dtype(dtype)} is not supported"):
            layer.to("cpu", dtype)


def test_a_parameter_says_its_name_shape_and_dtype():
    parameter = Parameter("conv1.weight", (2, 3))
    assert repr(parameter) == "Parameter('conv1.weight', (2, 3), float32)"
    assert parameter.lr_multiplier == parameter.decay_multiplier == 1
