"""Small photo files, made on the spot, and what the tests of bad ones share."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from tinyconv.data.listing import SourceError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def noisy_jpeg(seed: int = 0, width: int = 90, height: int = 70) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG").getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def plain(colour: tuple[int, ...] | int, size: tuple[int, int] = (12, 9)) -> bytes:
    mode = "RGB" if isinstance(colour, tuple) else "L"
    return encoded(Image.new(mode, size, colour)).getvalue()


def photo_folder(folder: Path, train: int, val: int) -> Path:
    """Dark and light noise: so many photos of each class in folder/train and folder/val."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for k in range(count):
            for name, low, high in (("dark", 0, 90), ("light", 160, 255)):
                noise = Image.fromarray(rng.integers(low, high, (70, 80, 3), np.uint8))
                put(folder / split / name / f"{k}.png", encoded(noise).getvalue())
    return folder


def laid_out(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The folder, with these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        put(folder / name, content)
    return folder


@contextmanager
def refused(message: str, error: type[Exception] = SourceError) -> Iterator[None]:
    """What is done in it raises an error of one line that matches."""
    with pytest.raises(error, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def corrupted(whole: bytes, cases: int, changes: int = 3) -> Iterator[bytes]:
    """So many versions, each with up to so many bytes changed."""
    random = Random(0)
    for _ in range(cases):
        data = bytearray(whole)
        for _ in range(random.randint(1, changes)):
            data[random.randrange(len(data))] ^= random.randrange(1, 256)
        yield bytes(data)
