"""Folders on a disk and folders in a tar archive, looked at in the same way.

Both are asked three things: which folders there are at the top, which files lie there, and which
files lie below. The order is that of the sorted names, whatever the file system or the archive.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path

from tinyconv.data.archives import OUTSIDE, list_archive
from tinyconv.data.listing import Found, Listed, SourceError, quoted, trouble_with_size


class FolderTree:
    """A folder on a disk. Links are followed; names that begin with a dot are left out."""

    def __init__(self, path: str, prefix: str = "", listed: Listed | None = None) -> None:
        self.path, self.prefix, self.listed = path, prefix, listed
        self._entries = _visible(path)

    def folders(self) -> list[str]:
        """The names of the folders at the top."""
        return [entry.name for entry in self._entries if _is_folder(entry)]

    def loose(self) -> list[Found]:
        """The files at the top."""
        return [_file(entry, self.prefix) for entry in self._entries if not _is_folder(entry)]

    def below(self, folder: str) -> FolderTree:
        """One of the folders at the top."""
        return FolderTree(os.path.join(self.path, folder), f"{self.prefix}{folder}/", self.listed)

    def files(self) -> list[Found]:
        """Every file, however deep. Each folder is entered once: links may form a ring."""
        found: list[Found] = []
        entered: set[tuple[int, int]] = set()

        def walk(path: str, entries: list[os.DirEntry[str]], prefix: str) -> None:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                return
            entered.add((status.st_dev, status.st_ino))
            for entry in entries:
                if _is_folder(entry):
                    walk(entry.path, _visible(entry.path), f"{prefix}{entry.name}/")
                else:
                    found.append(_file(entry, prefix))

        walk(self.path, self._entries, self.prefix)
        if self.listed:
            self.listed(len(found))
        return found


class ArchiveTree:
    """The members of an archive as folders; names that begin with a dot are left out."""

    def __init__(self, members: list[Found], prefix: str = "") -> None:
        self.prefix = prefix
        self._loose: list[Found] = []
        self._below: dict[str, list[Found]] = defaultdict(list)
        for member in members:
            top, slash, _ = member.name[len(prefix) :].partition("/")
            if top.startswith("."):
                continue
            (self._below[top] if slash else self._loose).append(member)

    def folders(self) -> list[str]:
        """The names of the folders at the top."""
        return sorted(self._below)

    def loose(self) -> list[Found]:
        """The files at the top."""
        return sorted(self._loose, key=_path)

    def below(self, folder: str) -> ArchiveTree:
        """One of the folders at the top."""
        return ArchiveTree(self._below[folder], f"{self.prefix}{folder}/")

    def files(self) -> list[Found]:
        """Every file, however deep."""
        members = self._loose + [each for below in self._below.values() for each in below]
        inside = len(self.prefix)
        return sorted((m for m in members if "/." not in m.name[inside:]), key=_path)


Tree = FolderTree | ArchiveTree


def open_tree(source: Path, listed: Listed | None = None) -> tuple[Tree, list[str]]:
    """The folders of a folder or of an uncompressed tar, and what was left out, in words.

    SourceError says why it cannot be read.
    """
    try:
        if source.is_dir():
            return FolderTree(os.fspath(source), listed=listed), []
        if not source.is_file():  # opening a pipe would wait forever
            raise SourceError(f"{quoted(source)} is neither a folder nor an ordinary file")
        members = list_archive(source, listed)
    except OSError as error:
        where = quoted(error.filename or source)
        raise SourceError(f"cannot read {where}: {error.strerror}") from error
    outside = [f"left out: {quoted(m.name)}: {OUTSIDE}" for m in members if m.trouble == OUTSIDE]
    if len(outside) > 10:
        outside[10:] = [f"left out: {len(outside) - 10:,} more such names"]
    return ArchiveTree([each for each in members if each.trouble != OUTSIDE]), outside


def _path(found: Found) -> list[str]:
    """Sorts as a walk through folders does: a folder's files together, beside its sisters."""
    return found.name.split("/")


def _visible(path: str) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted, without what begins with a dot (.DS_Store and the like)."""
    with os.scandir(path) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(entry: os.DirEntry[str], prefix: str) -> Found:
    name = prefix + entry.name
    try:
        status = entry.stat()
    except OSError:
        return Found(name, entry.path, 0, 0, 0, "a link that leads nowhere")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        return Found(name, entry.path, 0, 0, 0, "not an ordinary file")
    trouble = trouble_with_size(status.st_size)
    return Found(name, entry.path, 0, status.st_size, status.st_mtime_ns, trouble)
