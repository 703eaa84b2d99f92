"""CIFAR-10 in its binary form: 60,000 pictures of 32×32 pixels in six files.

    data_batch_1.bin ... data_batch_5.bin     to train with
    test_batch.bin                            to validate with
    batches.meta.txt                          the names of the ten classes, one a line

A record is 3073 bytes: the label, then 1024 bytes each of red, green and blue, row by row. Planes
become channels last. The whole set is 184 MB, so it is read into memory, from the folder or out of
cifar-10-binary.tar.gz.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from tinyconv.data.archives import compression, list_members, read_gzipped
from tinyconv.data.listing import Found, Listing, Photo, SourceError, quoted

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
BATCHES = {
    **{f"data_batch_{number}.bin": "train" for number in range(1, 6)},
    "test_batch.bin": "val",
}
NAMES = "batches.meta.txt"
FOLDER = "cifar-10-batches-bin"

_MAX_UNPACKED = 2**29


def list_cifar10(source: Path) -> Listing | None:
    """The data set, if `source` is its folder or archive, and None if it is something else.

    SourceError for the versions for Python and MATLAB, and for files that are damaged.
    """
    try:
        files = _files(source)
    except OSError as error:
        where = quoted(error.filename or source)
        raise SourceError(f"cannot read {where}: {error.strerror}") from error
    if files is None:
        return None
    if missing := [name for name in (*BATCHES, NAMES) if name not in files]:
        raise SourceError(f"{quoted(source)} lacks {missing[0]}: unpack or download it again")
    names = [line.strip() for line in files[NAMES].decode("utf-8", "replace").splitlines()]
    names = [name for name in names if name]
    photos, parts = [], []
    for batch, split in BATCHES.items():
        content = files[batch]
        if not content or len(content) % RECORD:
            raise SourceError(
                f"{quoted(source)}: {batch} has {len(content):,} bytes, which is no multiple of "
                f"{RECORD}: it is cut short, download it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
        labels = records[:, 0]
        if labels.max() >= len(names):
            raise SourceError(
                f"{quoted(source)}: {batch} has a label {labels.max()}, and {NAMES} has "
                f"{len(names)} names"
            )
        parts.append(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        photos += [
            Photo(split, int(label), Found(f"{batch} {row}", str(source), 0, RECORD, 0))
            for row, label in enumerate(labels)
        ]
    ids = tuple(names)
    pixels = np.concatenate(parts)
    return Listing("CIFAR-10 binary", source.name, ids, ids, photos, SIDE, pixels)


def _files(source: Path) -> dict[str, bytes] | None:
    """The content of the data set's files by name; None if it is another data set."""
    if source.is_dir():
        folder = source / FOLDER if (source / FOLDER).is_dir() else source
        inside = os.listdir(folder)
        if "data_batch_1.bin" in inside:
            wanted = (*BATCHES, NAMES)
            return {name: (folder / name).read_bytes() for name in wanted if name in inside}
        if "cifar-10-batches-py" in inside or {"data_batch_1", "batches.meta"} <= set(inside):
            raise _other_version(source)
        return None
    if not source.is_file():
        return None
    packed = compression(source) == "gzip"
    start = _begin(source, packed)
    if b"cifar-10-batches-py" in start or b"cifar-10-batches-mat" in start:
        raise _other_version(source)
    if FOLDER.encode() not in start:
        return None
    unpacked = read_gzipped(source, _MAX_UNPACKED) if packed else io.BytesIO(source.read_bytes())
    content = unpacked.getbuffer()
    members = list_members(unpacked, Found("", str(source), 0, len(content), 0))
    return {
        PurePosixPath(each.name).name: bytes(content[each.offset : each.offset + each.size])
        for each in members
        if not each.trouble
    }


def _begin(source: Path, packed: bool) -> bytes:
    """The first header of a tar, which has the name of the data set's folder in it."""
    try:
        with gzip.open(source) if packed else open(source, "rb") as file:
            return file.read(512)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""


def _other_version(source: Path) -> SourceError:
    return SourceError(
        f"{quoted(source)} is CIFAR-10 for Python or MATLAB; give the binary version, "
        "cifar-10-binary.tar.gz"
    )
