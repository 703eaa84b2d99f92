"""Makes one file of squares from a folder or archives of photos (paper §2).

Decoding in every epoch would be slower than the net. So photos are decoded and rescaled once, to
uint8 rows that can be read in any order. Unreadable photos are left out, named, and counted.

The program can be killed at any moment, and the same call resumes:

    .OUT.h5.part        the file so far; also the lock against a second preparation
    .OUT.h5.progress    what is done of it (`prepare_progress.py`), saved after the rows
    OUT.h5              the complete file, renamed from the first

The bytes of OUT.h5 are a function of the photos and the options; the number of workers and
interruptions change nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from tinyconv.data.bar import tqdm
from tinyconv.data.decode import BATCH, decode_in_order
from tinyconv.data.listing import Listing, Skipped, SourceError, quoted
from tinyconv.data.prepare_progress import Progress, beside, replace_file
from tinyconv.data.sources import Options, list_source
from tinyconv.data.store_format import SPLITS
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
    *,
    size: int | None = None,
    workers: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    labels_from: int = 0,
    val_share: float | None = None,
    seed: int = 0,
    only_val: bool = False,
    strict: bool = False,
    force: bool = False,
    report: Callable[[str], object] = lambda line: None,
    progress: Callable[..., Any] = _NO_BAR,
) -> tuple[list[Skipped], int]:
    """Decode the photos of `source` (`sources.py`) into the file `out`.

    size: side of the squares in pixels; None: 256, or 32 for CIFAR-10. workers: threads that
    decode; None: one per core. labels, labels_from, val_share, seed: as in `sources.Options`.
    only_val: without training photos, to evaluate with. strict: the first unreadable photo is an
    error. force: replace an older `out`. report is called with lines for the user; progress as tqdm
    is, with desc, total, initial and unit.

    Returns the files that were left out, which `skipped_file(out)` names, and how many photos an
    earlier call had done. Interrupted or failed, the same call resumes. SourceError, one line that
    says what to do; an older `out` is unchanged then.
    """
    out = Path(os.path.abspath(out))
    exists = SourceError(f"{quoted(out)} exists already: give --force to replace it")
    if size is not None and not 1 <= size <= LARGEST:
        raise SourceError(f"the size must be 1 to {LARGEST} pixels, not {size}")
    if workers is not None and workers < 0:
        raise SourceError(f"the number of workers cannot be negative: {workers}")
    if not 0 <= seed < 2**64:
        raise SourceError(f"the seed must be 0 to 2^64 - 1, not {seed}")
    if out.is_dir():
        raise SourceError(f"{quoted(out)} is a folder: give the name of the file to make")
    if not out.parent.is_dir():
        raise SourceError(f"no such folder: {quoted(out.parent)}; make it first")
    if out.exists() and not force and not beside(out, "progress").exists():
        raise exists
    with progress(desc="listing", unit="file") as bar:
        splits = ("val",) if only_val else SPLITS
        options = Options(labels, labels_from, val_share, seed, splits)
        listing = list_source(source, options, bar.update)
    work = _Work(listing, out, size or listing.size, strict, report, progress)
    try:
        with _locked(work.part, work.saved.path):
            complete = work.saved.finished and not work.part.stat().st_size
            if out.exists() and not force and not complete:
                raise exists
            if complete and out.exists():  # killed between renaming and removing the progress
                work.part.unlink()
            else:
                work.run(None if workers is None else workers or 1)
            work.saved.path.unlink(missing_ok=True)
        return work.skipped(), work.resumed
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
    file, then "finished"; then the new name.
    """

    def __init__(
        self,
        listing: Listing,
        out: Path,
        size: int,
        strict: bool,
        report: Callable[[str], object],
        progress: Callable[..., Any],
    ) -> None:
        self.listing, self.photos, self.counts = listing, listing.photos, listing.counts()
        self.out, self.part, self.size, self.strict = out, beside(out, "part"), size, strict
        self.report, self.progress = report, progress
        self.settings = {
            "source": {"kind": listing.kind, "name": listing.name},
            "size": size,
            "resampling": "bicubic",
            "versions": {"tinyconv": metadata.version("tinyconv"), "Pillow": PIL.__version__},
            "listed": self.counts,
            **listing.choices,
        }
        task = {"listing": listing.digest(), "settings": self.settings}
        self.saved = Progress(beside(out, "progress"), task)
        self.resumed = self.saved.done

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
            self._decode(writer, workers)
            labels = self._labels()
            for split, each in labels.items():
                if self.counts[split] and not len(each):
                    raise SourceError(self._unreadable(split))
            writer.finish(labels, partial(self.progress, desc="statistics", unit="block"))
        if self.saved.skipped:
            replace_file(skipped_file(self.out), "".join(f"{each}\n" for each in self.skipped()))
        else:
            skipped_file(self.out).unlink(missing_ok=True)  # of an older file
        self.saved.finished = True
        self.saved.save()
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
        saved, total = self.saved, len(self.photos)
        if saved.done and self.part.stat().st_size < total * self.size**2 * 3:
            self.report("the unfinished file is missing or damaged: starting again")
            saved.reset()
        elif saved.other:
            self.report("the source or the options have changed: starting again")
            saved.reset()
        elif saved.done:
            self.report(f"resuming after {saved.done:,} of {total:,} photos")
        if not saved.done:
            os.truncate(self.part, 0)
        self.resumed = saved.done
        self._check_strict(saved.skipped)

    def _decode(self, writer: StoreWriter, workers: int | None) -> None:
        start, border, total = self.saved.done, self.counts["train"], len(self.photos)
        cuts = sorted({*range(start, total, BATCH), max(start, border), total})
        bounds = list(zip(cuts[:-1], cuts[1:], strict=True))  # a batch is of one split
        batches = [[photo.found for photo in self.photos[a:b]] for a, b in bounds]
        skipped = list(self.saved.skipped)
        rows = {split: len(each) for split, each in self._labels(start).items()}
        saved_at = time.monotonic()
        with (
            self.progress(total=total, initial=start, desc="decoding", unit="photo") as bar,
            closing(decode_in_order(batches, self.size, workers)) as decoded,
        ):
            for (first, last), (images, reasons) in zip(bounds, decoded, strict=True):
                split = self.photos[first].split
                bad = [(first + i, reason) for i, reason in enumerate(reasons) if reason]
                self._check_strict(bad)
                skipped += bad
                kept = images[[not reason for reason in reasons]]
                writer.write_rows(split, rows[split], kept)
                rows[split] += len(kept)
                bar.update(last - first)
                late = time.monotonic() - saved_at > SAVE_SECONDS
                if late or last - self.saved.done >= SAVE_PHOTOS or last == total:
                    writer.flush()
                    self.saved.done, self.saved.skipped = last, list(skipped)
                    self.saved.save()
                    saved_at = time.monotonic()

    def _check_strict(self, skipped: list[tuple[int, str]]) -> None:
        if self.strict and skipped:
            raise SourceError(f"{self._name(*skipped[0])} (--strict; without it, it is left out)")

    def _unreadable(self, split: str) -> str:
        first = next(each for each in self.saved.skipped if self.photos[each[0]].split == split)
        self.saved.reset()
        return (
            f"none of the {self.counts[split]:,} files in {split} is a readable photo; "
            f"{self._name(*first)}"
        )

    def _labels(self, done: int | None = None) -> dict[str, np.ndarray]:
        """Labels of the readable ones among the first `done` photos, by split."""
        bad = {index for index, _ in self.saved.skipped}
        kept = [photo for index, photo in enumerate(self.photos[:done]) if index not in bad]
        return {
            split: np.array([photo.label for photo in kept if photo.split == split], np.int64)
            for split in SPLITS
        }

    def _name(self, index: int, reason: str) -> Skipped:
        return Skipped(Path(self.photos[index].found.name), reason)

    def skipped(self) -> list[Skipped]:
        """The files that are left out."""
        return [self._name(*each) for each in self.saved.skipped]


def skipped_file(out: str | os.PathLike[str]) -> Path:
    """The text file that names what was left out of a prepared file."""
    return Path(out).with_suffix(".skipped.txt")


@contextmanager
def _locked(part: Path, progress: Path) -> Iterator[None]:
    """Lock the unfinished file, made if it does not exist, against a second preparation.

    At the end it is removed if there is no progress to resume.
    """
    with open(part, "ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino
        except BlockingIOError:
            held = False
        if not held:  # or it was renamed a moment ago
            raise SourceError("another preparation is writing the same file: wait for it or end it")
        try:
            yield
        finally:
            if part.exists() and not progress.exists():
                part.unlink()
