"""HDF5 files that are complete or not there, and in which a single changed bit is noticed.

HDF5 leaves the first bytes of a file to the user (its "user block"). Ours say what the file is and
hold the SHA-256 of everything after them:

    tinyconv checkpoint 1
    sha256 5f2c…

The file is made in memory, sealed, written under a temporary name, flushed to disk, and renamed: a
reader finds the old file or the new one, never half of one, also when the disk is full or the power
fails. A reader compares the digest before the HDF5 library parses a byte, so damage is an error in
one line, never a crash or slightly wrong weights. The bytes depend only on the contents (no time
stamps).
"""

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

USER_BLOCK = 512


class SealError(ValueError):
    """A file is missing, damaged, or of another kind, and why."""


def write_sealed(path: str | Path, kind: str, fill: Callable[[h5py.File], None]) -> None:
    """Make the file of `kind` ("checkpoint 1") at `path`; `fill` writes its contents.

    An OSError (a full disk) leaves what was at `path` untouched, and nothing else behind.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=USER_BLOCK) as file:
        fill(file)
    contents = memory.getbuffer()
    head = f"tinyconv {kind}\nsha256 {hashlib.sha256(contents[USER_BLOCK:]).hexdigest()}\n"
    contents[: len(head)] = head.encode()
    replace_file(path, contents)


def replace_file(path: str | Path, contents: Any) -> None:
    """Put the bytes `contents` at `path`: all of them, on disk when this returns, or an OSError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself is on disk only when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_sealed(path: str | Path, kind: str) -> h5py.File:
    """The file at `path` for reading, its digest compared; SealError says what is wrong."""
    path = Path(path)
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise SealError(f"{path}: cannot be read: {error.strerror or error}") from error
    head = contents[:USER_BLOCK].rstrip(b"\0").split(b"\n")
    name, _, version = kind.rpartition(" ")
    if head[0].rpartition(b" ")[0] != f"tinyconv {name}".encode():
        raise SealError(f"{path}: is not a tinyconv {name}, or its beginning is damaged")
    if head[0] != f"tinyconv {kind}".encode():
        raise SealError(f"{path}: not a tinyconv {name} of version {version}")
    digest = hashlib.sha256(memoryview(contents)[USER_BLOCK:]).hexdigest()
    if head[1:] != [f"sha256 {digest}".encode(), b""] or len(contents) <= USER_BLOCK:
        raise SealError(f"{path}: is damaged: its contents do not have the digest it was sealed by")
    return h5py.File(io.BytesIO(contents), "r")


def write_json(file: h5py.Group, name: str, value: Any) -> None:
    """Store JSON values as the text's bytes (an HDF5 attribute would end at 64 KB)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    file.create_dataset(name, data=np.frombuffer(text, np.uint8))


def read_json(file: h5py.Group, name: str) -> Any:
    """What `write_json` stored."""
    return json.loads(file[name][()].tobytes())
