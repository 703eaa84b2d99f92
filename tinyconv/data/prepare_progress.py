"""The progress of a preparation, in a small file that is replaced atomically.

    9d2a07c1 {"task": {"listing": sha256, "settings": {...}}, "done": 1024,
              "skipped": [[37, "empty file"]], "finished": false}

The line begins with its CRC-32. It is written after the rows that it counts are on disk, so they
can be relied on after a crash. A missing or damaged file means starting again.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any


class Progress:
    """How far a preparation has come.

    path: of the file; task: what is prepared, JSON values. done: photos processed; skipped:
    (index in the listing, reason) of those that were left out; finished: the prepared file is
    complete; other: `path` has the progress of another task.
    """

    def __init__(self, path: Path, task: dict[str, Any]) -> None:
        self.path, self.task, self.other = path, json.loads(json.dumps(task)), False
        self.done, self.skipped, self.finished = 0, list[tuple[int, str]](), False
        try:
            line = path.read_bytes()
            if line[:8] == _crc(line[9:]):
                self._load(json.loads(line[9:]))
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def _load(self, state: dict[str, Any]) -> None:
        self.other = state["task"] != self.task
        if not self.other:
            self.done, self.finished = state["done"], state["finished"]
            self.skipped = [(index, reason) for index, reason in state["skipped"]]

    def save(self) -> None:
        """Write the file; it is on disk when this returns."""
        names = ("task", "done", "skipped", "finished")
        line = json.dumps({name: getattr(self, name) for name in names})
        replace_file(self.path, _crc(line.encode()).decode() + " " + line)

    def reset(self) -> None:
        """Nothing is done any more."""
        self.path.unlink(missing_ok=True)
        self.done, self.skipped, self.finished, self.other = 0, [], False, False


def beside(path: Path, ending: str) -> Path:
    """A hidden name in the same folder, for a temporary file."""
    return path.with_name(f".{path.name.lstrip('.')}.{ending}")


def replace_file(path: Path, text: str) -> None:
    """Write a text file completely or not at all, whenever the program is killed."""
    temporary = beside(path, "new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _crc(line: bytes) -> bytes:
    return b"%08x" % zlib.crc32(line)
