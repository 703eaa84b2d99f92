"""First weights: drawn per layer, by the recipe's table, the same on every device."""

import math

import numpy as np
import pytest

from layers import Conv2D, Dropout, Flatten, Linear
from tinyconv import RECIPES, Sequential, initialize
from tinyconv.recipes import HE, get_recipe


def net(first=4):
    layers = {
        "conv1": Conv2D(3, first, 3),
        "flat": Flatten(),
        "drop": Dropout(),
        "fc6": Linear(9 * first, 500),
    }
    return Sequential(layers, input_shape=(5, 5, 3))


def test_weights_do_not_depend_on_device_or_dtype(cuda_device):
    host = initialize(net(), "paper", seed=3)
    other = initialize(net().to(cuda_device, "float64"), "paper", seed=3)
    for a, b in zip(host.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, cuda_device.to_host(b.value).astype(np.float32))


def test_a_layer_draws_from_its_own_stream():
    small, large = (initialize(net(first), "paper")["fc6"].weight.value for first in (4, 8))
    # The layer before has twice as many weights; the first numbers here are the same.
    np.testing.assert_array_equal(small.ravel()[:1000], large.ravel()[:1000])
    conv = initialize(net(), "paper")["conv1"].weight.value.ravel()
    assert (conv != small.ravel()[: conv.size]).all()


def test_he_initialization_follows_the_fan_in():
    weight = initialize(net(), "robust")["fc6"].weight.value
    assert weight.std() == pytest.approx(math.sqrt(2 / 36), rel=0.02)


def test_dropout_is_seeded_too():
    drop = initialize(net(), "robust", seed=9)["drop"]
    assert (drop.seed, drop.stream, drop.step) == (9, 2, 0)


def test_recipes_by_name():
    assert list(RECIPES) == ["paper", "authors", "robust"]
    assert get_recipe("paper") is get_recipe(RECIPES["paper"])
    with pytest.raises(ValueError, match="choose one of paper, authors, robust"):
        get_recipe("Paper")
    assert RECIPES["robust"].default_std == HE


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match="must be from 0"):
        initialize(net(), seed=seed)


def test_the_largest_seed_works():
    initialize(net(), seed=2**64 - 1)
