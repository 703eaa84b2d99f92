"""Batches of a photo set that is in memory, in an order that the seed alone decides."""

from collections.abc import Iterator

import numpy as np

from layers.random_bits import permutation
from tinyconv.data.photos import PhotoSet

ORDER = 2**32 - 4
"""Stream of the generator for the order of an epoch (see `augment.py`)."""


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in `count` images; the rest of an epoch, less than a batch, is left out."""
    return max(1, count // batch_size)


def shuffled_batches(
    photos: PhotoSet, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, labels, ids) of an epoch's batches, each image at most once.

    ids are the images' places in the set. Every epoch has an order of its own, so the images left
    out at its end (less than a batch) are others each time. A set smaller than a batch is one
    batch.
    """
    order = permutation(len(photos), seed, ORDER, epoch)
    for i in range(batches_per_epoch(len(photos), batch_size)):
        ids = order[i * batch_size : (i + 1) * batch_size]
        yield photos.images[ids], photos.labels[ids], ids


def ordered_batches(
    photos: PhotoSet, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, labels) of all photos in their order; the last batch may be smaller."""
    for start in range(0, len(photos), batch_size):
        part = slice(start, start + batch_size)
        yield photos.images[part], photos.labels[part]
