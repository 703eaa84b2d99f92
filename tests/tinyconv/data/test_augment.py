"""Crops, flips and the mean: the right pixels, the same draws everywhere."""

import numpy as np
import pytest

from tinyconv.data.augment import Augment

SIDE, CROP = 13, 9


def photos(count=6):
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def mean():
    return np.random.default_rng(1).uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32)


def versions(image):
    """Every crop of the centred image, unflipped and flipped: (top, left, flip) -> pixels."""
    result = {}
    for top in range(SIDE - CROP + 1):
        for left in range(SIDE - CROP + 1):
            crop = image[top : top + CROP, left : left + CROP]
            result[top, left, 0], result[top, left, 1] = crop, crop[:, ::-1]
    return result


def test_each_result_is_one_of_the_versions_and_all_versions_occur():
    images, augment = photos(), Augment(mean(), CROP, 2.0, seed=3)
    seen = set()
    for epoch in range(60):
        x = augment.random(images, np.arange(6), epoch)
        for n in range(6):
            wanted = versions((images[n].astype(np.float32) - mean()) / np.float32(2))
            (match,) = [key for key, pixels in wanted.items() if (pixels == x[n]).all()]
            seen.add(match)
    # 360 draws of 50: that one of them stays out has a chance of 50 · 0.98³⁶⁰ = 3 %, and the
    # seed is fixed.
    assert len(seen) == 50


def test_the_centre_is_the_centre():
    images = photos(2)
    x = Augment(mean(), CROP).centre(images)
    expected = (images.astype(np.float32) - mean())[:, 2:11, 2:11]
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_on_host_and_device(cuda_device, dtype):
    images, ids = photos(3), np.array([5, 9, 2])
    host = Augment(mean(), CROP, 1.1, seed=4).to("cpu", dtype).random(images, ids, 7).copy()
    device = Augment(mean(), CROP, 1.1, seed=4).to(cuda_device, dtype).random(images, ids, 7)
    np.testing.assert_array_equal(host, cuda_device.to_host(device))
    assert host.dtype == dtype


def test_draws_belong_to_the_image_not_to_its_batch():
    images, augment = photos(), Augment(mean(), CROP, seed=5)
    together = augment.random(images, np.arange(6), 2).copy()
    alone = augment.random(images[4:5], np.array([4]), 2)
    np.testing.assert_array_equal(together[4:5], alone)


def test_epoch_and_seed_change_the_draws():
    images, ids = photos(), np.arange(6)
    first = Augment(mean(), CROP, seed=5).random(images, ids, 1).copy()
    assert (Augment(mean(), CROP, seed=5).random(images, ids, 2) != first).any()
    assert (Augment(mean(), CROP, seed=6).random(images, ids, 1) != first).any()
    assert (Augment(mean(), CROP, seed=5).random(images, ids, 1) == first).all()


def test_a_crop_as_large_as_the_photo_only_flips():
    images = photos(4)
    x = Augment(np.zeros((SIDE, SIDE, 3), np.float32), SIDE).random(images, np.arange(4), 0)
    for n in range(4):
        assert (x[n] == images[n]).all() or (x[n] == images[n, :, ::-1]).all()


def test_sizes_and_types_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="crops of 14 pixels do not fit"):
        Augment(mean(), SIDE + 1)
    augment = Augment(mean(), CROP)
    with pytest.raises(ValueError, match=r"uint8 \(N, 13, 13, 3\)"):
        augment.centre(photos()[:, :12])
    with pytest.raises(ValueError, match="float32"):
        augment.centre(photos().astype(np.float32))
