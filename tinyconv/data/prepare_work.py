"""The work of `prepare`: one listing on its way into one store, resumable at every moment.

The order of what is brought to disk is all there is to it: rows, then the journal's line that
speaks of them; the whole store, then "finished"; then the name. So whatever is found at the next
start can be believed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from tinyconv.data.folder import Skipped
from tinyconv.data.listing import SPLITS, Listing, PrepareError, quoted
from tinyconv.data.prepare_journal import Journal, beside
from tinyconv.data.prepare_workers import Decoded, decode_here, decode_in_processes, decode_raw
from tinyconv.data.store_format import StoreError
from tinyconv.data.store_writer import StoreWriter

BATCH = 16
"""Photos decoded by a worker at a time."""

BLOCK = 512
"""Photos after which the rows are brought to disk and the journal gets a line, at the latest."""

BLOCK_SECONDS = 5.0
"""Or after so much time."""

_NAMES = {"train": "training", "val": "validation"}


@dataclass
class Prepared:
    """What became of a source.

    counts: photos in each split. classes: how many. size: pixels. nbytes: of the file. resumed:
    photos that an earlier call had done. bare: ids of classes that have no training photo.
    skipped: files that were left out; skipped_file: where they are named.
    """

    path: Path
    counts: dict[str, int]
    classes: int
    size: int
    nbytes: int
    resumed: int
    bare: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    skipped_file: Path | None = None


class Work:
    """Of a listing; out: the file to make; size: of the squares; report, progress: for the user."""

    def __init__(
        self,
        listing: Listing,
        out: Path,
        size: int,
        report: Callable[[str], object],
        progress: Callable[..., Any],
    ) -> None:
        self.listing, self.photos, self.listed = listing, listing.photos, listing.counts()
        self.out, self.part, self.size = out, beside(out, "part"), size
        self.report, self.progress = report, progress
        self.settings = {
            "source": {"kind": listing.kind, "name": listing.name},
            "size": size,
            "resampling": "bicubic",
            "versions": {"tinyconv": metadata.version("tinyconv"), "Pillow": PIL.__version__},
            "listed": self.listed,
            **listing.choices,
        }
        self.header = {
            "listing": listing.digest(),
            "photos": len(listing.photos),
            "settings": self.settings,
        }

    def is_done(self, journal: Journal) -> bool:
        """All of this was done before, and the program killed before it could clear away."""
        return journal.finished and journal.header == self.header and not self.part.exists()

    def run(self, journal: Journal, workers: int, strict: bool) -> Prepared:
        """Do all that is not done yet. PrepareError, StoreError or OSError if that fails."""
        for note in self.listing.notes:
            self.report(note)
        resumed = journal.done
        if not (self.is_done(journal) and self.out.exists()):
            self._check_space()
            with self._writer(journal) as writer:
                resumed = journal.done
                self._refuse_skipped(journal.skipped if strict else [])
                with closing(self._decoded(journal, workers)) as decoded:
                    self._decode(decoded, writer, journal, strict)
                labels = self._labels(journal)
                self._refuse_nothing(labels, journal)
                if not writer.finished:
                    writer.finish(labels, self._statistics_bar)
            self._write_skipped(journal)
            if not journal.finished:
                journal.finish()
            os.replace(self.part, self.out)
            _sync_folder(self.out.parent)
        journal.remove()
        return self._result(journal, resumed)

    # --- before

    def _check_space(self) -> None:
        counts = [f"{self.listed[split]:,} {name}" for split, name in _NAMES.items()]
        needed = len(self.photos) * self.size**2 * 3 + self.size**2 * 12 + 2**20
        free = shutil.disk_usage(self.out.parent).free
        if self.part.exists():  # what is there already is gone on with, or makes room
            free += getattr(self.part.stat(), "st_blocks", 0) * 512
        self.report(
            f"{' and '.join(counts)} photos, {len(self.listing.class_ids):,} classes; at "
            f"{self.size}×{self.size} they need {_gigabytes(needed)}, the disk has "
            f"{_gigabytes(free)}"
        )
        if needed > free:
            raise PrepareError(
                f"{quoted(self.out)} needs {_gigabytes(needed)} and the disk has "
                f"{_gigabytes(free)}: make room, take another disk, or a smaller --size"
            )

    def _writer(self, journal: Journal) -> StoreWriter:
        """The unfinished store, gone on with if it is of these photos and settings."""
        if journal.header == self.header:
            try:
                writer = StoreWriter.reopen(self.part)
                if writer.room == self.listed and writer.settings == self.settings:
                    self.report(f"going on after {journal.done:,} of {len(self.photos):,} photos")
                    return writer
                writer.close()
            except StoreError:
                pass
            self.report("the unfinished file is missing or damaged: starting afresh")
        elif journal.header:
            self.report(
                "the source or the settings have changed since the unfinished preparation: "
                "starting afresh"
            )
        journal.forget()
        self.part.unlink(missing_ok=True)
        writer = StoreWriter.create(
            self.part,
            size=self.size,
            room=self.listed,
            class_ids=self.listing.class_ids,
            class_names=self.listing.class_names,
            settings=self.settings,
        )
        try:
            journal.begin(self.header)
        except BaseException:
            writer.close()
            self.part.unlink()
            raise
        return writer

    # --- decoding

    def _bounds(self, start: int) -> list[tuple[int, int]]:
        """Photos from `start` on in batches; a batch is of one split."""
        border, end = self.listed["train"], len(self.photos)
        cuts = sorted({*range(start, end, BATCH), end} | ({border} if border > start else set()))
        return list(zip(cuts[:-1], cuts[1:], strict=True))

    def _decoded(self, journal: Journal, workers: int) -> Generator[Decoded, None, None]:
        bounds = self._bounds(journal.done)
        if self.listing.raw is not None:
            yield from decode_raw(self.listing.raw, bounds, self.size)
            return
        batches = [[photo.found for photo in self.photos[a:b]] for a, b in bounds]
        if workers:
            yield from decode_in_processes(batches, self.size, workers)
        else:
            yield from decode_here(batches, self.size)

    def _decode(
        self, decoded: Iterator[Decoded], writer: StoreWriter, journal: Journal, strict: bool
    ) -> None:
        rows = self._rows(journal)
        skipped: list[tuple[int, str]] = []
        saved = time.monotonic()
        start, total = journal.done, len(self.photos)
        bar = self.progress(total=total, initial=start, desc="decoding", unit="photo")
        with bar:
            for (first, last), (images, reasons) in zip(self._bounds(start), decoded, strict=True):
                split = self.photos[first].split
                bad = [(first + row, reason) for row, reason in enumerate(reasons) if reason]
                if strict:
                    self._refuse_skipped(bad)
                kept = images if not bad else images[[not reason for reason in reasons]]
                writer.write_rows(split, rows[split], kept)
                rows[split] += len(kept)
                skipped += bad
                bar.update(last - first)
                late = time.monotonic() - saved > BLOCK_SECONDS
                if late or last - journal.done >= BLOCK or last == total:
                    writer.flush()
                    journal.add(last, skipped)
                    skipped, saved = [], time.monotonic()

    def _refuse_skipped(self, skipped: list[tuple[int, str]]) -> None:
        if skipped:
            raise PrepareError(
                f"{self._skipped(*skipped[0])} (--strict; without it such files are left out)"
            )

    # --- after

    def _skipped(self, place: int, reason: str) -> Skipped:
        return Skipped(Path(self.photos[place].found.name), reason)

    def _rows(self, journal: Journal) -> dict[str, int]:
        """Rows of each split that the journal answers for."""
        border = self.listed["train"]
        bad = sum(place < border for place, _ in journal.skipped)
        train = min(journal.done, border) - bad
        return {"train": train, "val": journal.done - len(journal.skipped) - train}

    def _labels(self, journal: Journal) -> dict[str, np.ndarray]:
        bad = {place for place, _ in journal.skipped}
        labels: dict[str, list[int]] = {split: [] for split in SPLITS}
        for place, photo in enumerate(self.photos):
            if place not in bad:
                labels[photo.split].append(photo.label)
        return {split: np.array(each, np.int64) for split, each in labels.items()}

    def _refuse_nothing(self, labels: dict[str, np.ndarray], journal: Journal) -> None:
        """No photo at all to train or to validate with: there is nothing to go on with."""
        empty = next((split for split in SPLITS if not len(labels[split])), None)
        if empty is None:
            return
        first = next(each for each in journal.skipped if self.photos[each[0]].split == empty)
        journal.forget()
        self.part.unlink()
        raise PrepareError(
            f"none of the {self.listed[empty]:,} files in {empty} is a readable photo; "
            f"{self._skipped(*first)}"
        )

    def _write_skipped(self, journal: Journal) -> None:
        file = _skipped_file(self.out)
        if not journal.skipped:
            file.unlink(missing_ok=True)  # of an older store
            return
        temporary = beside(file, "part")
        with open(temporary, "w", encoding="utf-8") as lines:
            lines.writelines(f"{self._skipped(*each)}\n" for each in journal.skipped)
            lines.flush()
            os.fsync(lines.fileno())
        os.replace(temporary, file)

    def _result(self, journal: Journal, resumed: int) -> Prepared:
        labels, ids = self._labels(journal), self.listing.class_ids
        return Prepared(
            path=self.out,
            counts={split: len(each) for split, each in labels.items()},
            classes=len(ids),
            size=self.size,
            nbytes=self.out.stat().st_size,
            resumed=resumed,
            bare=[ids[label] for label in sorted(set(range(len(ids))) - set(labels["train"]))],
            skipped=[self._skipped(*each) for each in journal.skipped],
            skipped_file=_skipped_file(self.out) if journal.skipped else None,
        )

    def _statistics_bar(self, blocks: list, total: int) -> Any:
        return self.progress(blocks, total=total, desc="statistics", unit="block")


def _skipped_file(out: Path) -> Path:
    return out.with_suffix(".skipped.txt")


def _sync_folder(folder: Path) -> None:
    """A new name is on disk when its folder is; not every system can do this."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
