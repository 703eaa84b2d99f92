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

import numpy as np
from PIL import Image

from tinyconv.data.listing import Found, SourceError, printable, quoted
from tinyconv.data.photos import PhotoError, central_square, decode_square

BATCH = 16
"""Photos decoded by one task."""

AHEAD = 4
"""Tasks per thread that are submitted ahead of the result in use."""

Decoded = tuple[np.ndarray | None, str]
"""A square, uint8 (S, S, 3), and ""; or None and the reason why it is missing."""


def decode(found: Found, size: int) -> Decoded:
    """Decode one file. SourceError if it cannot be read, which says nothing about the photo."""
    if found.problem:
        return None, found.problem
    try:
        content = found.read()
        if len(content) < found.size:
            raise SourceError(f"{quoted(found.path)} has become shorter while it was being read")
        if not found.planes:
            return decode_square(io.BytesIO(content), size), ""
        side = round((found.size / 3) ** 0.5)
        planes = np.frombuffer(content, np.uint8).reshape(3, side, side)
        return np.asarray(central_square(Image.fromarray(planes.transpose(1, 2, 0)), size)), ""
    except PermissionError:
        return None, "no permission to read it"
    except OSError as error:
        raise SourceError(f"cannot read {quoted(found.path)}: {error.strerror or error}") from error
    except SourceError:
        raise
    except PhotoError as error:
        if isinstance(error.__cause__, MemoryError):
            raise SourceError(
                f"not enough memory to decode {quoted(found.name)}: use fewer --workers"
            ) from error
        return None, printable(error)


def _decode_batch(batch: Sequence[Found], size: int) -> list[Decoded]:
    return [decode(found, size) for found in batch]


def decode_in_order(
    files: Sequence[Found], size: int, threads: int | None = None
) -> Generator[Decoded, None, None]:
    """Yield the square of each file, in their order; threads: None for one per core.

    The result does not depend on the number of threads. They end with the iteration, or when it
    is closed.
    """
    threads = threads or cores()
    tasks: deque[Future[list[Decoded]]] = deque()
    # Pillow warns of odd metadata; the pixels are either complete or an error.
    with ThreadPoolExecutor(threads, "decode") as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for first in range(0, len(files), BATCH):
                tasks.append(pool.submit(_decode_batch, files[first : first + BATCH], size))
                if len(tasks) > AHEAD * threads:
                    yield from tasks.popleft().result()
            while tasks:
                yield from tasks.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
