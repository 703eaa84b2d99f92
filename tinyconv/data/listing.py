"""What a source of photos turned out to hold: files, their classes, and their order.

A listing says everything that decides what will be in the store, before a photo is decoded. Its
digest tells whether a source is still the one that an interrupted preparation began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "val")

MAX_PHOTO = 10**9
"""Bytes; what is larger is no photo."""

EXPECTED = (
    "expected: a folder or an uncompressed .tar with train/<class>/ and val/<class>/ or with "
    "<class>/, a folder with the archives of ILSVRC 2012, or cifar-10-binary.tar.gz"
)

Listed = Callable[[int], object]
"""Is told now and then how many more files were seen."""


class PrepareError(ValueError):
    """A preparation cannot begin or go on; the message is one line that says what to do."""


class SourceError(PrepareError):
    """What was given is not what can be prepared."""


class Found(NamedTuple):
    """A file of a source, and where its bytes are.

    name: relative, "/" between folders. path: the file to open; offset, size: bytes in it.
    stamp: when `path` was last changed (ns). trouble: why it cannot be read, or "".
    """

    name: str
    path: str
    offset: int
    size: int
    stamp: int
    trouble: str = ""


class Photo(NamedTuple):
    """A file that is taken for a photo of one class; label is an index into the class ids."""

    split: str
    label: int
    found: Found


@dataclass
class Listing:
    """All photos of a source in a fixed order, those to train with first.

    kind: the layout, in words. name: the source's name without its folder. size: the square that
    suits it, in pixels. raw: pixels that are in memory already, uint8 (N, h, w, 3), one for each
    photo. choices: what else decided the order. notes: lines that the user should see.
    """

    kind: str
    name: str
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    photos: list[Photo]
    size: int = 256
    raw: np.ndarray | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Files in each split, readable or not."""
        train = sum(photo.split == "train" for photo in self.photos)
        return {"train": train, "val": len(self.photos) - train}

    def digest(self) -> str:
        """SHA-256 over the names, sizes, times, classes and the order of all photos."""
        sha = hashlib.sha256()
        for photo in self.photos:
            found = photo.found
            line = (photo.split, photo.label, found.name, *found[2:])
            sha.update(f"{line!r}\n".encode("utf-8", "backslashreplace"))
        sha.update(repr((self.kind, self.class_ids, self.class_names)).encode())
        if self.raw is not None:
            sha.update(np.ascontiguousarray(self.raw).tobytes())
        return sha.hexdigest()


def quoted(name: object) -> str:
    """A name as one printable line, whatever is in it."""
    return repr(str(name))


def some(names: list[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return quoted(names[0]) + more


def trouble_with_size(size: int) -> str:
    """Why a file of so many bytes cannot be a photo, or ""."""
    if not size:
        return "empty file"
    return f"{size:,} bytes are no photo" if size > MAX_PHOTO else ""
