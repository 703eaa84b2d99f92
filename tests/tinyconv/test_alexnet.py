"""AlexNet to the number (paper §3.5)."""

from dataclasses import replace

import numpy as np
import pytest

from layers import Conv2D, SoftmaxCrossEntropy
from tinyconv import RECIPES, SGD, alexnet
from tinyconv.alexnet import SMALLEST_IMAGE

PAPER = {
    "conv1": ((55, 55, 96), 34_944, 105_415_200),
    "conv2": ((27, 27, 256), 307_456, 223_948_800),
    "conv3": ((13, 13, 384), 885_120, 149_520_384),
    "conv4": ((13, 13, 384), 663_936, 112_140_288),
    "conv5": ((13, 13, 256), 442_624, 74_760_192),
    "fc6": ((4096,), 37_752_832, 37_748_736),
    "fc7": ((4096,), 16_781_312, 16_777_216),
    "fc8": ((1000,), 4_097_000, 4_096_000),
}


@pytest.fixture(scope="module")
def full():
    return alexnet(recipe="paper")


def test_the_full_net_has_the_papers_sizes(full):
    shapes = dict(zip((x.name for x in full), full.output_shapes((224, 224, 3)), strict=True))
    inputs = {"conv1": (224, 224, 3)}
    for before, after in zip(full.layers, full.layers[1:], strict=False):
        inputs[after.name] = shapes[before.name]
    for name, (shape, parameters, multiply_adds) in PAPER.items():
        layer = full[name]
        assert shapes[name] == shape
        assert sum(p.value.size for p in layer.parameters()) == parameters
        assert layer.multiply_adds(inputs[name]) == multiply_adds
    assert shapes["pool1"] == (27, 27, 96)
    assert shapes["pool2"] == (13, 13, 256)
    assert shapes["pool5"] == (6, 6, 256)
    assert sum(p.value.size for p in full.parameters()) == 60_965_224
    assert "60,965,224" in str(full) and "724,406,816" in str(full)


def test_the_geometry_is_the_papers(full):
    conv = [full[f"conv{i}"] for i in range(1, 6)]
    assert [c.groups for c in conv] == [1, 2, 1, 2, 2]
    assert [c.stride for c in conv] == [4, 1, 1, 1, 1]
    assert (conv[0].before, conv[0].after) == (0, 3)
    assert [full[f"norm{i}"].alpha for i in (1, 2)] == [1e-4, 1e-4]
    assert all(full[n].mode == "paper" and full[n].p == 0.5 for n in ("drop6", "drop7"))


def test_the_papers_first_weights(full):
    for name in PAPER:
        weight, bias = full[name].weight.value, full[name].bias.value
        # 34,848 numbers or more: the sample deviation is within 2 % of σ, the mean within σ/30.
        assert weight.std() == pytest.approx(0.01, rel=0.02)
        assert abs(weight.mean()) < 0.01 / 30
        ones = name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert (bias == ones).all(), name


def test_the_authors_recipe_differs_where_the_2012_code_does():
    net = alexnet(5, width=0.25, image_size=67, recipe="authors")
    assert [x.name for x in net][:4] == ["conv1", "norm1", "pool1", "relu1"]
    assert [x.name for x in net][4:8] == ["conv2", "relu2", "norm2", "pool2"]
    assert net["norm1"].alpha == pytest.approx(2e-5) and net["norm1"].groups == 2
    deviations = [net[f"conv{i}"].weight.value.std() for i in range(1, 6)]
    assert deviations == pytest.approx([0.01, 0.01, 0.03, 0.03, 0.03], rel=0.05)
    for parameter in net.parameters():
        multipliers = parameter.lr_multiplier, parameter.decay_multiplier
        assert multipliers == ((2, 0) if parameter.name.endswith("bias") else (1, 1))


def test_the_robust_recipe_keeps_the_size_of_signals():
    net = alexnet(5, width=0.5, image_size=67, recipe="robust")
    weight = net["conv3"].weight.value
    assert weight.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert all((layer.bias.value == 0).all() for layer in net if layer.parameters())


def test_the_robust_recipe_starts_conv1_small():
    weight = alexnet(5, width=0.5, image_size=67, recipe="robust", seed=3)["conv1"].weight.value
    assert weight.std() == pytest.approx(0.25 * np.sqrt(2 / (3 * 11 * 11)), rel=0.02)
    he = replace(RECIPES["robust"], conv1_scale=1.0)
    full = alexnet(5, width=0.5, image_size=67, recipe=he, seed=3)["conv1"].weight.value
    np.testing.assert_allclose(weight, 0.25 * full, rtol=1e-6)  # one rounding of float32


@pytest.mark.parametrize("size", [64, 65, 66, 67, 96, 128, 224, 227])
def test_any_image_size_uses_the_last_row_of_pixels(size):
    net = alexnet(3, width=0.02, image_size=size)
    conv = net["conv1"]
    assert 0 <= conv.after < 4 and (size + conv.after - 11) % 4 == 0
    x = np.zeros((1, size, size, 3), np.float32)
    quiet = net.forward(x, train=False).copy()
    conv.weight.value[...] = 1
    before = conv.forward(x).copy()
    x[0, -1, -1] = 1
    assert (conv.forward(x) != before).any() and quiet.shape == (1, 3)


def test_seeds_decide_the_weights():
    one, same, other = (alexnet(3, 0.05, 67, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert (a.value == b.value).all()
        assert a.name.endswith("bias") or (a.value != c.value).any()


def test_without_initialization_it_is_the_same_net_of_zeros():
    drawn, zeros = (alexnet(3, 0.05, 67, "authors", init=init) for init in (True, False))
    assert str(zeros) == str(drawn)
    for ours, theirs in zip(zeros.parameters(), drawn.parameters(), strict=True):
        assert ours.name == theirs.name and ours.value.shape == theirs.value.shape
        assert not ours.value.any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"width": 0}, "width must be between"),
        ({"width": float("nan")}, "width must be between"),
        ({"image_size": SMALLEST_IMAGE - 1}, "image_size must be at least 64 pixels, not 63"),
        ({"recipe": "caffe"}, "recipe 'caffe': choose one of paper, authors, robust"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        alexnet(**{"num_classes": 3, "width": 0.05, "image_size": 67, **arguments})


def test_a_whole_step_on_the_device_equals_the_host(cuda_device):
    """The real network, tiny: every layer's kernels, the loss and the optimizer in float64."""
    results = []
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 3))
    for device in ("cpu", cuda_device):
        net = alexnet(3, width=0.02, image_size=64, recipe="authors").to(device, "float64")
        assert isinstance(net[0], Conv2D)
        net[0].input_gradient = False
        loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters())
        loss.to(device, "float64")
        value = loss.forward(net.forward(net.device.array(x)), np.array([2, 0]))
        assert net.backward(loss.backward()) is None
        optimizer.step()
        results.append((value, net.device.to_host(optimizer.grads), optimizer.values))
    # The same sums in another order: 1e-12 of the largest term, with room.
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_allclose(ours, net.device.to_host(theirs), rtol=1e-9, atol=1e-13)


def test_the_one_column_net_is_torchvisions():
    net = alexnet(variant="one-column", init=False)
    sizes = {layer.name: s for layer, s in zip(net, net.output_shapes((224, 224, 3)), strict=True)}
    assert [sizes[f"conv{i}"][-1] for i in range(1, 6)] == [64, 192, 384, 256, 256]
    assert [sizes[name] for name in ("conv1", "pool1", "pool2", "pool5")] == [
        *((55, 55, 64), (27, 27, 64), (13, 13, 192), (6, 6, 256)),
    ]
    assert [net[f"conv{i}"].groups for i in range(1, 6)] == [1] * 5
    assert (net["conv1"].before, net["conv1"].after) == (2, 1)  # of 2 the windows reach 1
    assert not any("norm" in name for name in sizes)
    classifier = ["drop5", "fc6", "relu6", "drop6", "fc7", "relu7", "fc8"]
    assert list(sizes)[-7:] == classifier
    assert net["drop5"].mode == "inverted"
    assert sum(p.value.size for p in net.parameters()) == 61_100_840  # as published


@pytest.mark.parametrize("size", range(64, 72))
def test_the_one_column_nets_windows_are_those_of_two_pixels_on_all_sides(size):
    conv1 = alexnet(2, 0.05, size, variant="one-column")["conv1"]
    assert conv1.output_shape((size, size, 3))[0] == (size + 4 - 11) // 4 + 1


def test_another_variant_is_refused():
    with pytest.raises(ValueError, match="must be paper or one-column, not 'two'"):
        alexnet(variant="two")
