"""Convolution and ReLU in one step: what the two give one by one."""

import numpy as np
import oracles
import pytest
from layers.fast.conv_relu import ConvStep

from layers import Conv2D, ReLU

# image (N, H, W, C), filters, window, stride, padding, groups
CASES = {
    "3×3": ((2, 6, 7, 5), 4, 3, 1, 0, 1),
    "stride 2, padding (0, 2)": ((2, 6, 7, 5), 3, 3, 2, (0, 2), 1),
    "groups": ((2, 4, 5, 6), 9, 3, 1, 1, 3),
    "one number": ((1, 1, 1, 1), 1, 1, 1, 0, 1),
}


def make(title, device, dtype):
    (_, _, _, channels), filters, size, stride, padding, groups = CASES[title]
    rng = np.random.default_rng(2)
    conv = Conv2D(channels, filters, size, stride, padding, groups).to(device, dtype)
    for parameter in conv.parameters():
        parameter.value[...] = device.array(rng.standard_normal(parameter.value.shape), dtype)
    return conv, ReLU().to(device, dtype)


def compare(title, device, dtype, train=True, spoil=lambda x, dy: None):
    (conv, relu), (fused_conv, fused_relu) = (make(title, device, dtype) for _ in range(2))
    rng = np.random.default_rng(3)
    shape = CASES[title][0]
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal((shape[0], *conv.output_shape(shape[1:]))).astype(dtype)
    spoil(x, dy)
    y = relu.forward(conv.forward(device.array(x), train), train)
    dx = conv.backward(relu.backward(device.array(dy)))
    step = ConvStep(fused_conv, fused_relu)
    mine_y = step.forward(device.array(x), train)
    assert fused_conv.y is mine_y and fused_relu.y is mine_y
    kept = device.array(dy)
    mine_dx = step.backward(kept)
    np.testing.assert_array_equal(device.to_host(kept), dy)  # it belongs to the caller
    arrays = [(mine_y, y), (mine_dx, dx), (fused_conv.weight.grad, conv.weight.grad)]
    for actual, right in arrays:
        np.testing.assert_array_equal(device.to_host(actual), device.to_host(right))
    return device.to_host(fused_conv.bias.grad), device.to_host(conv.bias.grad), mine_y


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_a_step_gives_what_its_layers_give(title, dtype, train, device):
    mine, right, _ = compare(title, device, dtype, train)
    oracles.assert_close(mine, right, dtype)
    if not device.is_cuda:
        np.testing.assert_array_equal(mine, right)


def test_not_a_number_passes_through(device):
    def spoil(x, dy):
        x[1, 2, 3, 0] = np.nan
        dy[0, 1, 1, 1] = np.nan

    _, _, y = compare("3×3", device, np.float64, spoil=spoil)
    y = device.to_host(y)
    assert np.isnan(y[1]).any() and not np.isnan(y[0]).any()


def test_without_input_gradient_the_parameters_get_theirs(device):
    conv, relu = make("groups", device, np.float64)
    step, x = ConvStep(conv, relu), device.array(np.ones(CASES["groups"][0]))
    dy = device.array(np.ones(step.forward(x).shape))
    step.backward(dy)
    wanted = oracles.gradients(conv)
    conv.input_gradient = False
    assert step.backward(dy) is None
    for mine, right in zip(oracles.gradients(conv), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_complaints_are_the_layers(device):
    conv, relu = make("3×3", device, np.float64)
    conv.name, relu.name = "conv1", "relu1"
    step = ConvStep(conv, relu)
    assert step.name == "conv1+relu1"
    with pytest.raises(RuntimeError, match="needs a forward"):
        step.backward(device.zeros((2, 4, 5, 4), np.float64))
    with pytest.raises(ValueError, match=r"conv1: an image of shape \(6, 7, 4\)"):
        step.forward(device.zeros((2, 6, 7, 4), np.float64))
    step.forward(device.zeros((2, 6, 7, 5), np.float64))
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4, 5, 3\)"):
        step.backward(device.zeros((2, 4, 5, 3), np.float64))


def test_rung_2_applies_the_relu_itself(cuda_device, monkeypatch):
    """The same bits as convolution and ReLU apart, and no launch for the ReLU."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 4, 5, 4)).astype(np.float32)
    results = []
    for fused in (False, True):
        conv = Conv2D(4, 8, 3, padding=1, algorithm="tiled").to(cuda_device, "float32")
        for parameter in conv.parameters():
            values = np.random.default_rng(5).standard_normal(parameter.value.shape)
            parameter.value[...] = cuda_device.array(values, np.float32)
        relu = ReLU().to(cuda_device, "float32")
        if fused:
            step = ConvStep(conv, relu)
            monkeypatch.setattr(ReLU, "forward", None)  # must not be called
            results.append(step.forward(cuda_device.array(x)))
        else:
            results.append(relu.forward(conv.forward(cuda_device.array(x))))
    apart, together = (cuda_device.to_host(each) for each in results)
    assert (apart == 0).any() and (apart > 0).any()
    np.testing.assert_array_equal(apart, together)
