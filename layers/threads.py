"""The host's threads: who computes with how many, and one pool for what is split by hand.

Three kinds of threads want the same cores: those of the `prange` loops (Numba's, on OpenMP), those
of the matrix products (BLAS's own), and those of this file. BLAS's wait for each other several
times in each product, and busily: if any other program wants a core as well, all of them stand
still until it is given back, and a product takes ten times as long. So BLAS is told to use one
thread, and what is worth it is split here instead, into parts that need not wait for each other: a
convolution by images, a product by rows or columns of its result.

Both have to be said before NumPy is loaded, which is why `layers/__init__.py` imports this file
first. Where NumPy was loaded before, or somebody has chosen another number of threads for BLAS,
nothing is split and BLAS does as it does.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

BLAS = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"

_in_time = "numpy" not in sys.modules
for _name in BLAS:
    os.environ.setdefault(_name, "1")
# OpenMP's threads go to sleep after their loop, instead of spinning in the way of the next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from numba import get_num_threads  # noqa: E402  (it loads NumPy)

SPLITS = _in_time and all(os.environ[name] == "1" for name in BLAS)
"""Whether BLAS computes with one thread, so that several can be used here."""

WORTH_IT = 2**21
"""Multiply-adds from which a product is split: some 20 µs of work, the time to wake a thread."""

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """After a fork: the child has the pool, but not its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def threads() -> int:
    """How many compute at once: as many as Numba's loops use."""
    return get_num_threads() if SPLITS else 1


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


def product(device: Any, a: Any, b: Any, out: Any) -> None:
    """out = a · b by the vendor's library; on the host a stretch of out for each thread.

    a (M, K), b (K, N), out (M, N): arrays of `device`.
    """
    if device.is_cuda or out.size * a.shape[1] < WORTH_IT:
        device.xp.matmul(a, b, out=out)
        return
    rows, columns = out.shape

    def stretch_of_rows(number: int, part: slice) -> None:
        device.xp.matmul(a[part], b, out=out[part])

    def stretch_of_columns(number: int, part: slice) -> None:
        device.xp.matmul(a, b[:, part], out=out[:, part])

    stretch = stretch_of_rows if rows >= columns else stretch_of_columns
    in_parallel(stretch, shares(max(rows, columns)))
