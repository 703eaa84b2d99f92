"""CIFAR-10 in its binary form: 60,000 pictures of 32×32 pixels in six files.

    data_batch_1.bin ... data_batch_5.bin     training
    test_batch.bin                            validation
    batches.meta.txt                          the names of the ten classes, one per line

A record is 3073 bytes: the label, then 1024 bytes each of red, green and blue, row by row. Planes
become channels last. The whole set, 184 MB, is read into memory, from the folder or from
cifar-10-binary.tar.gz.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from tinyconv.data.archives import compression, read_gzipped, unpacked_members
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
    files = _files(source)
    if files is None:
        return None
    if missing := [name for name in (*BATCHES, NAMES) if name not in files]:
        raise SourceError(f"{quoted(source)} lacks {missing[0]}: unpack or download it again")
    lines = files[NAMES].decode("utf-8", "replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    photos = []
    for batch, split in BATCHES.items():
        content = files[batch]
        if not content or len(content) % RECORD:
            raise SourceError(
                f"{quoted(source)}: {batch} has {len(content):,} bytes, which is not a multiple of "
                f"{RECORD}: it is truncated, download it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
        if records[:, 0].max() >= len(names):
            raise SourceError(
                f"{quoted(source)}: {batch} has a label {records[:, 0].max()}, and {NAMES} has "
                f"{len(names)} names"
            )
        pixels = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        for row, (record, image) in enumerate(zip(records, pixels, strict=True)):
            # The record's checksum in place of a time: another content is another source.
            stamp = zlib.crc32(record.data)
            found = Found(f"{batch} {row}", str(source), 0, RECORD, stamp, pixels=image)
            photos.append(Photo(split, int(record[0]), found))
    return Listing("CIFAR-10 binary", source.name, names, names, photos, SIDE)


def _files(source: Path) -> dict[str, bytes] | None:
    """The content of the data set's files by name; None if it is another data set."""
    if source.is_dir():
        folder = source / FOLDER if (source / FOLDER).is_dir() else source
        inside = os.listdir(folder)
        if "cifar-10-batches-py" in inside or {"data_batch_1", "batches.meta"} <= set(inside):
            raise _other_version(source)
        if "data_batch_1.bin" not in inside:
            return None
        return {name: (folder / name).read_bytes() for name in (*BATCHES, NAMES) if name in inside}
    if not source.is_file():
        return None
    packed = compression(source) == "gzip"
    try:
        with gzip.open(source) if packed else open(source, "rb") as file:
            start = file.read(512)  # the header of its folder
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    if b"cifar-10-batches-py" in start or b"cifar-10-batches-mat" in start:
        raise _other_version(source)
    if FOLDER.encode() not in start:
        return None
    content = read_gzipped(source, _MAX_UNPACKED) if packed else source.read_bytes()
    return unpacked_members(source, content)


def _other_version(source: Path) -> SourceError:
    return SourceError(
        f"{quoted(source)} is CIFAR-10 for Python or MATLAB; give the binary version, "
        "cifar-10-binary.tar.gz"
    )
