"""The host's threads: how many compute at once, and one pool for work that is split by hand.

Three kinds of threads compete for the cores: those of the `prange` loops (Numba, OpenMP), those
inside BLAS, and those of this file. BLAS threads spin at their barriers, several times in each
product, so one descheduled thread stalls the rest, and a product takes ten times as long. So BLAS
uses one thread (`layers/process/blas.py`), and large work is split here into parts that need no
barrier: a convolution by images, a product by rows or columns of its result. Small work stays in
one thread, because waking others would take longer.

Where NumPy was imported before `layers`, or the user has chosen another number of threads for BLAS,
nothing is split and BLAS uses its own threads.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

import numpy as np
from numba import get_num_threads

from layers.process.alignment import aligned
from layers.process.blas import BLAS, IN_TIME

SPLITS = IN_TIME and all(os.environ[name] == "1" for name in BLAS)
"""Whether BLAS computes with one thread, so that work is split here."""

WORTH_IT = 2**21
"""Multiply-adds above which a product is split: about 20 µs of work, the time to wake a thread."""

WORTH_WAKING = 2**18
"""Elements above which a loop that does little work for each uses several threads."""

_pool: ThreadPoolExecutor | None = None
_own = threading.local()


def _forget_pool() -> None:
    """After a fork: the child inherits the pool without its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def threads() -> int:
    """How many compute at once: as many as Numba's loops use."""
    return get_num_threads() if SPLITS else 1


def threads_for_loop(elements: int, least: int = WORTH_WAKING) -> int:
    """How many run a loop over so many elements; one, if there are fewer than `least`."""
    return get_num_threads() if elements >= least else 1


def shares(count: int, most: int | None = None) -> list[slice]:
    """range(count) in at most as many slices as there are threads, of nearly equal length."""
    parts = max(1, min(threads() if most is None else most, count))
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def in_parallel(work: Callable[[int, slice], Any], parts: Sequence[slice]) -> None:
    """work(0, parts[0]), work(1, parts[1]), ...: each in a thread, the first in this one.

    Returns when all are done; raises what one of them raised. No two may write to one place.
    """
    global _pool
    others: list[Future[Any]] = []
    if len(parts) > 1:
        if _pool is None:
            _pool = ThreadPoolExecutor(thread_name_prefix="layers")
        # Each runs in a copy of this context, with its `np.errstate`.
        others = [
            _pool.submit(copy_context().run, work, number, part)
            for number, part in enumerate(parts)
            if number
        ]
    try:
        work(0, parts[0])
    finally:
        wait(others)
    for other in others:
        other.result()


def in_rows(
    loop: Callable[..., Any], arrays: Sequence[Any], *numbers: Any, least: int = WORTH_WAKING
) -> None:
    """loop(*arrays, *numbers) in several threads, each with a part of the first axis of all arrays.

    loop: compiled with nogil=True. With fewer than `least` elements in the first array it runs in
    this thread alone.
    """
    parts = shares(len(arrays[0]), threads_for_loop(arrays[0].size, least))
    in_parallel(lambda _, part: loop(*(array[part] for array in arrays), *numbers), parts)


def own_array(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of this thread, valid until its next call; its contents are undefined."""
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if getattr(_own, "memory", None) is None or _own.memory.size < wanted:
        _own.memory = aligned(np.empty, (wanted,), np.uint8)
    return _own.memory[:wanted].view(dtype).reshape(shape)


def multiply(device: Any, *triples: tuple[Any, Any, Any]) -> None:
    """out = a · b for each (a, b, out) by the vendor's library; on the host with all threads.

    a (M, K), b (K, N), out (M, N): arrays of `device`. No product may need another's result: each
    thread computes a part of every `out`, and they join only at the end.
    """
    work = sum(out.size * a.shape[1] for a, _, out in triples)
    if device.is_cuda or work < WORTH_IT:
        for a, b, out in triples:
            device.xp.matmul(a, b, out=out)
        return

    cut = [shares(a.shape[0] if by_rows(a, out) else out.shape[1]) for a, _, out in triples]

    def stretches(number: int, _: slice) -> None:
        for (a, b, out), parts in zip(triples, cut, strict=True):
            if number < len(parts):
                multiply_stretch(a, b, out, parts[number])

    in_parallel(stretches, max(cut, key=len))


def by_rows(a: Any, out: Any) -> bool:
    """Whether out = a · b is split by rows.

    By its longer side, but also wherever there are more rows than terms in a sum (a gradient of
    weights): then most of the time is spent writing `out`, and rows are contiguous in memory.
    """
    rows, columns = out.shape
    return rows >= columns or rows > a.shape[1]


def multiply_stretch(a: Any, b: Any, out: Any, part: slice) -> None:
    """`part` of the rows of out = a · b, or of its columns, on the host."""
    rows = out.shape[0]
    if by_rows(a, out):
        np.matmul(a[part], b, out=out[part])
    elif b.strides[0] < b.strides[1] and a.shape[1] >= 4 * rows:
        # A fully connected layer's x · wᵀ. BLAS packs both operands before it multiplies, and packs
        # the longer one, w, faster on the other side: outᵀ = w · xᵀ. That saves more than the
        # transposition of the result costs, unless the sums are short.
        transposed = own_array((part.stop - part.start, rows), out.dtype)
        np.matmul(b[:, part].T, a.T, out=transposed)
        out[:, part] = transposed.T
    else:
        np.matmul(a, b[:, part], out=out[:, part])
