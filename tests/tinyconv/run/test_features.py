"""Features: equal to the layers one by one, by both kernels, in every batch size."""

import numpy as np
import pytest
from small import random_photos

from tinyconv import alexnet
from tinyconv.data.augment import Augment
from tinyconv.run.features import features, output_of


@pytest.fixture
def net():
    return alexnet(5, width=0.05, image_size=64, recipe="robust", seed=3)


def expected(net, x, until):
    """Layer by layer, with the loops of the book."""
    for layer in net.layers:
        x = layer.forward(x, False)
        if layer.name == until:
            return np.array(x)


@pytest.mark.parametrize("kernels", ["fast", "simple"])
@pytest.mark.parametrize("layer, until", [("fc7", "drop7"), ("conv2", "relu2"), ("pool1", "pool1")])
def test_a_layer_and_what_follows_it(net, kernels, layer, until):
    net.to("cpu", kernels=kernels)
    x = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    found = output_of(net, x, layer)
    np.testing.assert_allclose(found, expected(net, x, until), rtol=1e-4, atol=1e-5)
    assert found.any() and found.dtype == np.float32


def test_the_vectors_of_a_set_do_not_depend_on_the_batch_and_are_copies(net):
    photos = random_photos(7, size=73)
    augment = Augment(photos.mean_image(), 64, 32)
    whole = features(net, photos, augment, "fc7", batch_size=7)
    assert whole.shape == (7, net["fc7"].out_features)
    parts = features(net, photos, augment, "fc7", batch_size=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)  # BLAS blocks rows differently
    assert not np.array_equal(whole[0], whole[1])


def test_another_name_lists_the_layers(net):
    with pytest.raises(KeyError, match="no layer 'fc9'; there are conv1"):
        output_of(net, np.zeros((1, 64, 64, 3), np.float32), "fc9")
