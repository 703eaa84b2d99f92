"""The members of a tar archive and their places: photos are read in place, nothing is unpacked.

A photo in an uncompressed tar is (path of the archive, offset, size). Python's `tarfile` parses the
headers, but it takes a damaged header for the end of the archive. Here an archive must be whole,
with its end mark and only zeros after it.

Names in an archive are compared and printed, never used as a path. Links, devices and sparse files
are listed with the reason why they cannot be read. A .gz is unpacked in memory, up to a limit.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from typing import IO

from tinyconv.data.listing import EXPECTED, Found, Listed, SourceError, problem_with_size, quoted

MAX_UNPACKED = 2**30
"""Bytes of a .tar.gz in memory."""

_MAX_HEADER = 2**20
"""Bytes that are read at once: of a header, or after the end."""

_ADVICE = "unpack it, and give the folder or the .tar"

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}


def list_archive(path: str | os.PathLike[str], listed: Listed | None = None) -> list[Found]:
    """Every member of a tar, in the order of the archive; folders end with "/".

    If a name occurs twice the last one counts, as after unpacking. A small .tar.gz is unpacked in
    memory. SourceError if the archive is compressed otherwise, damaged or truncated; OSError if it
    cannot be opened.
    """
    status = os.stat(path)
    outer = Found("", os.fspath(path), 0, status.st_size, status.st_mtime_ns)
    with open(path, "rb") as file:
        start = file.read(8)
    kind = next((name for mark, name in _COMPRESSED.items() if start.startswith(mark)), None)
    if kind == "gzip":
        content = _unpacked(path)
        outer = outer._replace(size=len(content), archive=content)
    elif kind:
        raise SourceError(f"{quoted(path)} is compressed ({kind}): {_ADVICE}")
    return list_members(outer, listed)


def list_members(outer: Found, listed: Listed | None = None) -> list[Found]:
    """Every member of a tar that may be inside another one; their names begin with its name."""
    with io.BytesIO(outer.archive) if outer.archive else open(outer.path, "rb") as file:
        found = _members(_Section(file, outer.offset, outer.size), outer)
    if listed:
        listed(len(found))
    return found


def _members(section: _Section, outer: Found) -> list[Found]:
    title = quoted(outer.path) + (f" ({quoted(outer.name)})" if outer.offset else "")

    def broken(how: str = "") -> SourceError:
        return SourceError(f"{title} is truncated or damaged{how}; copy or download it again")

    found: dict[str, Found] = {}
    try:
        # A fixed encoding, because the order of names must not depend on the machine.
        try:
            archive = tarfile.TarFile(
                fileobj=section,  # type: ignore[arg-type]
                encoding="utf-8",
                errors="surrogateescape",
            )
        except tarfile.ReadError as error:
            raise SourceError(f"{title} is not a tar archive; {EXPECTED}") from error
        before = -1
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # a million of them otherwise
            name, problem = _checked(member, outer.name)
            stored = member.isreg() and not member.issparse()
            if stored and member.offset_data + member.size > outer.size:
                raise broken(f": {quoted(name)} is incomplete")
            if member.size < 0 or not before < member.offset < archive.offset:
                raise broken(": a member ends before it begins")
            before, start = member.offset, outer.offset + member.offset_data
            found.pop(name, None)
            found[name] = outer._replace(name=name, offset=start, size=member.size, problem=problem)
        section.seek(archive.offset)
        end = section.read(_MAX_HEADER)
        # tarfile stops at the end mark, and also at a header that it cannot parse.
        if len(end) < tarfile.BLOCKSIZE or any(end[: tarfile.BLOCKSIZE]):
            raise broken(f" at byte {outer.offset + archive.offset:,}")
        if any(end):
            raise broken(", or several archives in one: data after its end mark")
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"cannot read {title}: {error.strerror or error}") from error
    except Exception as error:  # malformed headers make tarfile raise nearly anything
        raise broken() from error
    return list(found.values())


def _unpacked(path: str | os.PathLike[str]) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_UNPACKED + 1)
    except EOFError as error:
        raise SourceError(f"{quoted(path)} is truncated: copy or download it again") from error
    except Exception as error:  # gzip, zlib and the disk each have errors of their own
        raise SourceError(f"cannot read {quoted(path)}: {error}") from error
    if len(content) > MAX_UNPACKED:
        raise SourceError(f"{quoted(path)} unpacks to over {MAX_UNPACKED:,} bytes: {_ADVICE}")
    return content


class _Section:
    """A part of a file, from which only headers are read: no read is larger than a header."""

    def __init__(self, file: IO[bytes], start: int, size: int):
        self.file, self.start, self.size, self.position = file, start, size, 0

    def seek(self, position: int) -> int:
        self.position = position
        return position

    def tell(self) -> int:
        return self.position

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_HEADER or self.position < 0:
            raise ValueError("a header of an impossible size or place")
        self.file.seek(self.start + self.position)
        content = self.file.read(max(0, min(count, self.size - self.position)))
        self.position += len(content)
        return content


def _checked(member: tarfile.TarInfo, above: str) -> tuple[str, str]:
    """A member's name without "./" and a first "/", and why it cannot be read as a photo."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    name = "/".join([above, *parts] if above else parts)
    if member.isdir():
        return f"{name}/", ""
    if member.issym() or member.islnk():
        return name, "a link, and links in an archive are not followed"
    if not member.isreg() or member.issparse():
        return name, "not an ordinary file"
    return name, problem_with_size(member.size)
