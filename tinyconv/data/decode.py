"""Decodes the photos of a listing in threads and returns them in order.

Pillow releases Python's lock while it decodes and resamples, so threads use every core. A bounded
number of batches is decoded ahead of the one that is being used.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from tinyconv.data.listing import Found, SourceError, printable, quoted
from tinyconv.data.photos import PhotoError, central_square, decode_square

BATCH = 16
"""Photos decoded by one task."""

AHEAD = 4
"""Tasks per thread that are submitted ahead of the result in use."""


class Decoded(NamedTuple):
    """A batch of squares, uint8 (n, S, S, 3), and for each the reason why it is missing, or ""."""

    images: np.ndarray
    reasons: list[str]


def decode_batch(batch: Sequence[Found], size: int) -> Decoded:
    """Decode each file of a batch; an unreadable photo leaves its square black.

    SourceError if a file cannot be read at all, which says nothing about the photo.
    """
    images = np.zeros((len(batch), size, size, 3), np.uint8)
    reasons = []
    for row, found in enumerate(batch):
        reason = found.problem
        try:
            if found.pixels is not None:
                images[row] = np.asarray(central_square(Image.fromarray(found.pixels), size))
            elif not reason:
                images[row] = decode_square(io.BytesIO(_read(found)), size)
        except SourceError:
            raise
        except PhotoError as error:
            if isinstance(error.__cause__, MemoryError):
                raise SourceError(
                    f"not enough memory to decode {quoted(found.name)}: use fewer --workers"
                ) from error
            reason = printable(error)
        reasons.append(reason)
    return Decoded(images, reasons)


def decode_in_order(
    batches: Sequence[Sequence[Found]], size: int, threads: int | None = None
) -> Generator[Decoded, None, None]:
    """Yield the decoded batches in their order; threads: None for one per core.

    The result does not depend on the number of threads. They end with the iteration, or when it
    is closed.
    """
    threads = threads or cores()
    pool = ThreadPoolExecutor(threads, "decode")
    tasks: deque[Future[Decoded]] = deque()
    try:
        # Pillow warns of odd metadata; the pixels are either complete or an error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for batch in batches:
                tasks.append(pool.submit(decode_batch, batch, size))
                if len(tasks) > AHEAD * threads:
                    yield tasks.popleft().result()
            while tasks:
                yield tasks.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(found: Found) -> bytes:
    try:
        content = found.read()
    except PermissionError as error:
        raise PhotoError("no permission to read it") from error
    except OSError as error:
        raise SourceError(f"cannot read {quoted(found.path)}: {error.strerror or error}") from error
    if len(content) < found.size:
        raise SourceError(f"{quoted(found.path)} has become shorter while it was being read")
    return content
