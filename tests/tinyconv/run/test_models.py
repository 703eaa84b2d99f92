"""The nets for CIFAR-10, and all nets by name."""

import numpy as np
import pytest

from layers import LocallyConnected2D
from tinyconv import SGD, alexnet
from tinyconv.recipes import CIFAR10, RECIPES
from tinyconv.run.models import KINDS, MODELS, cifar10_net


@pytest.mark.parametrize("kind", ["13pct", "11pct"])
def test_sizes_are_those_of_the_authors_configurations(kind):
    net = cifar10_net(kind)
    shapes = {layer.name: s for layer, s in zip(net, net.output_shapes((24, 24, 3)), strict=True)}
    assert (shapes["conv1"], shapes["pool1"]) == ((24, 24, 64), (12, 12, 64))
    assert (shapes["pool2"], shapes["local3"]) == ((6, 6, 64), (6, 6, 32))
    assert (shapes["local4"], shapes["fc10"]) == ((6, 6, 32), (10,))
    # Filters of 5×5, then of 3×3 at 36 places with a bias at each, then 6·6·32 inputs.
    conv = 64 * (75 + 1) + 64 * (1600 + 1)
    local = 36 * 32 * (576 + 1) + 36 * 32 * (288 + 1)
    assert sum(p.value.size for p in net.parameters()) == conv + local + 10 * (1152 + 1)


def test_the_two_nets_differ_in_lrn_only():
    without, with_lrn = ([layer.name for layer in cifar10_net(kind)] for kind in KINDS[:2])
    assert [name for name in with_lrn if not name.startswith("norm")] == without
    norm = cifar10_net("11pct")["norm1"]
    assert (norm.size, norm.k, norm.beta) == (5, 1.0, 0.75)
    assert norm.alpha == pytest.approx(0.0002)


def test_first_weights_rates_and_decay_are_the_authors():
    net = cifar10_net("11pct", seed=3)
    stds = {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
    for name, std in stds.items():
        weight, bias = net[name].weight, net[name].bias
        # 4,800 numbers and more: their deviation is known to 1 %, three times that is allowed.
        assert weight.value.std() == pytest.approx(std, rel=0.03)
        assert not bias.value.any()
        assert weight.decay_multiplier == (0 if name.startswith("conv") else 1)
        assert (bias.lr_multiplier, bias.decay_multiplier) == (2, 0)
    assert CIFAR10.weight_decay == 0.004
    assert all(p.decay_multiplier == 1 for p in alexnet(2, 0.05, 64).parameters()[::2])


def test_without_gradients_only_what_decays_shrinks():
    net = cifar10_net("13pct")
    before = [parameter.value.copy() for parameter in net.parameters()]
    optimizer = SGD(net.parameters(), lr=0.5, weight_decay=CIFAR10.weight_decay)
    optimizer.step()
    for parameter, old in zip(net.parameters(), before, strict=True):
        decays = parameter.name in ("local3.weight", "local4.weight", "fc10.weight")
        np.testing.assert_allclose(
            parameter.value, old * np.float32(1 - 0.5 * 0.004 if decays else 1), rtol=1e-6
        )


def test_each_place_starts_with_filters_of_its_own():
    local = cifar10_net("13pct")["local3"]
    assert isinstance(local, LocallyConnected2D)
    assert (local.weight.value[0, 0] != local.weight.value[0, 1]).any()


def test_other_sizes():
    assert cifar10_net("18pct-like", 7, 32).output_shapes((32, 32, 3))[-1] == (7,)
    assert cifar10_net("11pct", 3, 8).output_shapes((8, 8, 3))[-1] == (3,)
    assert not cifar10_net(init=False)["conv2"].weight.value.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("12pct",), "'12pct', not one of 13pct, 11pct, 18pct-like"),
        (("11pct", 10, 7), "at least 8 .* not 7 and 10"),
        (("11pct", 0), "num_classes at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cifar10_net(*arguments)


def test_models_by_name():
    assert list(MODELS) == ["alexnet", "one-column", *(f"cifar10-{kind}" for kind in KINDS)]
    assert MODELS["alexnet"].recipe("paper") is RECIPES["paper"]
    net = MODELS["one-column"].make(4, 0.05, 64, RECIPES["robust"], 5)
    assert str(net) == str(alexnet(4, 0.05, 64, "robust", 5, variant="one-column"))
    model = MODELS["cifar10-13pct"]
    assert model.recipe("robust") is CIFAR10
    net = model.make(4, 1.0, 24, CIFAR10, 5)
    assert net["fc10"].out_features == 4
    np.testing.assert_array_equal(
        net["conv1"].weight.value, cifar10_net("13pct", seed=5)["conv1"].weight.value
    )


def test_a_sixth_convolution_follows_the_last_pooling_layer():
    names = [layer.name for layer in alexnet(10, 0.1, 96, sixth_conv=True)]
    assert names[names.index("pool5") :][:4] == ["pool5", "conv6", "relu_conv6", "flatten"]
    plain = [layer.name for layer in alexnet(10, 0.1, 96)]
    assert [name for name in names if name not in ("conv6", "relu_conv6")] == plain
