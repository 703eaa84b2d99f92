"""Mean and covariance: exact, whatever the blocks; eigenvectors in the one direction agreed on."""

from fractions import Fraction

import numpy as np
import pytest

from tinyconv.data import PhotoSet
from tinyconv.data.statistics import Statistics

SIDE = 7


def photos(count=11, side=SIDE):
    """Noise that is wide in one direction of colour, as photos are, and not centred."""
    rng = np.random.default_rng(0)
    grey = rng.normal(90, 45, (count, side, side, 1))
    own = rng.normal(0, 1, (count, side, side, 3)) * (4, 9, 17)
    return np.clip(grey + own, 0, 255).astype(np.uint8)


def gathered(*blocks, side=SIDE):
    statistics = Statistics(side)
    for block in blocks:
        statistics.add(block)
    return statistics


def exact_covariance(images):
    """The definition in rational numbers: the mean of (pixel − mean)(pixel − mean)ᵀ."""
    pixels = images.reshape(-1, 3).tolist()
    mean = [Fraction(sum(column), len(pixels)) for column in zip(*pixels, strict=True)]
    centred = [[value - mean[c] for c, value in enumerate(pixel)] for pixel in pixels]
    return np.array(
        [
            [float(sum(pixel[a] * pixel[b] for pixel in centred) / len(pixels)) for b in range(3)]
            for a in range(3)
        ]
    )


def test_the_covariance_is_the_exact_number_rounded_once():
    images = photos(3)
    np.testing.assert_array_equal(gathered(images).covariance, exact_covariance(images))


def test_the_mean_image_has_the_bits_of_the_photo_sets():
    images = photos()
    labels = np.zeros(len(images), np.int64)
    mean = gathered(images).mean_image()
    assert (mean.shape, mean.dtype) == ((SIDE, SIDE, 3), np.float32)
    np.testing.assert_array_equal(mean, PhotoSet(images, labels, ("all",)).mean_image())


RESULTS = ("covariance", "eigenvalues", "eigenvectors")


def assert_equal(one, other):
    assert one.count == other.count
    np.testing.assert_array_equal(one.mean_image(), other.mean_image())
    for name in RESULTS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_blocks_their_order_and_asking_in_between_change_no_bit():
    images = photos()
    at_once = gathered(images)
    assert at_once.count == 11
    assert_equal(gathered(*(images[n : n + 1] for n in range(len(images)))), at_once)
    assert_equal(gathered(images[:0], images[4:][::-1], images[:4]), at_once)
    statistics = gathered(images[:5])
    assert_equal(statistics, gathered(images[:5]))
    statistics.add(images[5:])
    assert_equal(statistics, at_once)


def test_images_that_are_strided_or_read_only_count_like_others():
    views = photos(10, 2 * SIDE)[::3, ::2, 1::2]
    fixed = np.ascontiguousarray(views)
    fixed.setflags(write=False)
    assert_equal(gathered(views), gathered(fixed.copy()))
    assert_equal(gathered(fixed), gathered(views))


def test_eigenvectors_belong_to_their_eigenvalues_the_largest_first():
    statistics = gathered(photos())
    values, vectors = statistics.eigenvalues, statistics.eigenvectors
    assert values.dtype == vectors.dtype == np.float64
    assert values[0] > values[1] > values[2] > 0
    # float64 rounds at 1e-16 of the largest eigenvalue, about 2000; a few operations.
    for i in range(3):
        product = statistics.covariance @ vectors[:, i]
        np.testing.assert_allclose(product, values[i] * vectors[:, i], rtol=0, atol=1e-11)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_component_of_an_eigenvector_is_positive(seed):
    rng = np.random.default_rng(seed)
    mixed = rng.integers(0, 200, (4, 5, 5, 3)) @ rng.uniform(0, 0.4, (3, 3))
    vectors = gathered(mixed.astype(np.uint8), side=5).eigenvectors
    for vector in vectors.T:
        assert vector[np.abs(vector).argmax()] > 0


def test_a_known_direction_of_colour_is_found():
    # 100 ± 20 · (2, 1, 2), a vector of length 60: variance 3600 along it, 0 elsewhere.
    images = np.empty((2, 4, 4, 3), np.uint8)
    images[0], images[1] = (140, 120, 140), (60, 80, 60)
    statistics = gathered(images, side=4)
    np.testing.assert_array_equal(
        statistics.covariance, [[1600, 800, 1600], [800, 400, 800], [1600, 800, 1600]]
    )
    np.testing.assert_allclose(statistics.eigenvalues, [3600, 0, 0], rtol=1e-14, atol=1e-11)
    direction = statistics.eigenvectors[:, 0]
    np.testing.assert_allclose(direction, np.array([2, 1, 2]) / 3, rtol=1e-14)


@pytest.mark.parametrize("level", [0, 1, 255])
def test_photos_of_one_colour_vary_in_no_direction(level):
    statistics = gathered(np.full((5, SIDE, SIDE, 3), level, np.uint8))
    assert not statistics.covariance.any()
    assert not statistics.eigenvalues.any()
    assert (statistics.mean_image() == level).all()


def test_grey_photos_have_no_negative_variance():
    grey = photos(4)[..., :1].repeat(3, axis=-1)
    values = gathered(grey).eigenvalues
    assert values[0] > 1000
    assert (values >= 0).all()


def test_two_billion_white_photos_of_the_largest_size_do_not_overflow():
    side, count = 512, 2**31
    statistics = gathered(np.full((1, side, side, 3), 255, np.uint8), side=side)
    # As if that photo had been added so often: every sum is what it was, times the count.
    statistics._sums *= count
    statistics._products = [product * count for product in statistics._products]
    statistics.count *= count
    assert statistics._products[0] > 2**64
    assert not statistics.covariance.any()
    assert (statistics.mean_image() == 255).all()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (photos().astype(np.float32), r"float32 \(11, 7, 7, 3\), expected uint8 \(N, 7, 7, 3\)"),
        (photos()[0], r"uint8 \(7, 7, 3\)"),
        (photos()[:, :6], r"uint8 \(11, 6, 7, 3\)"),
        (photos()[..., :1], r"uint8 \(11, 7, 7, 1\)"),
        (photos().tolist(), "are a list, expected a NumPy array"),
    ],
    ids=["floats", "one photo", "no squares", "grey", "a list"],
)
def test_what_is_no_block_of_such_photos_is_refused_and_not_counted(images, says):
    statistics = Statistics(SIDE)
    with pytest.raises(ValueError, match=says):
        statistics.add(images)
    assert statistics.count == 0


def test_there_is_no_mean_of_no_photos():
    with pytest.raises(ValueError, match="size must be at least 1 pixel, not 0"):
        Statistics(0)
    statistics = gathered(photos()[:0])
    for result in ("mean_image", *RESULTS):
        with pytest.raises(ValueError, match="no photos were added"):
            getattr(statistics, result)()
