"""Photos in one file, decoded once: reading what `store_writer.py` wrote.

A store is opened at once, however large, and takes no memory for its images: rows are
fetched when a batch needs them, and the system keeps in memory what fits.

They are fetched through a memory map of the file, or by reading. The bytes are the same. A map is
faster; but where the disk fails, or the file is cut short by another program, touching the map
ends the program on the spot (a "bus error"), and a read is an error with a message. So
`mapped=False` is for disks and networks that cannot be relied on.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path

import h5py
import numpy as np

from tinyconv.data import store_format
from tinyconv.data.photos import check_rows, fingerprint_of
from tinyconv.data.store_format import SPLITS, StoreError


class StoredPhotos:
    """Labelled square photos in a file; has what a `PhotoSet` has but the array of all images.

    size: side S in pixels; labels: int64 (N,), indices into class_names; len() is N; mapped:
    all rows, uint8 (room, S, S, 3), read-only, or None where they are read.
    """

    def __init__(
        self,
        file: FileIO,
        offset: int,
        mapped: np.ndarray | None,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        mean_image: np.ndarray,
        images_sha256: bytes,
    ) -> None:
        self.labels, self.class_names, self.size = labels, class_names, len(mean_image)
        self._file, self._offset, self._mean_image = file, offset, mean_image
        self.mapped = mapped
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
        outside 0 .. N − 1, ValueError for an `out` that does not fit or a store that is closed;
        without a map OSError where the disk fails, StoreError where the file was cut short.
        """
        check_rows(ids, out, len(self), self.size)
        if self._file.closed:
            raise ValueError(f"{self._file.name}: the store is closed; open it again")
        if self.mapped is not None:
            np.take(self.mapped, ids, axis=0, out=out[: len(ids)], mode="clip")
            return
        row = self.size**2 * 3
        for i, number in enumerate(ids.tolist()):
            store_format.read_into(self._file, out[i], self._offset + number * row)


class PhotoStore:
    """An open store: `train` and `val`, and what is recorded of them.

    path; size: side S in pixels; settings: a dict, where the photos came from and how they were
    made; class_ids, class_names; mean_image float32 (S, S, 3), covariance float64 (3, 3),
    eigenvalues (3,), eigenvectors (3, 3) of the training photos. A context manager; the photos
    can be read until it is closed. mapped: fetch rows through a memory map, where the system can.

    Opening checks everything but the image rows, which `verify` does. StoreError, in one line that
    says what to do, for a file that is not a store, is not complete, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, mapped: bool = True) -> None:
        self.path = Path(path)
        self._file, self._head = store_format.open_store(self.path, "r")
        try:
            self._check_digest()
            self._read(mapped)
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

    def _read(self, mapped: bool) -> None:
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
        labels = {split: self._labels(split, values) for split in SPLITS}
        self._map = _memory_map(self._file) if mapped else None
        self._splits = {
            split: self._photos(split, labels[split], values[f"{split}/images_sha256"].tobytes())
            for split in SPLITS
        }
        self.train, self.val = self._splits["train"], self._splits["val"]

    def _photos(self, split: str, labels: np.ndarray, images_sha256: bytes) -> StoredPhotos:
        offset, length = self._head.images(split)
        mapped = None
        if self._map is not None:
            mapped = np.frombuffer(self._map, np.uint8, length, offset)
            mapped = mapped.reshape(-1, self.size, self.size, 3)
        return StoredPhotos(
            self._file, offset, mapped, labels, self.class_names, self.mean_image, images_sha256
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
        for photos in self._splits.values():
            photos.mapped = None
        if self._map is not None:
            with suppress(BufferError):  # a thread still copies: the map goes when it is done
                self._map.close()

    def __enter__(self) -> PhotoStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _memory_map(file: FileIO) -> mmap.mmap | None:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # a file system without them, or a limit on the address space
        return None
