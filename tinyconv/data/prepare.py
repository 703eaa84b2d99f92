"""Makes one file of squares from a folder or archives of photos (paper §2).

Decoding in every epoch would be slower than the net. So photos are decoded and rescaled once, to
uint8 rows that can be read in any order. Unreadable photos are left out, named, and counted.

The program can be killed at any moment, and the same call resumes:

    .OUT.h5.part        the file so far; also the lock against a second preparation
    .OUT.h5.progress    what is done of it, saved after the rows; one line, with its CRC-32:
                        9d2a07c1 {"task": sha256, "done": 1024, "skipped": [[37, "empty file"]]}
    OUT.h5              the complete file, renamed from the first

The bytes of OUT.h5 are a function of the photos and the options; the number of workers and
interruptions change nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from tinyconv.data.bar import tqdm
from tinyconv.data.decode import decode_in_order
from tinyconv.data.listing import Listing, Photo, Skipped, SourceError, quoted
from tinyconv.data.photos import SPLITS
from tinyconv.data.sources import Options, list_source
from tinyconv.data.store_writer import FULL, StoreWriter

try:
    import fcntl
except ImportError:  # Windows: two preparations of one file at once are not detected
    fcntl = None  # type: ignore[assignment]

LARGEST = 4096
"""Pixels; a larger size is taken for a typing error."""

SAVE_PHOTOS, SAVE_SECONDS = 512, 5.0
"""Progress is saved after this many photos or seconds."""


_NO_BAR = partial(tqdm, disable=True)


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    size: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    force: bool = False,
    report: Callable[[str], object] = lambda line: None,
    progress: Callable[..., Any] = _NO_BAR,
) -> tuple[list[Skipped], int]:
    """Decode the photos of `source` into the file `out`.

    options: how the source is read (`sources.py`). size: side of the squares in pixels; None: 256,
    or 32 for CIFAR-10. workers: threads that decode; None: one per core. strict: the first
    unreadable photo is an error. force: replace an older `out`. report is called with lines for
    the user; progress as tqdm is, with desc, total, initial and unit.

    Returns the files that were left out, which `skipped_file(out)` names, and how many photos an
    earlier call had done. Interrupted or failed, the same call resumes. SourceError, one line that
    says what to do; an older `out` is unchanged then.
    """
    out = Path(os.path.abspath(out))
    part, saved = _beside(out, "part"), _beside(out, "progress")
    if size is not None and not 1 <= size <= LARGEST:
        raise SourceError(f"the size must be 1 to {LARGEST} pixels, not {size}")
    if workers is not None and workers < 0:
        raise SourceError(f"the number of workers cannot be negative: {workers}")
    if out.is_dir():
        raise SourceError(f"{quoted(out)} is a folder: give the name of the file to make")
    if not out.parent.is_dir():
        raise SourceError(f"no such folder: {quoted(out.parent)}; make it first")
    exists = SourceError(f"{quoted(out)} exists already: give --force to replace it")
    if out.exists() and not force and not saved.exists():
        raise exists
    with progress(desc="listing", unit="file") as bar:
        listing = list_source(source, options, bar.update)
    try:
        with _locked(part, saved):
            work = _Work(listing, out, size or listing.size, strict, report, progress)
            renamed = work.done == len(work.photos) and not part.stat().st_size and out.exists()
            if out.exists() and not force and not renamed:
                raise exists
            if not renamed:  # else killed between renaming and removing the progress
                work.run(None if workers is None else workers or 1)
            saved.unlink(missing_ok=True)
        return work.left_out(), work.resumed
    except BrokenPipeError:  # nobody reads the report
        raise
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        if error.errno in FULL:
            raise SourceError(
                f"the disk is full ({reason}): make room for {quoted(out)} and run the same "
                "command again, which resumes"
            ) from error
        raise SourceError(f"cannot write {quoted(error.filename or out)}: {reason}") from error


class _Work:
    """One listing on its way into one file.

    The order of writing makes it resumable: rows, then the progress that counts them; the complete
    file, then its new name.
    """

    def __init__(
        self, listing: Listing, out: Path, size: int, strict: bool, report: Any, progress: Any
    ) -> None:
        self.listing, self.out, self.size, self.strict = listing, out, size, strict
        self.report, self.progress = report, progress
        self.photos, self.counts = listing.photos, listing.counts()
        self.part, self.saved = _beside(out, "part"), _beside(out, "progress")
        self.settings = {
            "source": {"kind": listing.kind, "name": listing.name},
            "size": size,
            "resampling": "bicubic",
            "versions": {"tinyconv": metadata.version("tinyconv"), "Pillow": PIL.__version__},
            "listed": self.counts,
            **listing.choices,
        }
        task = json.dumps([listing.digest(), self.settings], sort_keys=True)
        self.task = hashlib.sha256(task.encode()).hexdigest()
        state = read_progress(self.saved)
        self.other = state.get("task", self.task) != self.task
        if self.other or not state:
            state = {"done": 0, "skipped": []}
        # Photos processed, and (index in the listing, reason) of those that are left out.
        self.done: int = state["done"]
        self.skipped: list[tuple[int, str]] = state["skipped"]
        self.resumed = self.done

    def run(self, workers: int | None) -> None:
        """Do all that is not done yet. SourceError or OSError if that fails."""
        for note in self.listing.notes:
            self.report(note)
        self._check_space()
        self._check_unfinished()
        with StoreWriter(
            self.part,
            size=self.size,
            rows=self.counts,
            class_ids=self.listing.class_ids,
            class_names=self.listing.class_names,
            settings=self.settings,
        ) as writer:
            kept = self._decode(writer, workers)
            labels = {}
            for split in SPLITS:
                of_split = [photo.label for photo in kept if photo.split == split]
                if self.counts[split] and not of_split:
                    self.saved.unlink()  # the next call starts again
                    places = enumerate(self.skipped)
                    first = next(i for i, (k, _) in places if self.photos[k].split == split)
                    raise SourceError(
                        f"none of the {self.counts[split]:,} files in {split} is a readable photo; "
                        f"{self.left_out()[first]}"
                    )
                labels[split] = np.array(of_split, np.int64)
            writer.finish(labels, partial(self.progress, desc="statistics", unit="block"))
        if self.skipped:
            _replace(skipped_file(self.out), "".join(f"{each}\n" for each in self.left_out()))
        else:
            skipped_file(self.out).unlink(missing_ok=True)  # of an older file
        os.replace(self.part, self.out)

    def _check_space(self) -> None:
        row = self.size**2 * 3
        needed = len(self.photos) * row + 4 * row + 2**20
        free = shutil.disk_usage(self.out.parent).free
        free += getattr(self.part.stat(), "st_blocks", 0) * 512  # is continued or replaced
        sizes = f"{needed / 1e9:,.2f} GB", f"{free / 1e9:,.2f} GB"
        self.report(
            f"{self.counts['train']:,} training and {self.counts['val']:,} validation photos, "
            f"{len(self.listing.class_ids):,} classes; at {self.size}×{self.size} they need "
            f"{sizes[0]}, the disk has {sizes[1]}"
        )
        if needed > free:
            raise SourceError(
                f"{quoted(self.out)} needs {sizes[0]} and the disk has {sizes[1]}: make room, take "
                "another disk, or a smaller --size"
            )

    def _check_unfinished(self) -> None:
        """Resume the unfinished file, or empty it if it is of other photos, or damaged."""
        total = len(self.photos)
        if self.done and self.part.stat().st_size < total * self.size**2 * 3:
            self.report("the unfinished file is missing or damaged: starting again")
            self.done, self.skipped = 0, []
        elif self.other:
            self.report("the source or the options have changed: starting again")
        elif self.done:
            self.report(f"resuming after {self.done:,} of {total:,} photos")
        if not self.done:
            self.saved.unlink(missing_ok=True)
            os.truncate(self.part, 0)
        self.resumed = self.done
        self._check_strict()

    def _decode(self, writer: StoreWriter, workers: int | None) -> list[Photo]:
        """Decode and write what is left; returns the readable photos of all."""
        bad = {index for index, _ in self.skipped}
        kept = [photo for i, photo in enumerate(self.photos[: self.done]) if i not in bad]
        rows = Counter(photo.split for photo in kept)
        total, saved_at = len(self.photos), time.monotonic()
        files = [photo.found for photo in self.photos[self.done :]]
        with (
            self.progress(total=total, initial=self.done, desc="decoding", unit="photo") as bar,
            closing(decode_in_order(files, self.size, workers)) as decoded,
        ):
            for done, (image, reason) in enumerate(decoded, self.done + 1):
                photo = self.photos[done - 1]
                if image is None:
                    self.skipped.append((done - 1, reason))
                    self._check_strict()
                else:
                    writer.write_rows(photo.split, rows[photo.split], image[None])
                    rows[photo.split] += 1
                    kept.append(photo)
                bar.update(1)
                late = time.monotonic() - saved_at > SAVE_SECONDS
                if late or done - self.done >= SAVE_PHOTOS or done == total:
                    writer.sync()
                    self.done, saved_at = done, time.monotonic()
                    state = {"task": self.task, "done": done, "skipped": self.skipped}
                    save_progress(self.saved, state)
        return kept

    def _check_strict(self) -> None:
        if self.strict and self.skipped:
            raise SourceError(f"{self.left_out()[0]} (--strict; without it, it is left out)")

    def left_out(self) -> list[Skipped]:
        """The files that are left out."""
        return [Skipped(Path(self.photos[i].found.name), reason) for i, reason in self.skipped]


def skipped_file(out: str | os.PathLike[str]) -> Path:
    """The text file that names what was left out of a prepared file."""
    return Path(out).with_suffix(".skipped.txt")


def read_progress(path: Path) -> dict[str, Any]:
    """What `save_progress` has written; empty if there is no such file, or it is damaged."""
    try:
        crc, _, line = path.read_text("utf-8").partition(" ")
        return json.loads(line) if crc == _crc(line) else {}
    except (OSError, ValueError):
        return {}


def save_progress(path: Path, state: dict[str, Any]) -> None:
    """Write the file; it is on disk when this returns. state: JSON values."""
    line = json.dumps(state)
    _replace(path, f"{_crc(line)} {line}")


def _crc(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}"


def _beside(path: Path, ending: str) -> Path:
    """A hidden name in the same folder, for a temporary file."""
    return path.with_name(f".{path.name.lstrip('.')}.{ending}")


def _replace(path: Path, text: str) -> None:
    """Write a text file completely or not at all, whenever the program is killed."""
    with open(temporary := _beside(path, "new"), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def _locked(part: Path, progress: Path) -> Iterator[None]:
    """Lock the unfinished file, made if it does not exist, against a second preparation.

    At the end it is removed if there is no progress to resume.
    """
    with open(part, "ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SourceError(
                "another preparation is writing the same file: wait for it or end it"
            ) from error
        try:
            yield
        finally:
            if part.exists() and not progress.exists():
                part.unlink()
