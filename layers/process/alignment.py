"""Arrays on the host that begin with a cache line."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

CACHE_LINE = 64
"""Bytes of a cache line of the host's processor."""


def aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`make(shape, dtype)`, NumPy's `empty` or `zeros`, aligned to a cache line.

    NumPy aligns large arrays to 16 bytes only, and then every vector of 64 bytes is in two lines.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = make(size + CACHE_LINE - 1, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)
