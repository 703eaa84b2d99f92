"""Kernels without a GPU: every CUDA thread a greenlet, all of them in one OS thread.

With `NUMBA_ENABLE_CUDASIM=1` Numba runs a kernel as plain Python, one OS thread for each CUDA
thread. That is slow (the threads fight for the interpreter), in no fixed order, and a barrier
that some threads never reach hangs for ever. `install()` replaces the part that runs a block:
`scheduler.py` runs the threads, `arrays.py` is the memory they see.

A *greenlet* is a function call that can be set aside half-way and taken up again later: it has
a stack of its own, as a thread has, but runs only when told to. A block of CUDA threads is a
list of them, with a scheduler. It runs thread (0, 0, 0) until it returns or comes
to a barrier, then thread (1, 0, 0), and so on. When none is left to run it opens the barriers
whose threads have all arrived, and goes round again; if there is no such barrier the kernel
would hang on a GPU, and the scheduler says which threads wait where. Blocks run one after
another, x fastest. The order is always the same, so a wrong result is wrong the same way twice.

What it checks
    - every index into every array, negative ones too (`arrays.py`);
    - shared and local memory start poisoned, so reading before writing shows;
    - all threads of a block meet at the *same* `syncthreads`: a barrier in a branch, or a
      thread that has returned before the others' barrier, is an error with file and line;
    - likewise the lanes of a mask at `syncwarp` (hardware exempts lanes that have returned,
      and so does this; unlike hardware, it wants all lanes at the same call), and all 32 lanes,
      none exempt, where a warp does something as one (`layers/fast/conv/mma.py`);
    - asynchronous copies happen as late as they may, from poisoned targets, and none is left on
      its way when its thread returns (`copies.py`); accesses of 16 bytes are aligned;
    - an exception names kernel, thread, block, file and line. `breakpoint()` works.

What it cannot show
    - types: NumPy and Python decide them, so arithmetic that the GPU does in float64 is not
      seen, and `math.log(0.0)` raises where the GPU gives -inf;
    - races by timing: between two barriers a thread runs alone, as no GPU would have it;
    - the memory model: every write is seen at once by all, with or without a fence;
    - a tensor core's own arithmetic: the stand-in adds up in float64 and rounds once, hardware
      in an order and with roundings that NVIDIA does not describe;
    - warps in lockstep, coalescing, occupancy, speed.

`record()` notes every access of the launches inside it, and `shuffled(seed)` runs blocks and
threads in another order (`trace.py`): that is what the checks in `tinyconv/lab/` look at.

This package reaches behind `layers/device.py`: it replaces parts of `numba.cuda.simulator`.
"""

from __future__ import annotations

import copy
import gc
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from random import Random
from typing import Any

import numpy as np

from layers.simulator.scheduler import Launch, SimulatorError, SimulatorIndexError, greenlet
from layers.simulator.trace import Trace

__all__ = [
    "SimulatorError",
    "SimulatorIndexError",
    "Trace",
    "install",
    "installed",
    "record",
    "running",
    "shuffled",
]

TESTED_NUMBA_CUDA = "0.30"
"""The numba-cuda release, any 0.30.x, whose internals `install` is known to fit."""

LARGEST_BLOCK = 1024

installed = False
"""Whether kernels run under this scheduler."""


def install() -> str:
    """Run simulated kernels under this scheduler, from now on, in the whole process.

    Call it once `numba.cuda` has been imported; calling it again changes nothing. Returns one
    line that says what is in force: where something is missing that is Numba's own simulator.
    """
    global installed
    from numba import config

    if not config.ENABLE_CUDASIM:
        return "off (set NUMBA_ENABLE_CUDASIM=1 before numba is first imported)"
    if greenlet is None:
        return _stock_instead("greenlet is missing: pip install greenlet")
    try:
        version = metadata.version("numba-cuda")
    except metadata.PackageNotFoundError:
        version = "(none)"
    if not version.startswith(f"{TESTED_NUMBA_CUDA}."):
        wanted = f'pip install "numba-cuda=={TESTED_NUMBA_CUDA}.*"'
        return _stock_instead(f"numba-cuda {version} is not a tested release: {wanted}")
    if not installed:
        from numba.cuda.simulator.kernel import FakeCUDAKernel

        FakeCUDAKernel.__getitem__ = _configure
        FakeCUDAKernel.__call__ = _call
        installed = True
    return f"greenlets in one OS thread, ordered and checked (numba-cuda {version})"


def _stock_instead(reason: str) -> str:
    return f"Numba's own simulator, slow and unchecked ({reason})"


# --- looking on: what the launches in a `with` block did, and other orders of their threads


@contextmanager
def record(then: Callable[[Trace], None] | None = None) -> Iterator[list[Trace]]:
    """Record every launch inside the `with` block; the list has a Trace for each, in order.

    then: is given each Trace as soon as its launch is over, and the list stays empty: a trace of
    a large launch takes much memory. A launch that fails leaves the trace of what it did until
    then. RuntimeError if the scheduler is not installed, for Numba's own simulator cannot be
    watched.
    """
    global _traces, _then
    if not installed:
        raise RuntimeError(f"recording needs the scheduler: {install()}")
    before, _traces, _then = (_traces, _then), [], then
    # Notes are many small objects that live on; to look through them for garbage, again and
    # again, takes a good part of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield _traces
    finally:
        _traces, _then = before
        if collecting:
            gc.enable()


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Run blocks, and threads between barriers, in an order drawn by `seed`."""
    global _order
    before, _order = _order, Random(seed)
    try:
        yield
    finally:
        _order = before


# --- launching: what `kernel[blocks, threads](...)` and a call of a device function do


def _configure(kernel: Any, configuration: tuple) -> Any:
    """`kernel[blocks, threads, stream, shared_bytes]`: the kernel with its launch dimensions."""
    if not isinstance(configuration, tuple) or not 2 <= len(configuration) <= 4:
        raise ValueError(f"kernel[blocks, threads(, stream, shared bytes)], not {configuration!r}")
    # A copy, for Numba's simulator keeps the dimensions in the kernel itself, where two
    # configurations of one kernel overwrite each other.
    configured = copy.copy(kernel)
    configured.grid_dim = _three("blocks", configuration[0])
    configured.block_dim = _three("threads", configuration[1])
    if math.prod(configured.block_dim) > LARGEST_BLOCK:
        raise ValueError(f"{configured.block_dim} threads: a block has {LARGEST_BLOCK} at most")
    configured.dynshared_size = configuration[3] if len(configuration) == 4 else 0
    return configured


def _three(what: str, size: Any) -> tuple[int, int, int]:
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, (int, np.integer)) for n in sizes):
        raise ValueError(f"{what} must be one to three integers, not {size!r}")
    if min(sizes) < 1:
        raise ValueError(f"{what} must be positive, not {size!r}")
    x, y, z = (int(n) for n in (*sizes, 1, 1)[:3])
    return x, y, z


_launch: Launch | None = None
_traces: list[Trace] | None = None
_then: Callable[[Trace], None] | None = None
_order: Random | None = None
_one_at_a_time = threading.Lock()


def running() -> Launch:
    """The launch that runs, for functions that stand for instructions; RuntimeError if none."""
    if _launch is None:
        raise RuntimeError(f"this instruction is simulated by the scheduler only: {install()}")
    return _launch


def _call(kernel: Any, *args: Any) -> Any:
    """Call a device function, or launch a configured kernel."""
    global _launch
    if kernel.grid_dim is None:
        if _launch is not None:
            _launch.give_cuda_to(kernel.fn)
        elif not kernel._device:
            raise ValueError(f"launch {kernel.fn.__name__} as kernel[blocks, threads](...)")
        return kernel.fn(*args)

    if not _one_at_a_time.acquire(blocking=False):
        raise RuntimeError(
            f"cannot launch {kernel.fn.__name__} while another kernel runs: "
            "the simulator runs one kernel at a time, in one OS thread"
        )
    try:
        _launch = Launch(kernel, args, _order, record=_traces is not None)
        _launch.run()
    finally:
        recorder = _launch.recorder if _launch is not None else None
        _launch = None
        _one_at_a_time.release()
        if recorder is not None and _traces is not None:
            (_then or _traces.append)(recorder.finish())


@contextmanager
def launches_taken_down(launches: list[Callable[[], Any]]) -> Iterator[None]:
    """Within it simulated kernels are not run: each launch is added to the list instead."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    launch = FakeCUDAKernel.__call__

    def take_down(kernel: Any, *arguments: Any) -> None:
        configuration = kernel.grid_dim, kernel.block_dim, 0, kernel.dynshared_size
        launches.append(lambda: kernel[configuration](*arguments))

    FakeCUDAKernel.__call__ = take_down
    try:
        yield
    finally:
        FakeCUDAKernel.__call__ = launch
