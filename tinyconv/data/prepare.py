"""From a folder or archives of photos to one store: `prepare`, the work of an hour done once.

Every epoch would decode the same photos again, and that is slower than the net: a GPU waits. So
they are decoded and squared once (paper §2), and the store keeps uint8 rows that can be read at
any place. What is damaged is left out, named, and counted.

The work can be ended at any moment, by Ctrl-C or by a power cut, and the same call goes on:

    .OUT.h5.part        the store so far; its structure is whole from the first moment
    .OUT.h5.journal     what is done of it (`prepare_journal.py`); rows first, then the line
    OUT.h5              only when everything is in it, by renaming

The bytes of OUT.h5 are a function of the photos and the settings; the number of workers and the
interruptions leave no trace.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tinyconv.data.listing import PrepareError, quoted
from tinyconv.data.prepare_journal import Journal, beside
from tinyconv.data.prepare_work import Prepared, Work
from tinyconv.data.sources import list_source
from tinyconv.data.store_format import StoreError

LARGEST = 4096
"""Pixels; a larger square is a slip of the finger."""

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    workers: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    val_share: float | None = None,
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
    report: Callable[[str], object] | None = None,
    progress: Callable[..., Any] | None = None,
) -> Prepared:
    """Decode the photos of `source` (`sources.py`) into the store `out`.

    size: side of the squares in pixels; None: 256, or 32 for CIFAR-10. workers: processes; None:
    one per core, 0: none, all is done here. They are spawned, so a script that calls this needs
    `if __name__ == "__main__"`. labels, val_share, seed: as of `list_source`. strict: the first
    damaged photo is an error. force: replace an older `out`. report is called with lines for the
    user; progress as tqdm is, with desc, total, initial and unit.

    Interrupted or failed, the same call goes on where it was. Raises PrepareError, one line that
    says what to do; an older `out` is untouched then.
    """
    if size is not None and not 1 <= size <= LARGEST:
        raise PrepareError(f"the size must be 1 to {LARGEST} pixels, not {size}")
    if workers is not None and workers < 0:
        raise PrepareError(f"the number of workers cannot be negative: {workers}")
    if not 0 <= seed < 2**64:
        raise PrepareError(f"the seed must be 0 to 2^64 - 1, not {seed}")
    out = Path(os.path.abspath(out))
    if out.is_dir():
        raise PrepareError(f"{quoted(out)} is a folder: give the name of the file to make")
    if not out.parent.is_dir():
        raise PrepareError(f"no such folder: {quoted(out.parent)}; make it first")
    if out.exists() and not force and not beside(out, "journal").exists():
        raise _exists(out)
    progress = progress or _NoBar
    with progress(desc="listing", unit="file") as bar:
        listing = list_source(source, labels, val_share, seed, bar.update)
    work = Work(listing, out, size or listing.size, report or _silent, progress)
    try:
        with Journal.open(beside(out, "journal")) as journal:
            if out.exists() and not force and not work.is_done(journal):
                raise _exists(out)
            return work.run(journal, _cores() if workers is None else workers, strict)
    except StoreError as error:
        raise PrepareError(str(error)) from error
    except BrokenPipeError:  # nobody reads what is reported
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise PrepareError(
                f"the disk is full ({error.strerror}): make room beside {quoted(out)} and run the "
                "same command again; it goes on where it was"
            ) from error
        raise PrepareError(
            f"cannot write {quoted(error.filename or out)}: {error.strerror or error}"
        ) from error


def _exists(out: Path) -> PrepareError:
    return PrepareError(f"{quoted(out)} exists already: give --force to replace it")


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silent(line: str) -> None:
    pass


class _NoBar:
    """Stands for tqdm where nobody looks."""

    def __init__(self, iterable: Iterable = (), **_: object) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator:
        return iter(self._iterable)

    def update(self, count: int) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass
