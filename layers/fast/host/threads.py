"""The host's threads: who computes with how many, and one pool for what is split by hand.

Three kinds of threads want the same cores: those of the `prange` loops (Numba's, on OpenMP), those
of the matrix products (BLAS's own), and those of this file. BLAS's wait for each other several
times in each product, and busily: if any other program wants a core as well, all of them stand
still until it is given back, and a product takes ten times as long. So BLAS is told to use one
thread, and what is worth it is split here instead, into parts that need not wait for each other: a
convolution by images, a product by rows or columns of its result. And what is small is left to one
thread, since others would have to be woken first.

Both have to be said before NumPy is loaded, which is why `layers/__init__.py` imports this file
first. Where NumPy was loaded before, or somebody has chosen another number of threads for BLAS,
nothing is split and BLAS does as it does.
"""

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

BLAS = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"

_in_time = "numpy" not in sys.modules
for _name in BLAS:
    os.environ.setdefault(_name, "1")
# OpenMP's threads go to sleep after their loop, instead of spinning in the way of the next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
from numba import get_num_threads, set_num_threads  # noqa: E402

SPLITS = _in_time and all(os.environ[name] == "1" for name in BLAS)
"""Whether BLAS computes with one thread, so that several can be used here."""

WORTH_IT = 2**21
"""Multiply-adds from which a product is split: some 20 µs of work, the time to wake a thread."""

WORTH_WAKING = 2**18
"""Elements from which other threads are woken for a loop that does as little as pooling."""

_pool: ThreadPoolExecutor | None = None
_own = threading.local()


def _forget_pool() -> None:
    """After a fork: the child has the pool, but not its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def threads() -> int:
    """How many compute at once: as many as Numba's loops use."""
    return get_num_threads() if SPLITS else 1


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """Within it, `prange` loops stay in this thread if they are done before others would be awake.

    elements: what such a loop goes through, doing little with each.
    """
    count = get_num_threads()
    if elements < WORTH_WAKING:
        set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(count)


def shares(count: int) -> list[slice]:
    """range(count) in at most as many slices as there are threads, of nearly equal length."""
    parts = max(1, min(threads(), count))
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def in_parallel(work: Callable[[int, slice], Any], parts: Sequence[slice]) -> None:
    """work(0, parts[0]), work(1, parts[1]), ...: each in a thread, the first in this one.

    Returns when all are done; raises what one of them raised. They must write to different places.
    """
    global _pool
    others: list[Future[Any]] = []
    if len(parts) > 1:
        if _pool is None:
            _pool = ThreadPoolExecutor(thread_name_prefix="layers")
        # Each takes along what holds here, such as `np.errstate`.
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


def own_array(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of this thread's, until it asks for the next; its contents are what was there."""
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if getattr(_own, "memory", None) is None or _own.memory.size < wanted:
        _own.memory = np.empty(wanted, np.uint8)
    return _own.memory[:wanted].view(dtype).reshape(shape)


def multiply(device: Any, *triples: tuple[Any, Any, Any]) -> None:
    """out = a · b for each (a, b, out) by the vendor's library; on the host with all threads.

    a (M, K), b (K, N), out (M, N): arrays of `device`. No product may need another's result: each
    thread takes a stretch of every `out`, and they meet only at the end.
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
    """Whether out = a · b is divided by rows.

    By its longer side, but also wherever there are more rows than terms in a sum (a gradient of
    weights): then most of the time goes into writing `out`, and rows lie together in memory.
    """
    rows, columns = out.shape
    return rows >= columns or rows > a.shape[1]


def multiply_stretch(a: Any, b: Any, out: Any, part: slice) -> None:
    """`part` of the rows of out = a · b, or of its columns, on the host."""
    rows = out.shape[0]
    if by_rows(a, out):
        np.matmul(a[part], b, out=out[part])
    elif b.strides[0] < b.strides[1] and a.shape[1] >= 4 * rows:
        # A fully connected layer's x · wᵀ. Before it multiplies, BLAS rearranges both operands,
        # and does so faster with a long one, w, on the other side: outᵀ = w · xᵀ. That saves more
        # than turning the result costs, unless the sums are short.
        turned = own_array((part.stop - part.start, rows), out.dtype)
        np.matmul(b[:, part].T, a.T, out=turned)
        out[:, part] = turned.T
    else:
        np.matmul(a, b[:, part], out=out[:, part])
