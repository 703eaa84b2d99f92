"""The files of a folder or of a tar archive, in one form and order.

A `Tree` answers three questions: which folders it has, which files are at its top, and which files
are in it at any depth. The order is that of the sorted names, whatever the file system or archive.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tinyconv.data.archives import list_archive
from tinyconv.data.listing import Found, Listed, SourceError, problem_with_size, quoted


class Tree:
    """Sorted files and folders (names that end with "/") whose names begin with `prefix`."""

    def __init__(self, found: list[Found], prefix: str = "") -> None:
        self.prefix, self.name = prefix, prefix[:-1].rpartition("/")[2]
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

    def top(self) -> dict[str, Found]:
        """The files at the top, by name."""
        return {each.name[len(self.prefix) :]: each for each in self.loose}


def sorted_tree(found: list[Found], prefix: str = "") -> Tree:
    """A tree in the order of the names, part by part.

    Names that begin with a dot are left out (.DS_Store and the like), and with them those that lead
    out of an archive (../x).
    """
    shown = [each for each in found if "/." not in f"/{each.name}" and each.name != "/"]
    return Tree(sorted(shown, key=lambda each: each.name.split("/")), prefix)


def open_tree(source: Path, listed: Listed | None = None) -> Tree:
    """The files of a folder or a tar. SourceError or OSError if the source cannot be read."""
    if source.is_file():
        return sorted_tree(list_archive(source, listed))
    if not source.is_dir():  # photos are read in any order, and opening a pipe would block
        raise SourceError(f"{quoted(source)} is neither a folder nor an ordinary file")
    found = list(_walk(os.fspath(source), "", ()))
    if listed:
        listed(len(found))
    return sorted_tree(found)


def _walk(path: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    """Everything below a folder; links are followed, except to a folder that contains them."""
    status = os.stat(path)
    above += ((status.st_dev, status.st_ino),)
    if above[-1] in above[:-1]:
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            found = Found(prefix + entry.name, entry.path, 0, 0, 0)
            try:
                status = entry.stat()
            except OSError:
                yield found._replace(problem="a link to nowhere")
                continue
            if stat.S_ISDIR(status.st_mode):
                yield found._replace(name=f"{found.name}/")
                yield from _walk(entry.path, f"{found.name}/", above)
            elif stat.S_ISREG(status.st_mode):
                problem, stamp = problem_with_size(status.st_size), status.st_mtime_ns
                yield found._replace(size=status.st_size, stamp=stamp, problem=problem)
            else:
                yield found._replace(problem="not an ordinary file")
