"""The progress of a preparation, in a small file that is replaced atomically.

    9d2a07c1 {"task": sha256, "done": 1024, "skipped": [[37, "empty file"]]}

The line begins with its CRC-32. It is written after the rows that it counts are on disk, so they
can be relied on after a crash. A missing or damaged file means starting again.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any


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
    replace_file(path, f"{_crc(line)} {line}")


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


def _crc(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}"
