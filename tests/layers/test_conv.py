"""Convolution: both tiers against the formula written out, on shapes that fit nothing."""

import numpy as np
import oracles
import pytest
from layer_cases import CONV as CASES
from tiers import computing, tiers_of_conv

from layers import Conv2D
from layers.conv import ALGORITHMS, SUM_THREADS


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


def check(case, tier, device, dtype):
    layer, x, dy, expected = make(case, device, dtype)
    actual = *oracles.run(computing(layer, tier), x, dy), *oracles.gradients(layer)
    for mine, right in zip(actual, expected, strict=True):
        assert mine.dtype == dtype
        # Sums of up to R·S·C or N·P·Q products: fewer than 100.
        oracles.assert_close(mine, right, dtype)


@tiers_of_conv
@pytest.mark.parametrize("title", CASES)
def test_forward_and_all_gradients_follow_the_formula(title, tier, device):
    check(CASES[title], tier, device, np.float64)


@tiers_of_conv
@pytest.mark.parametrize("title", ["stride 2, padding only after", "two groups, stride 2"])
def test_float32_follows_the_formula(title, tier, device):
    check(CASES[title], tier, device, np.float32)


@pytest.mark.parametrize("title", ["stride 2, padding only after", "two groups, stride 2"])
def test_register_tiles_follow_the_formula(title, cuda_device):
    """The fast tier of a GPU; all of its cases are in tests/layers/fast/conv/test_tiled.py."""
    layer, x, dy, expected = make(CASES[title], cuda_device, np.float32)
    layer.algorithm = "tiled"
    step = computing(layer, "fast")
    assert step is not layer
    actual = *oracles.run(step, x, dy), *oracles.gradients(layer)
    for mine, right in zip(actual, expected, strict=True):
        oracles.assert_close(mine, right, np.float32)


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
    assert SUM_THREADS == 128
    check(((2, 13, 15, 1), 2, 1, 1, 0, 1), "simple", cuda_device, np.float64)


@tiers_of_conv
def test_nothing_of_an_image_is_left_over_for_the_next(tier, device):
    # The padding of im2col is part of an array that is used again, for images of any size.
    layer, x, dy, expected = make(CASES["windows that lie in the padding"], device, np.float64)
    step = computing(layer, tier)
    large = np.full((4, 9, 8, 2), np.nan)
    oracles.run(step, large, np.full((4, *layer.output_shape((9, 8, 2))), np.nan))
    actual = *oracles.run(step, x, dy), *oracles.gradients(layer)
    for mine, right in zip(actual, expected, strict=True):
        oracles.assert_close(mine, right, np.float64)


@tiers_of_conv
def test_without_input_gradient_the_weights_gradients_are_the_same(tier, device):
    layer, x, dy, (_, _, dw, db) = make(CASES["two groups, stride 2"], device, np.float64)
    layer.input_gradient = False
    for parameter in layer.parameters():
        parameter.grad[...] = np.nan
    _, dx = oracles.run(computing(layer, tier), x, dy)
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
    with pytest.raises(ValueError, match="groups=3 .*in_channels=9 .*out_channels=4"):
        Conv2D(9, 4, 3, groups=3)


def test_an_unknown_algorithm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'fastest'") as caught:
        Conv2D(8, 4, 3, algorithm="fastest")
    for known in ALGORITHMS:
        assert repr(known) in str(caught.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_layer_itself_ignores_the_algorithm(algorithm, device):
    """It is a hint for the plan, which refuses what does not run (fast/test_plan.py)."""
    layer, x, dy, expected = make(CASES["plain"], device, np.float64)
    hinted = Conv2D(5, 4, 3, algorithm=algorithm).to(device, np.float64)
    for mine, theirs in zip(hinted.parameters(), layer.parameters(), strict=True):
        mine.value[...] = theirs.value
    actual = *oracles.run(hinted, x, dy), *oracles.gradients(hinted)
    for mine, right in zip(actual, expected, strict=True):
        oracles.assert_close(mine, right, np.float64)


@tiers_of_conv
@pytest.mark.parametrize("shape", [(2, 6, 7, 4), (2, 6, 7), (2, 6, 7, 5, 1), (2, 35)])
def test_an_image_of_another_shape_is_refused_with_both_shapes(shape, tier, device):
    step = computing(Conv2D(5, 4, 3).to(device, np.float64), tier)
    image = ", ".join(str(side) for side in shape[1:])
    with pytest.raises(ValueError) as caught:
        step.forward(device.zeros(shape, np.float64))
    assert image in str(caught.value)
    assert "(4, 3, 3, 5)" in str(caught.value)


@tiers_of_conv
def test_a_window_larger_than_the_padded_image_is_refused_with_both_sizes(tier, device):
    step = computing(Conv2D(2, 3, 5, padding=(1, 0)).to(device, np.float64), tier)
    with pytest.raises(ValueError, match=r"\(3, 8, 2\), padded to 4x9.*5x5"):
        step.forward(device.zeros((1, 3, 8, 2), np.float64))


@tiers_of_conv
def test_not_a_number_in_an_image_reaches_the_windows_over_it_and_no_others(tier, device):
    layer = Conv2D(1, 1, 2).to(device, np.float64)
    layer.weight.value[...] = 1
    x = np.zeros((2, 3, 4, 1))
    x[1, 0, 0, 0] = np.nan
    y, _ = oracles.run(computing(layer, tier), x)
    assert np.isnan(y[1, 0, 0, 0])
    assert np.isnan(y).sum() == 1
