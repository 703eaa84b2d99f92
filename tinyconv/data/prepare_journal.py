"""What is done of a preparation, one line of JSON a block: the place to go on after any ending.

    {"tinyconv prepare": 1, "listing": sha256, "photos": 1331167, "settings": {...}}
    {"done": 512, "rows": 511, "skipped": [[37, "empty file"]]}
    {"done": 1024, "rows": 1023, "skipped": []}
    ...
    {"finished": true}

done, rows: photos so far, and those of them that were readable. A line is written when the rows it
speaks of are on disk, so a line can be believed. The last line may be torn; what follows from the
first line that makes no sense is done again.

The journal is also the lock: whoever holds it may write to the unfinished store. (Not a lock on
the store itself: HDF5 has a use of its own for that.)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tinyconv.data.listing import PrepareError

try:
    import fcntl
except ImportError:  # Windows: two preparations at once are not noticed
    fcntl = None  # type: ignore[assignment]

VERSION = 1


class Journal:
    """An open journal, locked; made by `Journal.open`.

    header: what the preparation is of, or None if none was begun. done: photos done; skipped:
    (place in the listing, reason) of those that were left out; finished: only the name is missing.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.header: dict[str, Any] | None = None
        self.done, self.skipped, self.finished = 0, list[tuple[int, str]](), False
        self._read()

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open or make the journal; PrepareError if another preparation has it open."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            try:
                if fcntl:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The other one may have finished, and removed it, after it was opened here.
                if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return cls(path, descriptor)
            except BlockingIOError as error:
                os.close(descriptor)
                raise PrepareError(
                    "another preparation is writing the same file at this moment: wait for it, or "
                    "end it"
                ) from error
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def forget(self) -> None:
        """Nothing is begun any more."""
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)  # before the file it speaks of is removed or made anew
        self.header, self.done, self.skipped, self.finished = None, 0, [], False

    def begin(self, header: dict[str, Any]) -> None:
        """Note what is begun, after `forget`."""
        self._append({"tinyconv prepare": VERSION} | header)
        self.header = header

    def add(self, done: int, skipped: list[tuple[int, str]]) -> None:
        """Note that all photos before `done` are on disk, but for these."""
        self.skipped += skipped
        self.done = done
        self._append({"done": done, "rows": done - len(self.skipped), "skipped": skipped})

    def finish(self) -> None:
        """Note that the store is complete."""
        self._append({"finished": True})
        self.finished = True

    def remove(self) -> None:
        """Remove the file; the preparation is over."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the lock; a journal in which nothing was begun is removed."""
        if self.header is None:
            self.remove()
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: dict[str, Any]) -> None:
        rest = json.dumps(line).encode() + b"\n"
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _read(self) -> None:
        """Take in the lines that make sense, and cut off the rest."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            good = 0
            for line in file:
                if not line.endswith(b"\n") or not self._take(line):
                    break
                good += len(line)
        if os.fstat(self._descriptor).st_size > good:
            os.ftruncate(self._descriptor, good)

    def _take(self, line: bytes) -> bool:
        try:
            entry = json.loads(line)
            if self.header is None:
                if entry.pop("tinyconv prepare") != VERSION or not isinstance(entry["photos"], int):
                    return False
                self.header = entry
            elif self.finished:
                return False
            elif "finished" in entry:
                self.finished = entry["finished"] is True and self.done == self.header["photos"]
                return self.finished
            else:
                return self._take_block(**entry)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        return True

    def _take_block(self, done: int, rows: int, skipped: list) -> bool:
        assert self.header is not None
        pairs = [(int(place), str(reason)) for place, reason in skipped]
        places = [self.done - 1, *(place for place, _ in pairs), done]
        if sorted(set(places)) != places or not self.done < done <= self.header["photos"]:
            return False
        if rows != done - len(self.skipped) - len(pairs):
            return False
        self.done, self.skipped = done, self.skipped + pairs
        return True


def beside(out: Path, ending: str) -> Path:
    """A hidden name beside a file, for what belongs to it while it is made."""
    return out.with_name(f".{out.name}.{ending}")
