"""The file of prepared photos: HDF5, with a text header in front of it (version 1); and its reader.

    tinyconv photos 1                 the first 512 bytes, which HDF5 does not use ("user block"):
    bytes 983998414                   the length of the whole file,
    train 958414 786432000            the image rows of each split: offset and length,
    val 787390414 196608000           both in bytes,
    sha256 9f86d0...                  the checksum; missing until the file is complete

    /train/images, /val/images        uint8 (rows, S, S, 3): one row per photo
    /train/labels, /val/labels        int64 (rows,), indices into the classes
    /train/count, /val/count          int64: how many of the rows are used
    /train/images_sha256, /val/...    uint8 (32,): SHA-256 over the used image rows
    /class_ids, /class_names          UTF-8 strings: folder names, and names for display
    /mean_image                       float32 (S, S, 3): of the training rows
    /colour/covariance                float64 (3, 3): of the training pixels, with its
    /colour/eigenvalues               float64 (3,), the largest first
    /colour/eigenvectors              float64 (3, 3), one per column
    attribute settings                JSON: source and options

There is a row for every listed photo; a file to evaluate with has none in train, and zeros for what
is computed from it. An unreadable photo is left out and the following ones move up, so the rows
from `count` on are unused.

The checksum covers the header's lines above it and every byte from 512 on except the image rows,
which have checksums of their own. That is little enough to be verified whenever the file is
opened, and before HDF5 sees the bytes: the library can crash on a damaged file.

Opening takes no time and no memory, however large the file: its image rows are mapped into memory,
the system reads those that a batch needs, and caches what fits. `store_writer.py` writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from tinyconv.data.photos import SPLITS, PhotoSet

VERSION = 1
HEADER = 512
"""Bytes of the user block; HDF5 allows powers of two from 512."""

_HEADER = re.compile(
    rb"tinyconv photos ([0-9]{1,9})\n(?:bytes ([0-9]{1,18})\ntrain ([0-9]{1,18}) ([0-9]{1,18})\n"
    rb"val ([0-9]{1,18}) ([0-9]{1,18})\n(?:sha256 ([0-9a-f]{64})\n)?\0+\Z)?"
)


class StoreError(ValueError):
    """A prepared file cannot be used; the message says in one line why and what to do."""


class Header(NamedTuple):
    """The text header: length of the file, (offset, length) of each split's rows, checksum."""

    length: int
    train: tuple[int, int]
    val: tuple[int, int]
    checksum: str | None = None

    def images(self, split: str) -> tuple[int, int]:
        """Offset and length of the image rows of a split, in bytes."""
        return self.train if split == "train" else self.val

    def lines(self) -> bytes:
        """The lines that the checksum covers."""
        rows = "".join(f"{split} {'{} {}'.format(*self.images(split))}\n" for split in SPLITS)
        return f"tinyconv photos {VERSION}\nbytes {self.length}\n{rows}".encode()

    def block(self) -> bytes:
        """The header as it is in the file: HEADER bytes."""
        last = f"sha256 {self.checksum}\n".encode() if self.checksum else b""
        return (self.lines() + last).ljust(HEADER, b"\0")


def read_header(path: Path) -> Header:
    """Read and check the header; StoreError says what else the file is, or what is missing."""
    if not path.is_file():  # opening a pipe would block
        raise StoreError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        block = file.read(HEADER)
    found, length = _HEADER.match(block), path.stat().st_size
    if not found:
        raise StoreError(f"{path}: not a file of prepared photos; make one with prepare")
    version, *numbers = (int(each or 0) for each in found.groups()[:6])
    if version != VERSION:
        raise StoreError(
            f"{path}: version {version} of the format, and this program reads version {VERSION}: "
            "prepare the file again, or use the program that made it"
        )
    total, a, train, b, val = numbers
    if len(block) < HEADER or not HEADER <= a <= a + train <= b <= b + val <= total:
        raise StoreError(f"{path}: its first {HEADER} bytes are damaged; copy it again")
    if length != total:
        raise StoreError(f"{path}: {length:,} bytes, not the original {total:,}; copy it again")
    return Header(total, (a, train), (b, val), found[7].decode() if found[7] else None)


def checksum(path: Path, header: Header) -> str:
    """SHA-256, in hexadecimal, of the header's lines and of all bytes outside the image rows."""
    sha = hashlib.sha256(header.lines())
    _, train, val, _ = header
    for first, last in (HEADER, train[0]), (sum(train), val[0]), (sum(val), header.length):
        sha.update(np.fromfile(path, np.uint8, last - first, offset=first).data)
    return sha.hexdigest()


class PhotoStore:
    """An open prepared file: `train` and `val`, a PhotoSet each, and what is recorded of them.

    path; size: side S in pixels; settings: a dict, source and options of `prepare`; class_ids,
    class_names; mean_image float32 (S, S, 3), eigenvalues float64 (3,), eigenvectors (3, 3) of the
    training photos. A context manager.

    Opening checks everything but the image rows; `verify` checks those. StoreError, one line that
    says what to do, for a file that is something else, incomplete, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            header = read_header(self.path)
            if header.checksum is None:
                raise StoreError(f"{self.path}: not complete; run prepare again, which resumes")
            if checksum(self.path, header) != header.checksum:
                raise StoreError(f"{self.path}: damaged (wrong checksum); copy it again")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        try:
            self._read(header)
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

    def verify(self) -> None:
        """Read all photos and compare them with their checksums; StoreError for a damaged split."""
        for split, photos in zip(SPLITS, (self.train, self.val), strict=True):
            if hashlib.sha256(photos.images.data).digest() != photos.images_sha256:
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
