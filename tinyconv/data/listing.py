"""The result of listing a source of photos: files, their classes, and their order.

A listing determines everything that the prepared file will contain, before any photo is decoded.
Its digest tells whether a source has changed since an interrupted preparation began.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tinyconv.data.photos import PhotoError

MAX_PHOTO = 10**9
"""Bytes; a larger file is not taken for a photo."""

EXPECTED = (
    "known layouts, in a folder or a .tar: train/<class>/ and val/<class>/ (or test/); <class>/ "
    "with --val-share 0.2, or with lists of photos as in Food-101 and CUB-200; Tiny-ImageNet-200; "
    "the archives of ILSVRC 2012; cifar-10-binary.tar.gz"
)

Listed = Callable[[int], object]
"""Called from time to time with the number of further files found."""


class SourceError(PhotoError):
    """A source of photos cannot be used or prepared; the message says in one line what to do."""


class Skipped(NamedTuple):
    """A file that was left out, and the reason; str() of it is one printable line."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{quoted(self.path)}: {self.reason}"


class Found(NamedTuple):
    """A file of a source, and where its bytes are.

    name: relative, "/" between folders. path: the file to open; offset, size: its bytes in there.
    stamp: time of the last change (ns). problem: why it cannot be read, or "". archive: where
    they are in memory, the bytes that `offset` is a place in. planes: not an image file, but the
    red, the green and the blue pixels of a square, a byte each.
    """

    name: str
    path: str
    offset: int
    size: int
    stamp: int
    problem: str = ""
    archive: bytes | None = None
    planes: bool = False

    def read(self) -> bytes:
        """Its bytes, or fewer if the file has become shorter. OSError if it cannot be read."""
        if self.archive is not None:
            return self.archive[self.offset : self.offset + self.size]
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Photo(NamedTuple):
    """A file that is taken for a photo of one class; label is an index into the class ids."""

    split: str
    label: int
    found: Found


@dataclass
class Listing:
    """All photos of a source in a fixed order, training photos first.

    kind: the layout, in words. name: the source's name without its folder. size: suitable side of
    the squares in pixels. choices: options that decided the order. notes: lines for the user.
    """

    kind: str
    name: str
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    photos: list[Photo]
    size: int = 256
    choices: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Files in each split, readable or not."""
        train = sum(photo.split == "train" for photo in self.photos)
        return {"train": train, "val": len(self.photos) - train}

    def digest(self) -> str:
        """SHA-256 over the names, sizes, times, classes and the order of all photos."""
        sha = hashlib.sha256()
        for split, label, found in self.photos:
            line = (split, label, found.name, found.offset, found.size, found.stamp, found.problem)
            sha.update(f"{line!r}\n".encode("utf-8", "backslashreplace"))
        sha.update(repr((self.kind, self.class_ids, self.class_names)).encode())
        return sha.hexdigest()


def printable(name: object) -> str:
    """A name of a file or class as one line for a terminal, whatever characters it has.

    Control characters are escaped. So are all but ASCII characters where another, shorter sequence
    looks the same (Unicode's NFC): two names that look alike are two names.
    """
    return quoted(name)[1:-1]


def quoted(name: object) -> str:
    """As `printable`, in quotes."""
    text = str(name)
    return repr(text) if unicodedata.is_normalized("NFC", text) else ascii(text)


def some(names: Iterable[str]) -> str:
    """The first of several names, and how many more there are."""
    first, *more = names
    return quoted(first) + (f" and {len(more):,} more" if more else "")


def problem_with_size(size: int) -> str:
    """Why a file of this many bytes cannot be a photo, or ""."""
    if not size:
        return "empty file"
    return f"too large for a photo ({size:,} bytes)" if size > MAX_PHOTO else ""
