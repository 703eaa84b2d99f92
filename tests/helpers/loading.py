"""What the tests of the loader share."""

import gc
import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from small import random_photos

from tinyconv.data.loader import ORDER, batches_per_epoch
from tinyconv.data.photos import PhotoSet
from tinyconv.data.random_arrays import permutation

PHOTOS = random_photos(20, size=4)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Whatever a test does with a loader."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


def kept(batches, count=None):
    """Copies of the first batches: images, labels, ids."""
    return [tuple(np.array(part) for part in batch) for batch in itertools.islice(batches, count)]


def assert_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        for part, other_part in zip(batch, other, strict=True):
            np.testing.assert_array_equal(part, other_part)
            assert part.dtype == other_part.dtype


class WatchedPhotos:
    """PHOTOS that are read as a test wishes: `before(ids)` is called in the thread that reads."""

    size, labels = PHOTOS.size, PHOTOS.labels

    def __init__(self, before):
        self.before = before

    def __len__(self):
        return len(PHOTOS)

    def copy_rows(self, ids, out):
        self.before(ids.tolist())
        PHOTOS.copy_rows(ids, out)


# --- what a loader gives, without threads


def shuffled_batches(
    photos: PhotoSet, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, labels, ids) of the batches of `Loader.epoch`, for photos in memory."""
    order = permutation(len(photos), seed, ORDER, epoch)
    for i in range(batches_per_epoch(len(photos), batch_size)):
        ids = order[i * batch_size : (i + 1) * batch_size]
        yield photos.images[ids], photos.labels[ids], ids


def ordered_batches(photos: PhotoSet, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, labels) of all photos in their order; the last batch may be smaller."""
    for start in range(0, len(photos), batch_size):
        part = slice(start, start + batch_size)
        yield photos.images[part], photos.labels[part]
