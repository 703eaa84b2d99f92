"""One rank's rows: of every batch, and of the validation photos.

Which rows are whose is `communicator.part`: rank r of R has rows r · N / R to (r + 1) · N / R of N.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from layers import Device
from tinyconv.data.loader import ORDER, Batch, Loader, batches_per_epoch
from tinyconv.data.photos import PhotoSet
from tinyconv.data.random_arrays import permutation
from tinyconv.parallel.communicator import part


class LoaderOfRows(Loader):
    """A rank's rows of every batch of a `Loader`; `batch_size` is that of the whole batch."""

    def __init__(
        self, photos: Any, batch_size: int, device: Device, rank: int, size: int, seed: int
    ) -> None:
        self._whole = batch_size
        self._mine = part(min(batch_size, len(photos)), rank, size)
        super().__init__(photos, self._mine.stop - self._mine.start, device, seed=seed)
        self.batches_per_epoch = batches_per_epoch(len(photos), batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """As `Loader.epoch`, of each batch this rank's rows."""
        if not 0 <= first <= self.batches_per_epoch:
            raise ValueError(
                f"Loader: an epoch has {self.batches_per_epoch} batches; cannot begin at {first}"
            )
        order = permutation(len(self.photos), self.seed, ORDER, epoch)
        starts = [i * self._whole for i in range(first, self.batches_per_epoch)]
        return self._batches([order[s : s + self._whole][self._mine] for s in starts])


class PhotosOfPart:
    """A stretch of a store's photos, as if they were all."""

    def __init__(self, photos: Any, stretch: slice) -> None:
        self._photos, self._first = photos, stretch.start
        self.labels, self.size = photos.labels[stretch], photos.size
        self.class_names = photos.class_names

    def __len__(self) -> int:
        return len(self.labels)

    def copy_rows(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Copy the images of `ids`, counted from the start of the stretch, into out[:n]."""
        self._photos.copy_rows(ids + self._first, out)


def part_of(photos: Any, stretch: slice) -> Any:
    """A stretch of the photos, without copying their images."""
    if isinstance(photos, PhotoSet):
        return PhotoSet(photos.images[stretch], photos.labels[stretch], photos.class_names)
    return PhotosOfPart(photos, stretch)
