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
