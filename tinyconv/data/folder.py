"""Reads a folder of photos, {train,val}/<class>/, into memory (paper §2).

The folder is listed as by `prepare` (`sources.py`) and decoded by the same threads (`decode.py`).
Files that Pillow cannot decode completely are left out and named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from tinyconv.data.decode import decode_in_order
from tinyconv.data.listing import Photo, Skipped, SourceError, quoted
from tinyconv.data.photos import PhotoSet
from tinyconv.data.sources import Options, list_source


def read_folder(
    folder: str | os.PathLike[str],
    size: int,
    *,
    classes: int | None = None,
    options: Options | None = None,
    progress: Callable[..., Iterable] | None = None,
) -> tuple[PhotoSet, PhotoSet, list[Skipped]]:
    """Read `folder`/{train,val}/<class>/ into two sets of square photos.

    options: for other layouts (`sources.py`), and which of the splits are needed; a set of another
    one is empty. classes: only the first so many classes. progress(iterable, total=number of files)
    wraps the iteration, as tqdm does.

    Returns (train, val, skipped): images uint8 (N, size, size, 3), and every file that was left
    out. Raises SourceError, one line that says what to do, if there are no photos to train with.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    root = Path(folder)
    if not root.is_dir():
        if root.exists():
            raise SourceError(f"{quoted(root)} is not a folder; unpack an archive, or prepare it")
        raise SourceError(f"no such folder: {quoted(root)}")
    listing = list_source(root, options)
    names, photos = listing.class_ids, listing.photos
    if classes is not None:
        if not 2 <= classes <= len(names):
            raise SourceError(
                f"cannot take {classes} of the {len(names)} classes in {quoted(root)}: a "
                "classifier needs at least two"
            )
        names, photos = names[:classes], [each for each in photos if each.label < classes]
    _check_memory(len(photos), size)
    images = np.empty((len(photos), size, size, 3), np.uint8)
    decoded: Iterable = decode_in_order([photo.found for photo in photos], size)
    if progress is not None:
        decoded = progress(decoded, total=len(photos))
    kept: list[Photo] = []
    skipped: list[tuple[Photo, Skipped]] = []
    for photo, (image, reason) in zip(photos, decoded, strict=True):
        if reason:
            skipped.append((photo, Skipped(Path(photo.found.path), reason)))
        else:
            images[len(kept)] = image
            kept.append(photo)
    readable = {(photo.split, photo.label) for photo in kept}
    for photo, first in skipped:
        if (photo.split, photo.label) not in readable:
            raise SourceError(
                f"{quoted(root)}: no readable photo of the class {quoted(names[photo.label])} "
                f"in {photo.split} ({len(skipped)} of all {len(photos)} files cannot be read); "
                f"{first}"
            )
    labels = np.array([photo.label for photo in kept], np.int64)
    middle = sum(photo.split == "train" for photo in kept)
    train = PhotoSet(images[:middle], labels[:middle], names)
    val = PhotoSet(images[middle : len(kept)], labels[middle:], names)
    return train, val, [each for _, each in skipped]


def _check_memory(count: int, size: int) -> None:
    needed, available = count * size * size * 3, _available_memory()
    # A tenth remains free: decoding needs some, and Linux kills programs when memory runs out.
    if available is not None and needed > 0.9 * available:
        raise SourceError(
            f"{count:,} photos of {size}×{size} need {needed / 1e9:,.2f} GB of memory, and "
            f"{available / 1e9:,.2f} GB is available: take fewer classes or smaller photos, or "
            "prepare a file of them"
        )


def _available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable: +(\d+) kB", text)
    return int(found[1]) * 1024 if found else None
