"""Opens the file that `prepare` makes (`store_format.py`).

Opening takes no time and no memory, however large the file: its image rows are mapped into memory,
the system reads those that a batch needs, and caches what fits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np

from tinyconv.data.photos import PhotoSet
from tinyconv.data.store_format import (
    SPLITS,
    Header,
    StoreError,
    checksum,
    read_header,
    rows_in_blocks,
)


class PhotoStore:
    """An open prepared file: `train` and `val`, a PhotoSet each, and what is recorded of them.

    path; size: side S in pixels; settings: a dict, source and options of `prepare`; class_ids,
    class_names; mean_image float32 (S, S, 3), covariance float64 (3, 3), eigenvalues (3,),
    eigenvectors (3, 3) of the training photos. A context manager.

    Opening checks everything but the image rows; `verify` checks those. StoreError, one line that
    says what to do, for a file that is something else, incomplete, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._header = read_header(self.path)
            if self._header.checksum is None:
                raise StoreError(f"{self.path}: not complete; run prepare again, which resumes")
            if checksum(self.path, self._header) != self._header.checksum:
                raise StoreError(f"{self.path}: damaged (wrong checksum); copy it again")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        try:
            self._read(self._header)
        except Exception as error:  # whatever program wrote this
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path}: cannot be read: {reason}; prepare it again") from error

    def _read(self, header: Header) -> None:
        with h5py.File(self.path, "r", locking=False) as file:
            self.settings = json.loads(bytes(file.attrs["settings"]))
            self.class_ids, self.class_names = (
                tuple(bytes(text).decode() for text in file[name][()])
                for name in ("class_ids", "class_names")
            )
            self.mean_image: np.ndarray = file["mean_image"][()]
            self.covariance: np.ndarray = file["colour/covariance"][()]
            self.eigenvalues: np.ndarray = file["colour/eigenvalues"][()]
            self.eigenvectors: np.ndarray = file["colour/eigenvectors"][()]
            self.size = len(self.mean_image)
            self.train, self.val = (self._photos(file[split], header, split) for split in SPLITS)

    def _photos(self, group: h5py.Group, header: Header, split: str) -> PhotoSet:
        offset, length = header.images(split)
        count, labels = int(group["count"][()]), group["labels"][()]
        shape = (length // (self.size**2 * 3), self.size, self.size, 3)
        rows = min(len(labels), len(group["images"]), shape[0])
        if not min(1, rows) <= count <= rows:
            raise ValueError(f"{count} photos in {split!r}, and {len(labels)} labels")
        if rows:
            images = np.memmap(self.path, np.uint8, "r", offset, shape).view(np.ndarray)
        else:
            images = np.empty((0, *shape[1:]), np.uint8)
        digest = group["images_sha256"][()].tobytes()
        return PhotoSet(images[:count], labels[:count], self.class_names, digest)

    def verify(self, progress: Callable[..., Iterable] | None = None) -> None:
        """Read all photos and compare them with the recorded checksums.

        progress(iterable, total=number of blocks) wraps the iteration, as tqdm does. StoreError
        names the damaged split.
        """
        photos = {"train": self.train, "val": self.val}
        counts = {split: len(each) for split, each in photos.items()}
        sha = {split: hashlib.sha256() for split in SPLITS}
        for split, rows in rows_in_blocks(self.path, self._header, self.size, counts, progress):
            sha[split].update(rows.data)
        for split, each in photos.items():
            if sha[split].digest() != each.images_sha256:
                raise StoreError(
                    f"{self.path}: images of {split!r} are damaged (wrong checksum); copy it again"
                )

    def close(self) -> None:
        """Close the file; its photos can no longer be read."""
        self.train.close()
        self.val.close()

    def __enter__(self) -> PhotoStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
