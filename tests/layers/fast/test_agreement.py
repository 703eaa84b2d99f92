"""fast == simple: what the plan puts in the place of layers gives what the layers give.

Every layer that has a step, on every device, in float32 and float64: y, dx and the gradients of
all parameters, of the same layers with the same numbers. The formula tests of tests/layers/ hold
both against independent oracles; here one is held against the other, in nets as well.
"""

import numpy as np
import oracles
import pytest
from layer_cases import CONV, LINEAR, LRN, POOL
from marks import long
from tiers import Chain, computing, layers_of, loss_of

from layers import Conv2D, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool2D, ReLU, Tanh
from layers.fast.lrn import MOST_HALF, TILE

both_dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])

BEHIND_LINEAR = {
    "linear": lambda: (),
    "relu": lambda: (ReLU(),),
    "paper dropout": lambda: (ReLU(), Dropout(0.4)),
    "inverted dropout": lambda: (ReLU(), Dropout(0.4, mode="inverted")),
}


def conv_of(title, algorithm="auto"):
    (_, _, _, channels), filters, size, stride, padding, groups = CONV[title]
    return Conv2D(channels, filters, size, stride, padding, groups, algorithm)


def prepare(layers, device, dtype):
    """The layers on `device`; the same weights and masks every time."""
    rng = np.random.default_rng(4)
    for layer in layers:
        layer.to(device, dtype)
        layer.set_seed(5, 3)
        layer.set_step(7)
        for parameter in layer.parameters():
            values = rng.standard_normal(parameter.value.shape)
            parameter.value[...] = device.array(values, dtype)
    return layers


def output_shape(layers, image):
    for layer in layers:
        image = layer.output_shape(image)
    return image


def results(layers, tier, x, dy, train=True):
    """y, dx and all gradients of one tier; `layers` as `prepare` returns them."""
    step = Chain(layers, layers) if tier == "simple" else computing(layers, tier)
    for layer in layers:
        layer.set_step(7)
    found = [*oracles.run(step, x, dy, train), *oracles.gradients(step)]
    assert all(each.dtype == x.dtype for each in found if each is not None)
    return step, found


def compare(layers, shape, device, dtype, *, train=True, same_bits=False, spoil=None, terms=100):
    """Both tiers on the same random x and dy. Returns the fast step and its results.

    terms: of `oracles.rounding`. Sums here have fewer than 100 terms, and the tiers differ in their
    order and in how often a power is rounded: in float64 that allows 2.2e-14 of the largest
    element, in float32 1.2e-5.
    """
    prepare(layers, device, dtype)
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal((shape[0], *output_shape(layers, shape[1:]))).astype(dtype)
    if spoil:
        spoil(x, dy)
    _, right = results(layers, "simple", x, dy, train)
    kept = x.copy(), dy.copy()
    step, mine = results(layers, "fast", x, dy, train)
    for each, before in zip((x, dy), kept, strict=True):
        np.testing.assert_array_equal(each, before)
    for actual, expected in zip(mine, right, strict=True):
        if same_bits:
            np.testing.assert_array_equal(actual, expected)
            np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))
        else:
            oracles.assert_close(actual, expected, dtype, terms)
    return step, mine


# --- convolution


@both_dtypes
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("title", CONV)
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_im2col_gives_what_the_seven_loops_give(title, relu, dtype, device):
    layers = [conv_of(title)] + [ReLU()] * relu
    step, _ = compare(layers, CONV[title][0], device, dtype)
    assert step.layers == layers


@pytest.mark.full
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("title", ["stride 2, padding only after", "three groups", "one number"])
def test_register_tiles_give_what_the_direct_kernels_give(title, relu, cuda_device):
    layers = [conv_of(title, "tiled")] + [ReLU()] * relu
    step, _ = compare(layers, CONV[title][0], cuda_device, np.float32)
    assert step.layers == layers


@pytest.mark.parametrize("dtype", [np.float32, long(np.float64)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "title", ["stride 2, padding only after", long("three groups"), "one number"]
)
def test_shared_memory_gives_the_bits_of_the_direct_kernels(title, relu, dtype, cuda_device):
    layers = [conv_of(title, "shared")] + [ReLU()] * relu
    prepare(layers, cuda_device, dtype)
    rng = np.random.default_rng(3)
    x = rng.standard_normal(CONV[title][0]).astype(dtype)
    dy = rng.standard_normal((len(x), *output_shape(layers, x.shape[1:]))).astype(dtype)
    _, right = results(layers, "simple", x, dy)
    step, mine = results(layers, "fast", x, dy)
    assert step.layers == layers
    for actual, expected in zip(mine[:3], right[:3], strict=True):  # y, dx, dw
        np.testing.assert_array_equal(actual, expected)
    oracles.assert_close(mine[3], right[3], dtype)  # db is summed in another order


@both_dtypes
def test_by_default_the_simulated_gpu_runs_the_book(dtype, cuda_device):
    if not cuda_device.is_simulated:
        pytest.skip("a GPU takes register tiles")
    title = "two groups, stride 2"
    step, _ = compare([conv_of(title), ReLU()], CONV[title][0], cuda_device, dtype, same_bits=True)
    assert step.steps == step.layers


def test_register_tiles_apply_the_relu_themselves(cuda_device, monkeypatch):
    """The same bits as by the tiled step and the ReLU apart, and no launch for the ReLU."""
    rng = np.random.default_rng(4)
    x = cuda_device.array(rng.standard_normal((1, 4, 5, 4)), np.float32)
    conv, relu = prepare([Conv2D(4, 8, 3, padding=1, algorithm="tiled"), ReLU()], cuda_device, "f4")
    apart = cuda_device.to_host(relu.forward(computing(conv, "fast").forward(x))).copy()
    step = computing([conv, relu], "fast")
    monkeypatch.setattr(ReLU, "forward", None)  # must not be called
    together = cuda_device.to_host(step.forward(x))
    assert (apart == 0).any() and (apart > 0).any()
    np.testing.assert_array_equal(apart, together)


@pytest.mark.parametrize("train", [True, False])
@both_dtypes
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_several_convolutions_in_a_row(train, dtype, device):
    layers = [
        *(Conv2D(5, 4, 3, 2, (0, 2)), ReLU(), Conv2D(4, 6, 2, padding=1, groups=2), ReLU()),
        *(Conv2D(6, 3, 1), Conv2D(3, 2, 2)),
    ]
    step, _ = compare(layers, (2, 6, 7, 5), device, dtype, train=train)
    assert [len(each.layers) for each in step.steps] == [2, 2, 1, 1]


@pytest.mark.full
def test_several_convolutions_in_a_row_by_register_tiles(cuda_device):
    layers = [
        *(Conv2D(5, 4, 3, 2, (0, 2), algorithm="tiled"), ReLU()),
        *(Conv2D(4, 6, 2, padding=1, groups=2, algorithm="tiled"), ReLU()),
        Conv2D(6, 3, 1, algorithm="tiled"),
    ]
    step, _ = compare(layers, (1, 6, 7, 5), cuda_device, np.float32)
    assert [len(each.layers) for each in step.steps] == [2, 2, 1]


# --- normalization and pooling


WIDE = {
    "several tiles, rows across their borders": ((1, 3, 4, 97), 5, 2.0, 0.5, 0.75, 1),
    "a row longer than a tile": ((1, 1, 1, TILE + 9), 5, 2.0, 0.5, 0.75, 1),
    "just a tile": ((1, 1, 4, TILE // 4), 5, 2.0, 0.5, 0.75, 2),
    "the widest window": ((1, 1, 2, TILE // 2 + 3), 2 * MOST_HALF + 1, 2.0, 0.5, 1.1, 1),
}


@both_dtypes
@pytest.mark.parametrize("title", [*LRN, *WIDE])
def test_normalization(title, dtype, device):
    shape, *constants = {**LRN, **WIDE}[title]
    layers = [LocalResponseNorm(*constants)]
    step, _ = compare(layers, shape, device, dtype)
    assert step is not layers[0]


@both_dtypes
@pytest.mark.parametrize("title", POOL)
def test_pooling_has_the_same_bits(title, dtype, device):
    shape, size, stride = POOL[title]
    layers = [MaxPool2D(size, stride)]
    step, _ = compare(layers, shape, device, dtype, same_bits=True)
    by_rows = (size, stride) == (3, 2)
    assert (step is not layers[0]) == (by_rows or not device.is_cuda)


def test_among_equals_the_first_wins_and_sums_have_the_same_order(device):
    def spoil(x, dy):
        rng = np.random.default_rng(5)
        x[...] = rng.integers(0, 3, x.shape)  # ties everywhere
        x[0, 2, 2] = x[0, 4, 6] = 9  # each wins four windows
        dy *= 10.0 ** rng.integers(-8, 8, dy.shape)

    compare([MaxPool2D(3, 2)], (2, 9, 11, 4), device, np.float32, same_bits=True, spoil=spoil)


def test_not_a_number_and_infinities_win_in_both(device):
    def spoil(x, dy):
        rng = np.random.default_rng(6)
        x[rng.random(x.shape) < 0.2] = np.nan
        x[rng.random(x.shape) < 0.2] = -np.inf
        x[1, :3, :3] = -np.inf
        x[1, 4:, 6:] = np.nan
        dy[0, 0, 0] = np.nan
        dy[0, 1, 1] = -0.0

    compare([MaxPool2D(3, 2)], (2, 7, 9, 3), device, np.float64, same_bits=True, spoil=spoil)


# --- fully connected


@pytest.mark.parametrize("train", [True, False])
@both_dtypes
@pytest.mark.parametrize("sizes", LINEAR)
@pytest.mark.parametrize("kind", BEHIND_LINEAR)
def test_fully_connected(kind, sizes, dtype, train, device):
    images, inputs, outputs = sizes
    layers = [Linear(inputs, outputs), *BEHIND_LINEAR[kind]()]
    step, mine = compare(layers, (images, inputs), device, dtype, train=train)
    assert step.layers == layers and all(layer.y is step.y for layer in layers)
    if layers[1:]:  # the masks of ReLU and dropout are the layers'
        y, right = mine[0], results(layers, "simple", *again(sizes, dtype), train)[1][0]
        np.testing.assert_array_equal(y > 0, right > 0)


def again(sizes, dtype):
    """The x and dy of `compare`."""
    images, inputs, outputs = sizes
    rng = np.random.default_rng(3)
    x = rng.standard_normal((images, inputs)).astype(dtype)
    return x, rng.standard_normal((images, outputs)).astype(dtype)


@pytest.mark.parametrize("kind", BEHIND_LINEAR)
def test_not_a_number_passes_through_a_fully_connected_step(kind, device):
    def spoil(x, dy):
        x[1, 2] = np.nan
        dy[0, 1] = np.nan

    layers = [Linear(7, 5), *BEHIND_LINEAR[kind]()]
    _, (y, _, dw, _) = compare(layers, (3, 7), device, np.float64, spoil=spoil)
    assert np.isnan(y[1]).any() and not np.isnan(y[0]).any()
    assert np.isnan(dw).any()


# --- what stays itself


@both_dtypes
@pytest.mark.parametrize("kinds", [[Tanh], [ReLU], [lambda: Dropout(0.4)], [Flatten]])
def test_what_has_no_step_is_the_layer_itself(kinds, dtype, device):
    layers = [kind() for kind in kinds]
    step, _ = compare(layers, (2, 6, 7, 5), device, dtype, same_bits=True)
    assert step is layers[0]


# --- whole nets


def net(tanh):
    """One of each, in AlexNet's order; small enough for the simulator."""
    between = Tanh() if tanh else ReLU()
    return [
        *(Conv2D(3, 4, 3, 2, (0, 1)), between, LocalResponseNorm(3, alpha=0.5, groups=2)),
        *(MaxPool2D(3, 2), Conv2D(4, 6, 2, groups=2), ReLU(), Flatten()),
        *(Linear(12, 5), ReLU(), Dropout(0.4), Dropout(0.3, mode="inverted"), Linear(5, 4)),
    ]


@pytest.mark.parametrize("train", [True, False])
@both_dtypes
@pytest.mark.parametrize("tanh", [False, True])
def test_a_net_of_all_kinds(tanh, dtype, train, device):
    # Errors of twelve layers add up; each is that of a sum of fewer than 100 terms.
    step, _ = compare(net(tanh), (2, 11, 15, 3), device, dtype, train=train, terms=1000)
    assert [layer for each in step.steps for layer in layers_of(each)] == step.layers


def test_without_input_gradient_the_parameters_get_the_same(device):
    layers = prepare(net(False), device, np.float64)
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((2, 11, 15, 3)), rng.standard_normal((2, 4))
    wanted = results(layers, "fast", x, dy)[1]
    layers[0].input_gradient = False
    for layer in layers:
        for parameter in layer.parameters():
            parameter.grad[...] = np.nan
    for tier in ("fast", "simple"):
        _, (y, dx, *gradients) = results(layers, tier, x, dy)
        assert dx is None
        for mine, right in zip((y, *gradients), (wanted[0], *wanted[2:]), strict=True):
            oracles.assert_close(mine, right, np.float64)


# --- the loss


@both_dtypes
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (130, 3), (2, 129), (1, 300)])
def test_the_loss(shape, dtype, device):
    rng = np.random.default_rng(6)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(shape[1], size=shape[0])
    found = []
    for tier in ("fast", "simple"):
        loss = loss_of(tier, device, dtype)
        value = loss.forward(device.array(logits), labels)
        arrays = loss.probabilities, loss.losses, loss.backward()
        found.append([value, *(device.to_host(each).copy() for each in arrays)])
    for mine, right in zip(*found, strict=True):
        # An exponential of a difference near 10 adds some ten roundings to those of the sum.
        oracles.assert_close(mine, right, dtype)
