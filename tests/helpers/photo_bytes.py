"""Small photo files, made on the spot."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


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
