"""How a store of photos lies in its file: HDF5, with a head in text (schema version 1).

    tinyconv photos 1                 the first 512 bytes, which HDF5 leaves to us ("user block"):
    bytes 983998414                   the length of the whole file,
    train 958414 786432000            where the image rows of each split lie: offset, length,
    val 787390414 196608000           both in bytes,
    sha256 9f86d0...                  the digest; missing until the file is complete

    /train/images, /val/images        uint8 (room, S, S, 3): one row a photo
    /train/labels, /val/labels        int64 (room,), indices into the classes
    /train/count, /val/count          int64: how many of the rows are used
    /train/images_sha256, /val/...    uint8 (32,): SHA-256 over the used image rows
    /class_ids, /class_names          UTF-8 strings: the folder's name and one for people
    /mean_image                       float32 (S, S, 3): of the training rows
    /colour/covariance                float64 (3, 3): of the training pixels, and its
    /colour/eigenvalues               float64 (3,), the largest first
    /colour/eigenvectors              float64 (3, 3), a column each
    attribute settings                JSON: where the photos came from, and how they were made

There is a row for every photo that was listed. A photo that turned out to be damaged is left out,
and those after it move up; so the rows from `count` on are unused room.

All of HDF5's own structure is written when the file is made and never again; what comes later goes
into its place in the file, past HDF5. So whenever a program is killed, the structure is whole. The
digest covers the head's lines above it and every byte from 512 on except the image rows (which
have digests of their own): small enough to be checked each time the file is opened, and before any
byte reaches the HDF5 library, which trusts what it reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

VERSION = 1
HEAD = 512
"""Bytes in front of the HDF5 file proper; HDF5 wants a power of two from 512."""
SPLITS = ("train", "val")
BLOCK = 2**24
"""Bytes that are read at a time where all of them are read."""
SETTINGS_LIMIT = 60_000
"""Bytes of JSON in `settings`: an HDF5 attribute ends at 64 KiB."""

FIRST_LINE = re.compile(rb"tinyconv photos ([0-9]{1,9})\n")
REST = re.compile(
    rb"bytes ([0-9]{1,18})\ntrain ([0-9]{1,18}) ([0-9]{1,18})\nval ([0-9]{1,18}) ([0-9]{1,18})\n"
    rb"(?:sha256 ([0-9a-f]{64})\n)?\0+"
)


class StoreError(ValueError):
    """A file of photos cannot be used; the message says in one line why and what to do."""


class Stretch(NamedTuple):
    """A run of bytes in the file."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


class Head(NamedTuple):
    """What the head says: the file's length, its image rows, and the digest if it is complete."""

    length: int
    train: Stretch
    val: Stretch
    digest: str | None = None

    def images(self, split: str) -> Stretch:
        """Where the image rows of a split lie."""
        return self.train if split == "train" else self.val

    def lines(self) -> bytes:
        """The lines that the digest covers."""
        places = "".join(f"{split} {'{} {}'.format(*self.images(split))}\n" for split in SPLITS)
        return f"tinyconv photos {VERSION}\nbytes {self.length}\n{places}".encode()

    def block(self) -> bytes:
        """The head as it stands in the file: HEAD bytes."""
        last = f"sha256 {self.digest}\n".encode() if self.digest else b""
        return (self.lines() + last).ljust(HEAD, b"\0")


def open_store(path: Path, mode: str) -> tuple[FileIO, Head]:
    """The file, opened in `mode` without a buffer, and its head.

    Nothing but the head is read. StoreError says what else the file is, or how much is missing.
    """
    try:
        if not path.exists():
            raise StoreError(f"{path}: no such file")
        if not path.is_file():  # opening a pipe would wait forever
            raise StoreError(f"{path}: not a file; a store is one file, made by prepare")
        file = FileIO(path, mode)
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        return file, _read_head(file.fileno(), path)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        raise


def _read_head(descriptor: int, path: Path) -> Head:
    block, length = os.pread(descriptor, HEAD, 0), os.fstat(descriptor).st_size
    first = FIRST_LINE.match(block)
    if not first:
        raise StoreError(f"{path}: not a store of photos; prepare makes one of a folder of photos")
    if int(first[1]) != VERSION:
        raise StoreError(
            f"{path}: a store of version {int(first[1])}, and this program reads version {VERSION}:"
            " prepare it again, or use the program that made it"
        )
    if length < HEAD:
        raise StoreError(f"{path}: ends after {length} bytes, within its head; copy it again")
    rest = REST.fullmatch(block, first.end())
    if not rest:
        raise StoreError(f"{path}: its first {HEAD} bytes are damaged; copy it again")
    total, *places = (int(number) for number in rest.groups()[:5])
    train, val = Stretch(*places[:2]), Stretch(*places[2:])
    if length != total:
        kind = "shorter" if length < total else "longer"
        raise StoreError(
            f"{path}: {length:,} bytes, {kind} than the {total:,} it was made with; copy it again"
        )
    if not HEAD <= train.offset <= train.end <= val.offset <= val.end <= total:
        raise StoreError(f"{path}: its first {HEAD} bytes are damaged; copy it again")
    return Head(total, train, val, rest[6].decode() if rest[6] else None)


def read_into(file: FileIO, out: np.ndarray, offset: int) -> None:
    """Fill a contiguous array with the file's bytes from `offset`; StoreError if it ends before."""
    rest = out.data.cast("B")
    while rest:
        try:
            count = os.preadv(file.fileno(), [rest], offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file.name)) from error
        if not count:
            raise StoreError(f"{file.name}: cut short while open, at byte {offset}; copy it again")
        rest, offset = rest[count:], offset + count


def digest(file: FileIO, head: Head) -> str:
    """SHA-256, in hexadecimal, over the head's lines and all after it except the image rows."""
    sha = hashlib.sha256(head.lines())
    gaps = (HEAD, head.train.offset), (head.train.end, head.val.offset), (head.val.end, head.length)
    for first, end in gaps:
        for position in range(first, end, BLOCK):
            block = np.empty(min(BLOCK, end - position), np.uint8)
            read_into(file, block, position)
            sha.update(block.data)
    return sha.hexdigest()


def rows_in_blocks(
    file: FileIO,
    head: Head,
    size: int,
    counts: Mapping[str, int],
    progress: Callable[..., Iterable] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """(split, images) over the first `counts` rows of each split.

    images: uint8 (n, S, S, 3), overwritten by the next. progress(iterable, total=number of blocks)
    wraps the iteration.
    """
    row = size**2 * 3
    step = max(1, BLOCK // row)
    starts = [(split, first) for split in SPLITS for first in range(0, counts[split], step)]
    buffer = np.empty((step, size, size, 3), np.uint8)
    for split, first in starts if progress is None else progress(starts, total=len(starts)):
        images = buffer[: counts[split] - first]
        read_into(file, images, head.images(split).offset + first * row)
        yield split, images


# --- what HDF5 knows


def layout(size: int, room: Mapping[str, int]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each dataset of numbers, in the order in which they are made.

    The images come last, so that all that is small lies together at the beginning of the file.
    """
    datasets: dict[str, tuple[tuple[int, ...], str]] = {
        "mean_image": ((size, size, 3), "<f4"),
        "colour/covariance": ((3, 3), "<f8"),
        "colour/eigenvalues": ((3,), "<f8"),
        "colour/eigenvectors": ((3, 3), "<f8"),
    }
    for split in SPLITS:
        datasets[f"{split}/count"] = ((), "<i8")
        datasets[f"{split}/images_sha256"] = ((32,), "|u1")
        datasets[f"{split}/labels"] = ((room[split],), "<i8")
    for split in SPLITS:
        datasets[f"{split}/images"] = ((room[split], size, size, 3), "|u1")
    return datasets


def read_names(file: h5py.File) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    """class_ids, class_names and settings; ValueError if they do not fit together."""
    ids, names = (
        tuple(bytes(string).decode() for string in file[name][()])
        for name in ("class_ids", "class_names")
    )
    settings = json.loads(bytes(file.attrs["settings"]))
    if not ids or len(ids) != len(names) or not isinstance(settings, dict):
        raise ValueError(f"{len(ids)} class ids, {len(names)} names, settings {settings!r:.40}")
    return ids, names, settings


def read_datasets(file: h5py.File, head: Head) -> dict[str, h5py.Dataset]:
    """The datasets of numbers by name; ValueError or KeyError if one is not as it should be."""
    rows = {split: file[f"{split}/images"].shape for split in SPLITS}
    datasets = {}
    for name, form in layout(rows["train"][1], {split: rows[split][0] for split in SPLITS}).items():
        datasets[name] = dataset = file[name]
        if (dataset.shape, dataset.dtype.str) != form:
            raise ValueError(f"{name} is {dataset.dtype.str} {dataset.shape}, expected {form}")
    for split in SPLITS:
        if stretch(datasets[f"{split}/images"]) != head.images(split):
            raise ValueError(f"the rows of {split} are not where the head says")
    return datasets


def stretch(dataset: h5py.Dataset) -> Stretch:
    """Where a contiguous dataset lies in its file; ValueError if it is not in one piece."""
    offset = dataset.id.get_offset()  # from the beginning of the file, the head included
    if offset is None:
        raise ValueError(f"{dataset.name} is not in one piece")
    return Stretch(offset, dataset.dtype.itemsize * math.prod(dataset.shape))
