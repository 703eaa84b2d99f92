"""Tar archives made on the spot, whole and hostile."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from photo_bytes import encoded, laid_out, put
from PIL import Image

WNIDS = ("n01440764", "n02102040", "n03000684")


def tar_of(members: Mapping[str, bytes], **options) -> bytes:
    """An uncompressed tar with these files, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:
        for name, content in members.items():
            add(archive, name, content)
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = b"0", **fields):
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def header(name: bytes = b"x", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    """One header block, its fields written as they are given; the checksum is right."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


PACKED = [None, ".tar", ".tar.gz"]


def source_of(folder: Path, files: Mapping[str, bytes], packed: str | None = None) -> Path:
    """The files in a folder, a tar, or a compressed tar."""
    if packed is None:
        return laid_out(folder, files)
    content = gzip.compress(tar_of(files), mtime=0) if packed == ".tar.gz" else tar_of(files)
    return put(folder.with_name(f"{folder.name}{packed}"), content)


def photo(value: int) -> bytes:
    """A small photo of one colour that no other value has."""
    return encoded(Image.new("RGB", (11, 8), (value, 255 - value, value // 2))).getvalue()


def class_folders(train: int = 3, val: int = 2, classes: tuple[str, ...] = WNIDS) -> dict:
    """{train,val}/<class>/ as names and photos."""
    files = {}
    for label, name in enumerate(classes):
        for split, count in (("train", train), ("val", val)):
            for k in range(count):
                value = 60 * label + 2 * k + (split == "val")
                files[f"{split}/{name}/{split}_{k}.PNG"] = photo(value)
    return files


def ilsvrc_archives(train: int = 3, val: int = 4) -> tuple[bytes, bytes, list[str]]:
    """The training and validation archives in miniature, and the class of each val photo."""
    inner = {
        f"{name}.tar": tar_of({f"{name}_{k}.JPEG": photo(60 * n + 2 * k) for k in range(train)})
        for n, name in enumerate(WNIDS)
    }
    shown = [WNIDS[(2 * k + 1) % len(WNIDS)] for k in range(val)]
    photos = {
        f"ILSVRC2012_val_{k + 1:08}.JPEG": photo(60 * WNIDS.index(name) + 31)
        for k, name in enumerate(shown)
    }
    # The real archives are in no particular order either.
    return tar_of(dict(reversed(inner.items()))), tar_of(dict(reversed(photos.items()))), shown
