"""From image files of any kind to one array of square 8-bit photos (paper §2, §4.1).

The net needs inputs of one shape. As in the paper, the shorter side is rescaled to 256 pixels and
the central 256×256 are kept, which is larger than the 224×224 that the net sees: training cuts
another crop out of it every time. The photos remain uint8, a quarter of the size of float32.

Photos that Pillow decodes completely become RGB; others are an error, also if only a part is
missing: the net would learn a grey lower half as if it were part of the photo.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

SPLITS = ("train", "val")

EXIF_ORIENTATION = 0x0112
# The inverse of each EXIF orientation; 1 and undefined values are upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BETWEEN_SCANS = {0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Markers that may follow a scan of a JPEG: tables, another scan, comments, applications' data."""


class PhotoError(ValueError):
    """A photo, or a folder of them, that cannot be used; the message is one line for the user."""


@dataclass(eq=False)
class PhotoSet:
    """Labelled square photos, in memory or mapped from a prepared file (`store.py`).

    images: uint8 (N, S, S, 3), red green blue last. labels: int64 (N,), indices into
    class_names. images_sha256: digest of all pixels, where it is recorded. Raises ValueError if
    shapes, types or labels do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    images_sha256: bytes = b""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        self.class_names = tuple(self.class_names)
        square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
        if images.dtype != np.uint8 or not square:
            raise ValueError(
                f"images must be uint8 (N, S, S, 3), not {images.dtype} {images.shape}"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must be int64 {images.shape[:1]} for images {images.shape}, "
                f"not {labels.dtype} {labels.shape}"
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}, "
                f"but there are {len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side S of the photos in pixels."""
        return self.images.shape[1]

    def copy_rows(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Copy the images of `ids`, integers (n,), into out[:n]; out: uint8 (n or more, S, S, 3).

        Several threads may do so at once. IndexError for ids outside 0 .. N − 1, ValueError for an
        `out` that does not fit, and if the prepared file is closed.
        """
        if len(self.images) < len(self):
            raise ValueError("the prepared file is closed; open it again")
        check_rows(ids, out, len(self), self.size)
        # The ids are checked; with mode="raise" NumPy would make a copy of `out`.
        np.take(self.images, ids, axis=0, out=out[: len(ids)], mode="clip")

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the digest of the images, the labels and the class names."""
        pixels = self.images_sha256
        if not pixels:
            sha = hashlib.sha256()
            for image in self.images:
                sha.update(np.ascontiguousarray(image).data)
            pixels = sha.digest()
        digest = hashlib.sha256(pixels)
        digest.update(json.dumps([self.size, len(self), self.class_names]).encode())
        digest.update(self.labels.astype("<i8").data)
        return digest.hexdigest()

    def close(self) -> None:
        """Release the mapping of a file."""
        self.images = np.empty((0, self.size, self.size, 3), np.uint8)

    def mean_image(self) -> np.ndarray:
        """The mean of every pixel over the set, which training subtracts (§2).

        Returns float32 (S, S, 3) on the scale 0 to 255. Summed in integers, hence the same bits
        whatever the order. Raises ValueError for an empty set.
        """
        if not len(self):
            raise ValueError(f"the mean of no images is not defined: images {self.images.shape}")
        return (self.images.sum(axis=0, dtype=np.int64) / len(self)).astype(np.float32)


def check_rows(ids: np.ndarray, out: np.ndarray, count: int, size: int) -> None:
    """Check that rows `ids` of `count` photos fit into `out`; see `PhotoSet.copy_rows`."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers (n,), not {ids.dtype} {ids.shape}")
    if ids.size and not 0 <= ids.min() <= ids.max() < count:
        raise IndexError(f"ids run from {ids.min()} to {ids.max()}, and there are {count} photos")
    fits = out.ndim == 4 and out.shape[1:] == (size, size, 3) and len(out) >= len(ids)
    if out.dtype != np.uint8 or not fits or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be uint8 ({len(ids)} or more, {size}, {size}, 3), row by row in memory, not "
            f"{out.dtype} {out.shape}"
        )


# --- one photo


def square_for(image_size: int) -> int:
    """Side of the squares for crops of that side: 256 for 224, as in the paper."""
    return round(image_size * 256 / 224)


def central_square(image: Image.Image, size: int) -> Image.Image:
    """Rescale so that the shorter side is `size` pixels and keep the central square (§2).

    One bicubic resampling of the square does both. When it reduces, its filter is widened to
    average over all the pixels it replaces (no aliasing). The square begins on a whole pixel: a
    photo of the right size is unchanged.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def decode_square(source: str | os.PathLike[str] | IO[bytes], size: int) -> np.ndarray:
    """Decode a photo of any format and mode that Pillow reads into an upright RGB square.

    source: a path or an open binary file. Returns uint8 (size, size, 3). Small photos are
    enlarged. Transparent pixels become white. PhotoError, its message the reason in one line, for
    a file that is not a photo, that is incomplete, or that has more than twice the pixels of
    `PIL.Image.MAX_IMAGE_PIXELS`, which Pillow takes for an attack.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    try:
        data = source.read() if hasattr(source, "read") else Path(source).read_bytes()
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # another module may have set it
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":  # a PostScript program, which Pillow would run
                raise PhotoError("EPS is a drawing, not a photo; convert it to PNG")
            _load(image, size)
            if image.format in ("JPEG", "MPO"):
                _check_complete(image, data, size)
            small = central_square(_eight_bits(image), size)
            # The centre is the same in every orientation, so the small square is turned.
            orientation = _orientation(image)
        if small.mode == "RGBA":
            small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
        if orientation in UPRIGHT:
            small = small.transpose(UPRIGHT[orientation])
        return np.array(small.convert("RGB"))
    except PhotoError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise PhotoError(_reason(error)) from error


def _load(image: Image.Image, size: int) -> None:
    # A JPEG is decoded faster at 1/2, 1/4 or 1/8; at twice the size or more, the quality of the
    # result still depends on the resampling.
    image.draft(None, (2 * size, 2 * size))
    image.load()


def _check_complete(image: Image.Image, data: bytes, size: int) -> None:
    """PhotoError for a JPEG that lacks a part of its data, as far as that can be detected.

    libjpeg decodes blocks behind the end of a scan's data as grey, or without the details of that
    scan, and Pillow does not report its warning. So the photo is decoded again with more data in
    front of each marker, which changes the pixels only if data is missing. That takes as long
    again: only for photos whose last pixel is grey, or with several scans or restart markers.
    """
    places = _scan_markers(data)
    last: Any = image.getpixel((image.width - 1, image.height - 1))
    if len(places) < 2 and not np.isin(last, (127, 128)).all():
        return
    parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    with Image.open(io.BytesIO((b"\x55\xa3" * 2**12).join(parts))) as longer:
        _load(longer, size)
        if longer.tobytes() != image.tobytes():
            raise PhotoError("a part of its data is missing")


def _scan_markers(data: bytes) -> list[int]:
    """The places of the markers in and after each scan of a JPEG; PhotoError for a wrong one."""
    content = np.frombuffer(data, np.uint8)
    after = content[1:]
    marks = np.flatnonzero((content[:-1] == 0xFF) & (after != 0) & (after != 0xFF))
    place, found = 2, list[int]()
    while True:
        while data[place : place + 2] == b"\xff\xff":  # any number may precede a marker
            place += 1
        kind = data[place + 1] if data[place : place + 1] == b"\xff" else None
        if kind == 0xD9 or kind is None and not found:
            return found
        if found and kind not in _BETWEEN_SCANS:
            raise PhotoError("damaged: a wrong marker in its data")
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == 0xDA:
            inside = marks[np.searchsorted(marks, place) :].tolist()
            for number, mark in enumerate(inside):
                found.append(place := mark)
                if not 0xD0 <= data[place + 1] <= 0xD7:
                    break
                if data[place + 1] & 7 != number % 8:
                    raise PhotoError("damaged: a restart marker is missing")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that can be resampled: L, RGB, or RGBA if it has transparency."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise PhotoError("32-bit greyscale does not say what is white; save it with 8 bits")
        # Rounds to the nearest of 256 levels, since 65535 = 255 · 257. Pillow would clip at 255.
        eight = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if (key := image.info.get("transparency")) is not None:
            eight.putalpha(Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8)))
            return eight.convert("RGBA")
        return eight
    if image.mode == "F":
        raise PhotoError("floating-point greyscale does not say what is white; save it with 8 bits")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits; Pillow keeps 8 of each colour
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or key is not None:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # with broken EXIF, the pixels are still good
        return 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a photo in a format that Pillow reads"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
