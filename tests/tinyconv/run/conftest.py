"""A run that the tests of what surrounds it watch."""

import pytest
from small import new_training, random_photos

from tinyconv import alexnet
from tinyconv.data.augment import Augment


@pytest.fixture
def training():
    """Two epochs of four steps of 8 photos, and four of validation."""
    photos = random_photos(32)
    net = alexnet(3, 0.05, 64, "robust", 1)
    augment = Augment(photos.mean_image(), 64, 64.0)
    return new_training(net, photos, photos, augment, epochs=2, batch_size=8)
