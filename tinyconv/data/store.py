"""Photos in one file, decoded once: reading what `store_writer.py` wrote.

A store is opened in milliseconds, however large, and takes no memory for its images: rows are read
when a batch needs them, and the system keeps in memory what fits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path

import h5py
import numpy as np

from tinyconv.data import store_format
from tinyconv.data.photos import check_rows, fingerprint_of
from tinyconv.data.store_format import SPLITS, StoreError


class StoredPhotos:
    """Labelled square photos in a file; has what a `PhotoSet` has but the array of all images.

    size: side S in pixels; labels: int64 (N,), indices into class_names; len() is N.
    """

    def __init__(
        self,
        file: FileIO,
        offset: int,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        mean_image: np.ndarray,
        images_sha256: bytes,
    ) -> None:
        self.labels, self.class_names, self.size = labels, class_names, len(mean_image)
        self._file, self._offset, self._mean_image = file, offset, mean_image
        self.images_sha256 = images_sha256

    def __len__(self) -> int:
        return len(self.labels)

    def mean_image(self) -> np.ndarray:
        """The mean image of the training photos as the store has it, float32 (S, S, 3)."""
        return self._mean_image

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the recorded digest of the images, the labels, the classes.

        A `PhotoSet` of the same photos has the same.
        """
        return fingerprint_of(self.images_sha256, self.size, self.labels, self.class_names)

    def copy_rows(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Read the images of `ids`, whole numbers (n,), into out[:n].

        out: uint8 (n or more, S, S, 3). Several threads may do so at once. IndexError for ids
        outside 0 .. N − 1, ValueError for an `out` that does not fit or a store that is closed,
        OSError where the disk fails, StoreError where the file was cut short while open.
        """
        check_rows(ids, out, len(self), self.size)
        row = self.size**2 * 3
        for i, number in enumerate(ids.tolist()):
            store_format.read_into(self._file, out[i], self._offset + number * row)


class PhotoStore:
    """An open store: `train` and `val`, and what is recorded of them.

    path; size: side S in pixels; settings: a dict, where the photos came from and how they were
    made; class_ids, class_names; mean_image float32 (S, S, 3), covariance float64 (3, 3),
    eigenvalues (3,), eigenvectors (3, 3) of the training photos. A context manager; the photos
    can be read until it is closed.

    Opening checks everything but the image rows, which `verify` does. StoreError, in one line that
    says what to do, for a file that is not a store, is not complete, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, self._head = store_format.open_store(self.path, "r")
        try:
            self._check_digest()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _check_digest(self) -> None:
        """Before HDF5 sees any of it: damaged bytes can make the library do nearly anything."""
        if self._head.digest is None:
            raise StoreError(
                f"{self.path}: not complete; prepare it again, which goes on where it stopped"
            )
        try:
            digest = store_format.digest(self._file, self._head)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error.strerror}") from error
        if digest != self._head.digest:
            raise StoreError(f"{self.path}: damaged: its digest does not fit; copy it again")

    def _read(self) -> None:
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                names = store_format.read_names(file)
                self.class_ids, self.class_names, self.settings = names
                datasets = store_format.read_datasets(file, self._head)
                values = {
                    name: dataset[()]
                    for name, dataset in datasets.items()
                    if not name.endswith("/images")
                }
        except Exception as error:  # the bytes are as they were written, by whatever program
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path}: not as a store should be: {reason}") from error
        self.mean_image = values["mean_image"]
        self.size = len(self.mean_image)
        self.covariance = values["colour/covariance"]
        self.eigenvalues = values["colour/eigenvalues"]
        self.eigenvectors = values["colour/eigenvectors"]
        self._splits = {split: self._photos(split, values) for split in SPLITS}
        self.train, self.val = self._splits["train"], self._splits["val"]

    def _photos(self, split: str, values: dict[str, np.ndarray]) -> StoredPhotos:
        return StoredPhotos(
            self._file,
            self._head.images(split).offset,
            self._labels(split, values),
            self.class_names,
            self.mean_image,
            values[f"{split}/images_sha256"].tobytes(),
        )

    def _labels(self, split: str, values: dict[str, np.ndarray]) -> np.ndarray:
        count, labels = int(values[f"{split}/count"]), values[f"{split}/labels"]
        if not 1 <= count <= len(labels):
            raise StoreError(
                f"{self.path}: {count} photos in {split!r}, with room for {len(labels)}; "
                "prepare it again"
            )
        labels = labels[:count].copy()
        if not 0 <= labels.min() <= labels.max() < len(self.class_ids):
            raise StoreError(
                f"{self.path}: labels of {split!r} run from {labels.min()} to {labels.max()}, and "
                f"there are {len(self.class_ids)} classes; prepare it again"
            )
        return labels

    def verify(self, progress: Callable[..., Iterable] | None = None) -> None:
        """Read all photos and compare their digests with the recorded ones.

        progress wraps the iteration as tqdm does: progress(iterable, total=number of blocks).
        StoreError names the split that is damaged.
        """
        counts = {split: len(photos) for split, photos in self._splits.items()}
        sha = {split: hashlib.sha256() for split in SPLITS}
        for split, images in store_format.rows_in_blocks(
            self._file, self._head, self.size, counts, progress
        ):
            sha[split].update(images.data)
        for split, photos in self._splits.items():
            if sha[split].digest() != photos.images_sha256:
                raise StoreError(
                    f"{self.path}: images of {split!r} are damaged: their digest does not fit; "
                    "copy it again"
                )

    def close(self) -> None:
        """Close the file; its photos can no longer be read."""
        self._file.close()

    def __enter__(self) -> PhotoStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
