"""Convolution: host and kernels against the formula written out, on shapes that fit nothing."""

import numpy as np
import oracles
import pytest

from layers import Conv2D, Device
from layers.fast.host import im2col as host

# image (N, H, W, C), filters, window, stride, padding, groups
CASES = {
    "plain": ((2, 6, 7, 5), 4, 3, 1, 0, 1),
    "stride 2, padding only after": ((2, 6, 7, 5), 4, 3, 2, (0, 2), 1),
    "stride 2, padding only before": ((2, 7, 6, 3), 5, 3, 2, (3, 0), 1),
    "stride 3 over a window of 2": ((2, 6, 7, 5), 3, 2, 3, 1, 1),
    "1x1": ((2, 5, 3, 7), 4, 1, 1, 0, 1),
    "1x1, stride 3": ((2, 5, 8, 3), 4, 1, 3, 0, 1),
    "window as large as the padded image": ((3, 3, 3, 2), 4, 5, 2, 1, 1),
    "window as high as the padded image": ((2, 3, 6, 2), 4, 4, 1, (1, 0), 1),
    "last rows and columns do not fit": ((2, 8, 9, 2), 3, 3, 4, 0, 1),
    "windows that lie in the padding": ((2, 3, 4, 2), 3, 2, 1, (3, 2), 1),
    "one pixel": ((3, 1, 1, 7), 4, 3, 1, 1, 1),
    "two groups, stride 2": ((2, 6, 5, 4), 6, 3, 2, (2, 1), 2),
    "three groups": ((2, 4, 5, 6), 9, 3, 1, 1, 3),
    "a group for each channel": ((1, 5, 4, 6), 6, 3, 1, 1, 6),
    "one filter": ((3, 4, 5, 3), 1, 2, 1, 0, 1),
}


def make(case, device, dtype):
    """The layer of `case` with random weights, an input, and what the formula gives for it."""
    shape, filters, size, stride, padding, groups = case
    rng = np.random.default_rng(11)
    layer = Conv2D(shape[3], filters, size, stride, padding, groups).to(device, dtype)
    x = rng.standard_normal(shape).astype(dtype)
    drawn = []

    def draw(y_shape):
        drawn.append(rng.standard_normal(y_shape).astype(dtype))
        return drawn[0]

    for parameter in layer.parameters():
        values = rng.standard_normal(parameter.value.shape).astype(dtype)
        parameter.value[...] = device.array(values)
    weights = (device.to_host(parameter.value) for parameter in layer.parameters())
    before, after = (padding, padding) if isinstance(padding, int) else padding
    # The float32 inputs, weights and dy are exact in float64, in which the oracle computes.
    expected = oracles.conv(x, *weights, draw, stride, before, after, groups)
    return layer, x, drawn[0], expected


def check(case, device, dtype):
    layer, x, dy, expected = make(case, device, dtype)
    actual = *oracles.run(layer, x, dy), *oracles.gradients(layer)
    for mine, right in zip(actual, expected, strict=True):
        assert mine.dtype == dtype
        # Sums of up to R·S·C or N·P·Q products: fewer than 100.
        oracles.assert_close(mine, right, dtype)


@pytest.mark.parametrize("title", CASES)
def test_forward_and_all_gradients_follow_the_formula(title, device):
    check(CASES[title], device, np.float64)


@pytest.mark.parametrize("title", ["stride 2, padding only after", "two groups, stride 2"])
def test_float32_follows_the_formula(title, device):
    check(CASES[title], device, np.float32)


def test_kernels_agree_with_the_host(cuda_device):
    case = (2, 6, 7, 4), 6, 3, 2, (0, 2), 2
    for dtype in (np.float64, np.float32):
        layer, x, dy, _ = make(case, cuda_device, dtype)
        kernels = *oracles.run(layer, x, dy), *oracles.gradients(layer)
        layer.to("cpu")
        on_host = *oracles.run(layer, x, dy), *oracles.gradients(layer)
        for mine, right in zip(kernels, on_host, strict=True):
            oracles.assert_close(mine, right, dtype)


def test_bias_gradient_adds_up_more_rows_than_a_block_has_threads(cuda_device):
    # 2 · 13 · 15 = 390 rows for 128 threads: some threads add four, some three.
    check(((2, 13, 15, 1), 2, 1, 1, 0, 1), cuda_device, np.float64)


@pytest.mark.parametrize("images_at_once", [1, 2])
def test_the_host_may_take_the_images_a_few_at_a_time(images_at_once, monkeypatch):
    # 3 images: with 2 at once the last part is smaller than the matrix of columns.
    case = (3, 6, 7, 4), 6, 3, 2, (0, 2), 2
    rows, columns, per_filter = 3, 4, 3 * 3 * 2
    limit = images_at_once * rows * columns * per_filter * 8
    monkeypatch.setattr(host, "COLUMN_BYTES", limit)
    at_once = host.images_at_once(case[0], (3, rows, columns, 6), (6, 3, 3, 2), 8)
    assert at_once == images_at_once
    check(case, Device("cpu"), np.float64)


def test_nothing_of_an_image_is_left_over_for_the_next(device):
    # The padding is part of an array that is used again, for images of any size.
    layer, x, dy, expected = make(CASES["windows that lie in the padding"], device, np.float64)
    large = np.full((4, 9, 8, 2), np.nan)
    oracles.run(layer, large, np.full((4, *layer.output_shape((9, 8, 2))), np.nan))
    actual = *oracles.run(layer, x, dy), *oracles.gradients(layer)
    for mine, right in zip(actual, expected, strict=True):
        oracles.assert_close(mine, right, np.float64)


def test_without_input_gradient_the_weights_gradients_are_the_same(device):
    layer, x, dy, (_, _, dw, db) = make(CASES["two groups, stride 2"], device, np.float64)
    layer.input_gradient = False
    for parameter in layer.parameters():
        parameter.grad[...] = np.nan
    _, dx = oracles.run(layer, x, dy)
    assert dx is None
    for mine, right in zip(oracles.gradients(layer), (dw, db), strict=True):
        oracles.assert_close(mine, right, np.float64)


def test_padding_may_be_a_number_or_a_pair():
    assert Conv2D(2, 3, 3, padding=2).output_shape((5, 6, 2)) == (7, 8, 3)
    assert Conv2D(2, 3, 3, padding=(2, 0)).output_shape((5, 6, 2)) == (5, 6, 3)


def test_multiply_adds_are_those_of_one_image():
    # conv2 of AlexNet: 27 · 27 places, 256 filters of 5 · 5 · 48.
    assert Conv2D(96, 256, 5, padding=2, groups=2).multiply_adds((27, 27, 96)) == 223_948_800


def test_parameters_are_weight_and_bias_in_channels_last_order():
    layer = Conv2D(6, 4, 3, groups=2)
    assert layer.parameters() == [layer.weight, layer.bias]
    assert layer.weight.value.shape == (4, 3, 3, 3)
    assert layer.bias.value.shape == (4,)


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 0},
        {"out_channels": 0},
        {"kernel_size": 0},
        {"stride": 0},
        {"groups": 0},
        {"padding": -1},
        {"padding": (0, -1)},
        {"groups": 3},
        {"in_channels": 9, "groups": 3},
        {"algorithm": "fastest"},
    ],
)
def test_nonsense_is_refused_by_the_constructor(arguments):
    with pytest.raises(ValueError, match="Conv2D"):
        Conv2D(**{"in_channels": 8, "out_channels": 4, "kernel_size": 3, **arguments})


def test_groups_that_do_not_divide_are_named_with_both_channel_counts():
    with pytest.raises(ValueError, match="3 groups.*9.*4"):
        Conv2D(9, 4, 3, groups=3)


def test_an_unknown_algorithm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'fastest'.*'host'.*'direct'"):
        Conv2D(8, 4, 3, algorithm="fastest")


def test_an_algorithm_is_refused_on_the_wrong_device(cuda_device):
    with pytest.raises(ValueError, match="'host' does not run on cuda:0"):
        Conv2D(2, 3, 3, algorithm="host").to(cuda_device)
    with pytest.raises(ValueError, match="'direct' does not run on cpu"):
        Conv2D(2, 3, 3, algorithm="direct").to("cpu")


def test_an_algorithm_that_runs_there_may_be_named(device):
    layer, x, dy, (y, dx, _, _) = make(CASES["plain"], device, np.float64)
    named = Conv2D(5, 4, 3, algorithm="direct" if device.is_cuda else "host")
    named.to(device, np.float64)
    for mine, theirs in zip(named.parameters(), layer.parameters(), strict=True):
        mine.value[...] = theirs.value
    for mine, right in zip(oracles.run(named, x, dy), (y, dx), strict=True):
        oracles.assert_close(mine, right, np.float64)


@pytest.mark.parametrize("shape", [(2, 6, 7, 4), (2, 6, 7), (2, 6, 7, 5, 1), (2, 35)])
def test_an_image_of_another_shape_is_refused_with_both_shapes(shape, device):
    layer = Conv2D(5, 4, 3).to(device)
    image = ", ".join(str(side) for side in shape[1:])
    with pytest.raises(ValueError) as caught:
        layer.forward(device.zeros(shape, np.float32))
    assert image in str(caught.value)
    assert "(4, 3, 3, 5)" in str(caught.value)


def test_a_window_larger_than_the_padded_image_is_refused_with_both_sizes(device):
    layer = Conv2D(2, 3, 5, padding=(1, 0)).to(device)
    with pytest.raises(ValueError, match=r"\(3, 8, 2\), padded to 4x9.*5x5"):
        layer.forward(device.zeros((1, 3, 8, 2), np.float32))


def test_not_a_number_in_an_image_reaches_the_windows_over_it_and_no_others(device):
    layer = Conv2D(1, 1, 2).to(device, np.float64)
    layer.weight.value[...] = 1
    x = np.zeros((2, 3, 4, 1))
    x[1, 0, 0, 0] = np.nan
    y, _ = oracles.run(layer, x)
    assert np.isnan(y[1, 0, 0, 0])
    assert np.isnan(y).sum() == 1
