"""The drawn data set: reproducible, balanced, and of no use to a linear classifier."""

import hashlib
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from tinyconv.data import PhotoSet, synthetic
from tinyconv.data.synthetic import draw

TRAIN, VAL = 60, 20


@pytest.fixture(scope="module")
def drawn() -> tuple[PhotoSet, PhotoSet]:
    return synthetic(TRAIN, VAL, size=32, seed=0)


def test_shapes_labels_and_names(drawn):
    train, val = drawn
    assert train.images.shape == (10 * TRAIN, 32, 32, 3) and len(val) == 10 * VAL
    assert train.class_names == val.class_names == tuple(sorted(set(train.class_names)))
    assert np.bincount(train.labels).tolist() == [TRAIN] * 10
    assert np.bincount(val.labels).tolist() == [VAL] * 10


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads():
    one, _ = synthetic(2, 1, size=40, seed=3, threads=1)
    again, _ = synthetic(2, 1, size=40, seed=3, threads=4)
    other, _ = synthetic(2, 1, size=40, seed=4)
    assert one.images.tobytes() == again.images.tobytes()
    assert all((a != b).any() for a, b in zip(one.images, other.images, strict=True))


def test_counts_do_not_change_the_pictures():
    few_train, few_val = synthetic(1, 2, size=24, seed=5)
    more_train, more_val = synthetic(3, 1, size=24, seed=5)
    np.testing.assert_array_equal(few_train.images, more_train.images[::3])
    np.testing.assert_array_equal(few_val.images[::2], more_val.images)


def test_no_picture_comes_twice(drawn):
    every = [hashlib.sha256(image).digest() for part in drawn for image in part.images]
    assert len(set(every)) == len(every)


def test_drawn_at_256_and_rescaled_like_a_photo():
    large, _ = synthetic(1, 1, size=256, seed=1)
    small, _ = synthetic(1, 1, size=64, seed=1)
    means = large.images.reshape(10, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    # Bicubic reduction is not the plain mean of 4×4 pixels, but nowhere far from it on average.
    assert np.abs(small.images - means).mean() < 4


@pytest.mark.parametrize("wrong", [(0, 1, 8), (1, 0, 8), (1, 1, 0), (-1, 1, 8)])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        synthetic(*wrong)


# --- what must not give the class away

Features = Callable[[np.ndarray], np.ndarray]


def linear_accuracy(drawn: tuple[PhotoSet, PhotoSet], features: Features) -> float:
    """Validation accuracy of least squares, the best of several strengths of regularisation."""
    train, val = drawn
    x, held_out = features(train.images), features(val.images)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, held_out = (x - mean) / scale, (held_out - mean) / scale
    gram, targets = x @ x.T, np.eye(10)[train.labels] - 0.1
    best = 0.0
    for strength in (1e-2, 1e-1, 1.0):
        ridge = strength * np.trace(gram) / len(x) * np.eye(len(x))
        scores = held_out @ (x.T @ np.linalg.solve(gram + ridge, targets))
        best = max(best, float((scores.argmax(axis=1) == val.labels).mean()))
    return best


def pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


def histogram(images: np.ndarray) -> np.ndarray:
    """How often each of 4 × 4 × 4 colours occurs."""
    cells = (images // 64).astype(np.int64) @ np.array([16, 4, 1])
    return np.stack([np.bincount(each.ravel(), minlength=64) for each in cells]).astype(np.float64)


# Chance is 10 %, give or take 2 points for 200 pictures; the best of several strengths is a little
# better. Pixels may tell more than nothing: textures fill the corners, shapes do not.
@pytest.mark.parametrize("features, limit", [(pixels, 0.35), (histogram, 0.25)])
def test_a_linear_classifier_stays_near_chance(drawn, features, limit):
    assert linear_accuracy(drawn, features) < limit


def test_the_nearest_class_mean_stays_near_chance(drawn):
    train, val = drawn
    means = np.stack([pixels(train.images[train.labels == k]).mean(axis=0) for k in range(10)])
    distances = ((pixels(val.images)[:, None] - means) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == val.labels).mean() < 0.25


def test_no_class_is_brighter_or_redder_than_another(drawn):
    train, _ = drawn
    colours = train.images.mean(axis=(1, 2)).reshape(10, TRAIN, 3)
    spread = colours.std(axis=(0, 1)) / np.sqrt(TRAIN)
    # Thirty means, each within four of its standard deviations of the common one.
    assert (np.abs(colours.mean(axis=1) - colours.mean(axis=(0, 1))) < 4 * spread).all()


def test_figures_are_as_often_bright_on_dark_as_dark_on_bright():
    brighter = 0
    for number in range(40):
        grey = np.asarray(draw("square", Random(number)).convert("L"), np.float64)
        brighter += grey[112:144, 112:144].mean() > grey[[0, -1]].mean()
    assert 10 <= brighter <= 30  # 20 with a standard deviation of 3


def test_form_gives_the_class_away(drawn):
    """The opposite check: what is hopeless for pixels is there for features that see edges."""

    def edges(images: np.ndarray) -> np.ndarray:
        grey = images.mean(axis=3)
        spectrum = np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True)))
        spectrum /= spectrum.sum(axis=(1, 2), keepdims=True)
        return spectrum[:, :17].reshape(len(images), -1)

    assert linear_accuracy(drawn, edges) > 0.6
