"""Weights taken over, frozen layers, rates of their own: exact, and without wasted work."""

import argparse

import numpy as np
import pytest
from small import random_photos, saved_net

from tinyconv import SGD, alexnet, train
from tinyconv.data.augment import Augment
from tinyconv.run.fine_tune import begin_from, freeze, rates_of, set_rates, take


def net(classes=3, seed=0, width=0.05, size=64):
    return alexnet(classes, width, size, "robust", seed=seed)


def values(some_net):
    return {p.name: p.value.copy() for p in some_net.parameters()}


def test_layers_that_fit_are_taken_and_the_others_stay():
    one, other = net(5, seed=1), net(3, seed=2)
    before = values(one)
    assert take(one, other) == ([f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7"], ["fc8"])
    for name, value in values(one).items():
        source = before if name.startswith("fc8") else values(other)
        np.testing.assert_array_equal(value, source[name])


def test_another_size_takes_the_convolutions_and_another_width_nothing():
    assert "fc6" in take(net(size=96), net(size=64))[1]
    with pytest.raises(ValueError, match="no layer has the same name and shapes"):
        take(net(width=0.1), net(width=0.05))


@pytest.mark.parametrize("kernels", ["fast", "simple"])
def test_the_backward_pass_ends_at_the_first_layer_that_learns(kernels, monkeypatch):
    frozen = net().to("cpu", kernels=kernels)
    freeze(frozen, ["conv1", "conv2", "conv3"])
    ran = []
    for step in frozen.steps:
        backward = step.backward

        def noted(dy, backward=backward, name=step.name):
            ran.append(name)
            return backward(dy)

        monkeypatch.setattr(step, "backward", noted)
    whole = net().to("cpu", kernels=kernels)
    x = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0])
    for each in (frozen, whole):
        loss = each.loss()
        loss.forward(each.forward(x), labels)
        assert (each.backward(loss.backward()) is None) == (each is frozen)
    assert ran[-1].startswith("conv4") and not any("conv3" in name for name in ran)
    for name in ("conv4", "conv5", "fc6", "fc8"):  # the gradients that are left are the same
        np.testing.assert_array_equal(frozen[name].weight.grad, whole[name].weight.grad)
        assert frozen[name].weight.grad.any()


def test_training_leaves_frozen_layers_to_the_bit_and_moves_the_others(device):
    tuned, photos = net(), random_photos(12, size=73)
    freeze(tuned, ["conv1", "conv2"])
    tuned.to(device)
    if device.is_simulated:
        pytest.skip("minutes in the simulator; the loop above is the same for every step")
    before = values(tuned)
    train(tuned, photos, photos, Augment(photos.mean_image(), 64, 32), epochs=1, batch_size=4)
    for name, value in values(tuned).items():
        assert np.array_equal(value, before[name]) == name.startswith(("conv1", "conv2")), name


def test_a_layer_frozen_behind_one_that_learns_stays_too():
    tuned = net()
    freeze(tuned, ["fc7"])
    assert tuned["conv1"].input_gradient is False and tuned["fc6"].input_gradient
    optimizer = SGD(tuned.parameters(), 0.1)
    optimizer.grads[...] = 1
    before = values(tuned)
    optimizer.step()
    for name, value in values(tuned).items():
        assert np.array_equal(value, before[name]) == name.startswith("fc7")


def test_rates_multiply_those_of_the_recipe():
    tuned = net()
    set_rates(tuned, rates_of("fc8=10, conv1=0.5"))
    assert (tuned["fc8"].weight.lr_multiplier, tuned["fc8"].bias.lr_multiplier) == (10, 20)
    assert (tuned["conv1"].weight.lr_multiplier, tuned["fc7"].weight.lr_multiplier) == (0.5, 1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: freeze(net(), ["conv9"]), "no layer 'conv9' with weights; there are conv1, conv2"),
        (lambda: freeze(net(), ["relu1"]), "no layer 'relu1' with weights"),
        (lambda: freeze(net(), [x.name for x in net() if x.parameters()]), "no layer is left"),
        (lambda: set_rates(net(), {"fc8": -1}), "multiplied by -1: use 0 or more"),
        (lambda: set_rates(net(), {"fc8": float("nan")}), "multiplied by nan"),
        (lambda: rates_of("fc8"), "must be such as fc8=10,conv1=0.1, not 'fc8'"),
        (lambda: rates_of("fc8=fast"), "not 'fc8=fast'"),
    ],
)
def test_what_does_not_fit_is_said(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def options(**given):
    names = ("init_from", "resume", "freeze", "lr_multiplier")
    return argparse.Namespace(**{"recipe": "robust", **dict.fromkeys(names), **given})


def test_the_options_of_a_run(tmp_path, capsys):
    source, tuned = net(5, seed=1), net(3, seed=2)
    path = tmp_path / "weights.h5"
    saved_net(path, "abcde", net=source, input_divisor=32.0)
    drawn = values(tuned)
    given = options(init_from=str(path), freeze="conv1, conv2", lr_multiplier="fc8=10")
    begin_from(tuned, given)
    assert capsys.readouterr().out == (
        f"weights of {path}: conv1, conv2, conv3, conv4, conv5, fc6, fc7; drawn anew: fc8\n"
    )
    np.testing.assert_array_equal(tuned["conv4"].weight.value, source["conv4"].weight.value)
    np.testing.assert_array_equal(tuned["fc8"].weight.value, drawn["fc8.weight"])
    assert (tuned["conv2"].weight.lr_multiplier, tuned["fc8"].weight.lr_multiplier) == (0, 10)
    assert tuned["conv3"].input_gradient is False
    other = net(3, seed=2)
    begin_from(other, options(init_from="not there any more", resume="runs/001"))
    np.testing.assert_array_equal(other["conv4"].weight.value, drawn["conv4.weight"])
    with pytest.raises(ValueError, match="divided by 32, those of --recipe authors by 1.1"):
        begin_from(net(), options(init_from=str(path), recipe="authors"))
    with pytest.raises(ValueError, match=r"--init-from .*: no layer has the same name and shapes"):
        begin_from(net(width=0.1), options(init_from=str(path)))


def test_conv1_makes_up_for_another_divisor(tmp_path, capsys):
    """As of an imported net of torchvision: the logits of a photo stay the same."""
    source, tuned = net(3, seed=1), net(3, seed=2)
    saved_net(tmp_path / "weights.h5", "abc", net=source, input_divisor=57.6)
    begin_from(tuned, options(init_from=str(tmp_path / "weights.h5")))
    assert "photos were divided by 57.6, here by 32: conv1's weights are scaled" in (
        capsys.readouterr().out
    )
    centred = np.random.default_rng(0).normal(0, 60, (2, 64, 64, 3)).astype(np.float32)
    expected = source.forward(centred / np.float32(57.6), train=False)
    found = tuned.forward(centred / 32, train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
