"""The files of a folder or of a tar archive, in one form and order.

A `Tree` answers three questions: which folders it has, which files are at its top, and which files
are in it at any depth. The order is that of the sorted names, whatever the file system or archive.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path

from tinyconv.data.archives import OUTSIDE, list_archive
from tinyconv.data.listing import Found, Listed, SourceError, problem_with_size, quoted, some

_DEEPEST = 200


class Tree:
    """Sorted files and folders (names that end with "/") whose names begin with `prefix`."""

    def __init__(self, found: list[Found], prefix: str = "") -> None:
        self.prefix = prefix
        self.files = [each for each in found if not each.name.endswith("/")]
        self.loose: list[Found] = []
        self._below: dict[str, list[Found]] = defaultdict(list)
        for each in found:
            top, slash, _ = each.name[len(prefix) :].partition("/")
            if slash:
                self._below[top].append(each)
            elif top:
                self.loose.append(each)
        self.folders = sorted(self._below)

    def below(self, folder: str) -> Tree:
        """One of the folders at the top."""
        return Tree(self._below.get(folder, []), f"{self.prefix}{folder}/")

    def classes(self) -> dict[str, list[Found]]:
        """The files of each folder at the top, at any depth."""
        return {name: self.below(name).files for name in self.folders}


def open_tree(source: Path, listed: Listed | None = None) -> tuple[Tree, list[str]]:
    """The files of a folder or an uncompressed tar, and what was left out, in words.

    Names that begin with a dot are ignored (.DS_Store and the like). SourceError or OSError if the
    source cannot be read.
    """
    if source.is_dir():
        found = _list_folder(os.fspath(source), "", ())
        if listed:
            listed(len(found))
    elif source.is_file():
        found = list_archive(source, listed)
    else:  # photos are read in any order, and opening a pipe would block
        raise SourceError(f"{quoted(source)} is neither a folder nor an ordinary file")
    outside = [each.name for each in found if each.problem == OUTSIDE]
    notes = [f"left out: {some(outside)}: {OUTSIDE}"] if outside else []
    found = [each for each in found if each.problem != OUTSIDE and "/." not in f"/{each.name}"]
    found.sort(key=lambda each: each.name.split("/"))
    return Tree([each for each in found if each.name != "/"]), notes


def _list_folder(path: str, prefix: str, above: tuple[tuple[int, int], ...]) -> list[Found]:
    """Everything below a folder; links are followed, except to a folder that contains them."""
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in above:
        return []
    above += ((status.st_dev, status.st_ino),)
    if len(above) > _DEEPEST:
        raise SourceError(f"{quoted(path[:200])}...: folders are nested more than {_DEEPEST} deep")
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except OSError:
                found.append(Found(name, entry.path, 0, 0, 0, "a link to nowhere"))
                continue
            size, stamp = status.st_size, status.st_mtime_ns
            if stat.S_ISDIR(status.st_mode):
                found.append(Found(f"{name}/", entry.path, 0, 0, 0))
                found += _list_folder(entry.path, f"{name}/", above)
            elif stat.S_ISREG(status.st_mode):
                problem = problem_with_size(size)
                found.append(Found(name, entry.path, 0, size, stamp, problem))
            else:  # opening a pipe would block
                found.append(Found(name, entry.path, 0, 0, 0, "not an ordinary file"))
    return found
