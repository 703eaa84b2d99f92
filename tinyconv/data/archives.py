"""What lies in a tar archive, and where: photos are read in place, nothing is ever unpacked.

An uncompressed tar is a row of members, each a header of 512 bytes and then the file's own bytes.
So a photo in it is (path of the archive, offset, size), and any process can read it at any time.
Python's `tarfile` reads the headers. It is lenient where a data set needs the opposite: a damaged
header in the middle looks like the end of the archive. Here an archive is whole, with its end
mark and nothing behind it, or it is an error.

Names in an archive are only compared and shown, never used as a place to write to. A member that
is no regular file (a link, a device, a sparse file) is listed with the reason why it cannot be
read.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from typing import IO

from tinyconv.data.listing import EXPECTED, Found, Listed, SourceError, quoted, trouble_with_size

_MAX_HEADER = 2**20
_MAX_PADDING = 2**20
_BLOCK = 512
_OFTEN = 1000

OUTSIDE = "its name leads out of the archive"
"""The trouble with a member whose name is absolute or has .. in it."""

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"Rar!": "rar",
    b"7z\xbc\xaf": "7z",
}


def compression(path: str | os.PathLike[str]) -> str | None:
    """The name of a compressed or packed format that the file begins like, or None."""
    with open(path, "rb") as file:
        start = file.read(8)
    return next((name for mark, name in _COMPRESSED.items() if start.startswith(mark)), None)


def list_archive(path: str | os.PathLike[str], listed: Listed | None = None) -> list[Found]:
    """Every member of an uncompressed tar that is not a folder, in the order of the archive.

    Where a name occurs twice the last one counts, as if the archive had been unpacked. Raises
    SourceError if the archive is compressed, damaged or cut short; OSError if it cannot be opened.
    """
    if kind := compression(path):
        raise SourceError(
            f"{quoted(path)} is compressed ({kind}), and photos are read in any order: "
            "unpack it, and give the folder or the .tar"
        )
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        whole = Found("", os.fspath(path), 0, status.st_size, status.st_mtime_ns)
        return list_members(file, whole, listed)


def list_nested(outer: Found, listed: Listed | None = None) -> list[Found]:
    """Every member of a tar that is itself a file of a source, perhaps inside another tar."""
    with open(outer.path, "rb", buffering=0) as file:
        return list_members(file, outer, listed)


def list_members(file: IO[bytes], outer: Found, listed: Listed | None = None) -> list[Found]:
    """The members of the tar that lies at outer.offset, outer.size bytes, of an open file.

    Their names begin with outer.name. Errors as of `list_archive`.
    """
    section = _Section(file, outer.offset, outer.size)
    title = quoted(outer.path) + (f" ({quoted(outer.name)})" if outer.offset else "")
    found: dict[str, Found] = {}
    seen = 0
    try:
        _check_begin(section, title)
        # Not the encoding of the machine: the order of names must be the same everywhere.
        archive = tarfile.TarFile(
            fileobj=section,  # type: ignore[arg-type]
            encoding="utf-8",
            errors="surrogateescape",
        )
        before = -1
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # a million of them otherwise
            if member.size < 0 or not before < member.offset < archive.offset:
                raise SourceError(f"{title} is damaged: a member ends before it begins")
            stored = member.isreg() and not member.issparse()
            if stored and member.offset_data + member.size > outer.size:
                raise _cut_short(title)
            before = member.offset
            seen += 1
            if listed and seen % _OFTEN == 0:
                listed(_OFTEN)
            if not member.isdir():
                name, trouble = _checked(member, outer.name)
                start = outer.offset + member.offset_data
                found.pop(name, None)
                found[name] = Found(name, outer.path, start, member.size, outer.stamp, trouble)
        _check_end(section, archive.offset, title)
    except tarfile.TarError as error:
        if section.at_end:
            raise _cut_short(title) from error
        raise SourceError(f"{title} is damaged: {error}; copy or download it again") from error
    except OSError as error:
        raise SourceError(f"cannot read {title}: {error.strerror or error}") from error
    except SourceError:
        raise
    except (ValueError, ArithmeticError, RecursionError, LookupError, MemoryError) as error:
        # Headers made to confuse: tarfile has no error of its own for some of them.
        raise SourceError(f"{title} is damaged: a header in it makes no sense") from error
    if listed:
        listed(seen % _OFTEN)
    return list(found.values())


def read_gzipped(path: str | os.PathLike[str], limit: int) -> io.BytesIO:
    """The unpacked bytes of a .gz in memory; SourceError beyond `limit` bytes, or for damage."""
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except EOFError as error:
        raise SourceError(f"{quoted(path)} is cut short: copy or download it again") from error
    except Exception as error:  # gzip, zlib and the disk each have errors of their own
        raise SourceError(f"cannot read {quoted(path)}: {error}") from error
    if len(content) > limit:
        raise SourceError(
            f"{quoted(path)} unpacks to more than {limit:,} bytes: is it the right file?"
        )
    return io.BytesIO(content)


def read_whole(found: Found) -> bytes:
    """The bytes of a small file or member; SourceError if they cannot be read."""
    try:
        with open(found.path, "rb") as file:
            file.seek(found.offset)
            return file.read(found.size)
    except OSError as error:
        raise SourceError(f"cannot read {quoted(found.path)}: {error.strerror}") from error


class _Section:
    """A part of a file, as a file that only headers are read from: bounded, whatever they ask."""

    def __init__(self, file: IO[bytes], start: int, size: int):
        self.file, self.start, self.size, self.position = file, start, size, 0
        self.at_end = False

    def seek(self, position: int) -> int:
        if position < 0:
            raise ValueError("before the start")
        self.position = position
        return position

    def tell(self) -> int:
        return self.position

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_HEADER:
            raise ValueError("a header of an impossible size")
        wanted = max(0, min(count, self.size - self.position))
        self.file.seek(self.start + self.position)
        content = b""
        while len(content) < wanted and (more := self.file.read(wanted - len(content))):
            content += more
        self.position += len(content)
        self.at_end = len(content) < count
        return content


def _checked(member: tarfile.TarInfo, above: str) -> tuple[str, str]:
    """A member's name without "./", and what keeps it from being read as a photo."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts:
        return member.name, OUTSIDE
    name = "/".join([above, *parts] if above else parts)
    if member.issym() or member.islnk():
        return name, "a link, which is not followed inside an archive"
    if not member.isreg():
        return name, "not an ordinary file"
    if member.issparse():
        return name, "a sparse file"
    return name, trouble_with_size(member.size)


def _check_begin(section: _Section, title: str) -> None:
    header = section.read(_BLOCK)
    section.seek(0)
    if not header:
        raise SourceError(f"{title} is an empty file")
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return  # an archive of nothing
    except tarfile.HeaderError as error:
        raise SourceError(f"{title} is not a tar archive; {EXPECTED}") from error


def _check_end(section: _Section, offset: int, title: str) -> None:
    """tarfile stops at the end mark, and also at a header that it cannot read."""
    section.seek(offset)
    mark = section.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise _cut_short(title)
    if any(mark):
        raise SourceError(
            f"{title} is damaged at byte {section.start + offset:,}: a header cannot be read; "
            "copy or download it again"
        )
    if any(section.read(_MAX_PADDING)):
        raise SourceError(
            f"{title} goes on behind its end mark: archives joined with cat must be taken apart"
        )


def _cut_short(title: str) -> SourceError:
    return SourceError(f"{title} is cut short: copy or download it again")
