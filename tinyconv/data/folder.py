"""A folder of photos, {train,val}/<class>/, decoded once into memory (paper §2).

A folder collected in the wild holds surprises: greyscale, CMYK, transparency, cameras held
sideways, half a download, a web page named `.jpg`. What Pillow can read completely becomes a
square of RGB (`photos.py`); what it cannot is left out and named.

Pillow decodes and rescales with Python's lock released, so that threads are all it takes to use
every core.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyconv.data.photos import PhotoError, PhotoSet, decode_square

SPLITS = ("train", "val")


class Skipped(NamedTuple):
    """A file that was left out, and the reason; str() of it is one printable line."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{_quoted(self.path)}: {self.reason}"


class _Found(NamedTuple):
    split: str
    label: int
    path: Path


def read_folder(
    folder: str | os.PathLike[str],
    size: int,
    *,
    classes: int | None = None,
    threads: int | None = None,
    progress: Callable[..., Iterable] | None = None,
) -> tuple[PhotoSet, PhotoSet, list[Skipped]]:
    """Read `folder`/{train,val}/<class>/ into two sets of square photos.

    The classes are the sorted names of train's folders; `classes` takes only the first so many of
    them. Files in folders below a class folder belong to it too; links are followed; names that
    begin with a dot are ignored. The order is that of the sorted names, whatever the file system
    or the number of threads (None: one per core). progress wraps the iteration as tqdm does:
    progress(iterable, total=number of files).

    Returns (train, val, skipped): images uint8 (N, size, size, 3), and every file that was left
    out. Raises PhotoError, in one line that says what to do, if that makes no training set.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    root = Path(folder)
    try:
        names = _class_names(root, classes)
        found = [
            _Found(split, label, path)
            for split in SPLITS
            for label, name in enumerate(names)
            for path in _files(root / split / name, set())
        ]
    except OSError as error:
        raise PhotoError(f"cannot read {_quoted(error.filename)}: {error.strerror}") from error
    if gap := _first_gap(names, found):
        raise PhotoError(f"{_quoted(root / gap)} is empty: put photos there or remove the class")
    _check_memory(len(found), size)
    images = np.empty((len(found), size, size, 3), np.uint8)

    def decode_row(row: int) -> Skipped | None:
        path = found[row].path
        try:
            if not path.is_file():  # opening a pipe would wait forever
                raise PhotoError("a link that leads nowhere, or not an ordinary file")
            if not path.stat().st_size:
                raise PhotoError("empty file")
            images[row] = decode_square(path, size)
        except PhotoError as error:
            return Skipped(path, str(error))
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        # Pillow's remarks on odd metadata: the pixels are read completely or the file is skipped.
        warnings.simplefilter("ignore")
        outcomes: Iterable[Skipped | None] = pool.map(decode_row, range(len(found)))
        outcomes = list(outcomes if progress is None else progress(outcomes, total=len(found)))

    skipped = [outcome for outcome in outcomes if outcome is not None]
    kept = [row for row, outcome in enumerate(outcomes) if outcome is None]
    if gap := _first_gap(names, [found[row] for row in kept]):
        first = next(each for each in skipped if root / gap in each.path.parents)
        raise PhotoError(
            f"no readable photo in {_quoted(root / gap)} ({len(skipped)} of all {len(found)} files "
            f"cannot be read); {first}"
        )
    for to, row in enumerate(kept):  # closes the gaps in place: a copy might not fit
        if to != row:
            images[to] = images[row]
    labels = np.array([found[row].label for row in kept], np.int64)
    middle, end = sum(found[row].split == "train" for row in kept), len(kept)
    train = PhotoSet(images[:middle], labels[:middle], names)
    val = PhotoSet(images[middle:end], labels[middle:], names)
    return train, val, skipped


def _class_names(root: Path, classes: int | None) -> tuple[str, ...]:
    if not root.exists():
        raise PhotoError(f"no such folder: {_quoted(root)}")
    if not root.is_dir():
        raise PhotoError(f"{_quoted(root)} is not a folder; unpack an archive first")
    for split in SPLITS:
        if not (root / split).is_dir():
            inside = ", ".join(_quoted(name) for name in _subfolders(root)[:5]) or "none"
            raise PhotoError(
                f"{_quoted(root)} has no folder {split!r} (its folders: {inside}); "
                f"photos belong in {split}/<class>/"
            )
    train, val = root / "train", root / "val"
    names, val_names = _subfolders(train), _subfolders(val)
    if not names:
        raise PhotoError(f"{_quoted(train)} has no class folders; make one for each class")
    if unknown := sorted(set(val_names) - set(names)):
        raise PhotoError(f"{_quoted(val)} has {_some(unknown)} that 'train' has not")
    if classes is not None:
        if not 2 <= classes <= len(names):
            raise PhotoError(
                f"cannot take {classes} of the {len(names)} classes in {_quoted(train)}: "
                "a classifier needs at least two"
            )
        names = names[:classes]
    if len(names) < 2:
        raise PhotoError(f"only one class in {_quoted(train)}: a classifier needs at least two")
    if missing := sorted(set(names) - set(val_names)):
        raise PhotoError(
            f"{_quoted(val)} lacks {_some(missing)} of 'train'; it needs a folder for every class"
        )
    return tuple(names)


def _visible(folder: Path) -> list[Path]:
    """What the folder holds, sorted, without what begins with a dot (.DS_Store and the like)."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: path.name)


def _subfolders(folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir()]


def _files(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below a folder, each folder entered once: links may form a ring."""
    identity = (folder.stat().st_dev, folder.stat().st_ino)
    if identity in entered:
        return
    entered.add(identity)
    for path in _visible(folder):
        if path.is_dir():
            yield from _files(path, entered)
        else:
            yield path


def _first_gap(names: tuple[str, ...], found: list[_Found]) -> str | None:
    """The first split/class without a file, if there is one."""
    present = {(each.split, names[each.label]) for each in found}
    wanted = ((split, name) for split in SPLITS for name in names)
    return next((os.path.join(*each) for each in wanted if each not in present), None)


def _check_memory(count: int, size: int) -> None:
    needed, available = count * size * size * 3, _available_memory()
    # A tenth stays free: decoding needs some, and a machine without memory kills programs.
    if available is not None and needed > 0.9 * available:
        raise PhotoError(
            f"{count:,} photos of {size}×{size} need {needed / 1e9:,.2f} GB of memory, and "
            f"{available / 1e9:,.2f} GB is available: take fewer classes or smaller photos"
        )


def _available_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(fields[0][1]) * 1024 if fields else None


def _quoted(name: object) -> str:
    """A file name as one printable line, whatever is in it."""
    return repr(str(name))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the class {names[0]!r}{more}"
