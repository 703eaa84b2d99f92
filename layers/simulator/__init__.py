"""CUDA kernels without a GPU: every thread a greenlet, all of them in one OS thread.

With `NUMBA_ENABLE_CUDASIM=1` Numba runs a kernel as plain Python, with one OS thread for each CUDA
thread. That is slow, as the threads contend for the interpreter; their order varies; and a barrier
that some threads never reach hangs forever. `install()` replaces the part that runs a block:
`scheduler.py` runs the threads, `arrays.py` is the memory they access.

A *greenlet* is a function call that can be suspended and resumed. It has its own stack, like an OS
thread, but runs only when switched to. The scheduler runs thread (0, 0, 0) of a block until it
returns or reaches a barrier, then thread (1, 0, 0), and so on. When no thread is left to run, it
opens the barriers whose threads have all arrived, and resumes these. If threads wait and no
barrier can open, the kernel would hang on a GPU: the scheduler reports which threads wait where.
Blocks run one after another, x fastest. The order is deterministic, so a wrong result is
reproducible.

What it checks
    - every index into every array, negative ones too (`arrays.py`);
    - reads before writes: shared and local memory start poisoned, so that they show;
    - barriers: all threads of a block must reach the *same* `syncthreads`. A barrier in a branch,
      or a thread that returns before the others' barrier, is an error with file and line;
    - the lanes of a mask at `syncwarp`, shuffles, votes and matches likewise (`warps.py`). Lanes
      that have returned are exempt, as in hardware; unlike in hardware, all lanes must be at the
      same call. Collectives, such as the instructions of tensor cores, need all 32 lanes, none
      exempt;
    - more shared memory, threads or blocks than a GPU has;
    - asynchronous copies: they happen as late as possible, to poisoned targets, and none may be
      pending when its thread returns (`copies.py`). 16-byte accesses must be aligned;
    - exceptions: the error names kernel, thread, block, file and line, as text and as attributes
      (`errors.py`). `breakpoint()` works.

What it cannot show
    - types: NumPy and Python decide them. Arithmetic that a GPU does in float64 is not detected,
      and `math.log(0.0)` raises where a GPU gives -inf;
    - races by timing: between two barriers a thread runs alone, as it never would on a GPU;
    - the memory model: every write is visible to all threads at once, with or without a fence;
    - a tensor core's own arithmetic: the emulated intrinsic adds in float64 and rounds once, while
      NVIDIA does not document the order and the roundings of the hardware;
    - warps in lockstep, coalescing, occupancy, speed.

`record()` records every access of the launches inside it, and `shuffled(seed)` runs blocks and
threads in another order (`trace.py`): checks for races and the like are built on these two.

Instructions that Numba's simulator lacks are emulated by Python functions in modules that call
`register_intrinsics` (`intrinsics.py`).

This package works below the public API of Numba: it replaces parts of `numba.cuda.simulator`.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from random import Random
from typing import Any

import numpy as np

from layers.simulator.errors import (
    BarrierWait,
    SimulatorDeadlockError,
    SimulatorError,
    SimulatorIndexError,
)
from layers.simulator.intrinsics import register_intrinsics
from layers.simulator.scheduler import Launch, greenlet
from layers.simulator.trace import Trace

__all__ = [
    "BarrierWait",
    "SimulatorDeadlockError",
    "SimulatorError",
    "SimulatorIndexError",
    "Trace",
    "install",
    "installed",
    "intercepted",
    "record",
    "recorded_launches",
    "register_intrinsics",
    "running",
    "shuffled",
]

TESTED_NUMBA_CUDA = "0.30"
"""The numba-cuda release, any 0.30.x, whose internals `install` is tested with."""

LARGEST_BLOCK = 1024
DYNAMIC_SHARED = 227 * 1024
"""Bytes on the largest GPUs (compute capability 9.0)."""

installed = False
"""Whether kernels run under this scheduler."""


def install() -> str:
    """Run simulated kernels under this scheduler from now on, in the whole process.

    Call it after `numba.cuda` has been imported; calling it again changes nothing. Returns one line
    that names the simulator in use: Numba's own if a requirement is missing.
    """
    global installed
    from numba import config

    if not (installed or config.ENABLE_CUDASIM):  # Numba reads the variable again, later
        return "off (set NUMBA_ENABLE_CUDASIM=1 before numba is first imported)"
    if greenlet is None:
        return _numbas_own("greenlet is missing: pip install greenlet")
    try:
        version = metadata.version("numba-cuda")
    except metadata.PackageNotFoundError:
        version = "(none)"
    if not version.startswith(f"{TESTED_NUMBA_CUDA}."):
        wanted = f'pip install "numba-cuda=={TESTED_NUMBA_CUDA}.*"'
        return _numbas_own(f"numba-cuda {version} is not a tested release: {wanted}")
    if not installed:
        from numba.cuda.simulator.kernel import FakeCUDAKernel

        # What pdb's `b kernel, condition` asks a function for.
        FakeCUDAKernel.__code__ = property(lambda kernel: kernel.fn.__code__)
        FakeCUDAKernel.__getitem__ = _configure
        FakeCUDAKernel.__call__ = _call
        installed = True
    return f"greenlets in one OS thread, ordered and checked (numba-cuda {version})"


def _numbas_own(reason: str) -> str:
    return f"Numba's own simulator, slow and unchecked ({reason})"


# --- observing: what the launches in a `with` block do, and other orders of their threads


@contextmanager
def record(on_trace: Callable[[Trace], None] | None = None) -> Iterator[list[Trace]]:
    """Record every launch inside the `with` block; the list has a Trace for each, in order.

    on_trace: called with each Trace after its launch, in which case the list stays empty. The trace
    of a large launch takes much memory. A launch that fails leaves the trace of what it did before
    it failed. RuntimeError if the scheduler is not installed: Numba's own simulator cannot be
    observed.
    """
    global _traces, _on_trace
    if not installed:
        raise RuntimeError(f"recording needs the scheduler: {install()}")
    before, _traces, _on_trace = (_traces, _on_trace), [], on_trace
    # Notes are many small objects that stay alive. Scanning them for garbage again and again would
    # take a good part of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield _traces
    finally:
        _traces, _on_trace = before
        if collecting:
            gc.enable()


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Run blocks, and threads between barriers, in a random order given by `seed`."""
    global _order
    before, _order = _order, Random(seed)
    try:
        yield
    finally:
        _order = before


# --- launching: `kernel[blocks, threads](...)`, and calls of device functions


def _configure(kernel: Any, configuration: tuple) -> Any:
    """`kernel[blocks, threads, stream, shared_bytes]`: the kernel with its launch dimensions."""
    if not isinstance(configuration, tuple) or not 2 <= len(configuration) <= 4:
        raise ValueError(f"kernel[blocks, threads(, stream, shared bytes)], not {configuration!r}")
    # A copy: Numba's simulator stores the dimensions in the kernel itself, where two configurations
    # of one kernel would overwrite each other.
    configured = copy.copy(kernel)
    configured.grid_dim = _three("blocks", configuration[0])
    configured.block_dim = _three("threads", configuration[1])
    x, y, z = configured.block_dim
    if x * y * z > LARGEST_BLOCK or z > 64:
        raise ValueError(f"({x}, {y}, {z}) threads: a block has {LARGEST_BLOCK} at most, 64 in z")
    if max(configured.grid_dim[1:]) > 65535:
        raise ValueError(f"{configured.grid_dim} blocks: a grid has 65535 at most in y and in z")
    configured.dynshared_size = configuration[3] if len(configuration) == 4 else 0
    if not 0 <= configured.dynshared_size <= DYNAMIC_SHARED:
        raise ValueError(
            f"{configured.dynshared_size:,} bytes of dynamic shared memory: a block has "
            f"{DYNAMIC_SHARED:,} at most"
        )
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
_on_trace: Callable[[Trace], None] | None = None
_order: Random | None = None
_one_at_a_time = threading.Lock()


def running() -> Launch:
    """The running launch, for emulated intrinsics; RuntimeError if there is none."""
    if _launch is None:
        raise RuntimeError(f"this instruction is simulated by the scheduler only: {install()}")
    return _launch


def _call(kernel: Any, *args: Any) -> Any:
    """Call a device function, or launch a configured kernel."""
    global _launch
    if kernel.grid_dim is None:
        if _launch is not None:
            _launch.patch_cuda(kernel.fn)
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
            (_on_trace or _traces.append)(recorder.finish())


@contextmanager
def intercepted(handle: Callable[[Any, tuple, tuple], Any]) -> Iterator[None]:
    """Inside the `with` block each launch calls handle(kernel, configuration, arguments) instead.

    configuration: blocks, threads, stream, bytes of dynamic shared memory. While `handle` runs,
    launches are launched.
    """
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    launch = FakeCUDAKernel.__call__

    def call(kernel: Any, *arguments: Any) -> Any:
        if kernel.grid_dim is None:
            return launch(kernel, *arguments)
        FakeCUDAKernel.__call__ = launch
        try:
            configuration = kernel.grid_dim, kernel.block_dim, 0, kernel.dynshared_size
            return handle(kernel, configuration, arguments)
        finally:
            FakeCUDAKernel.__call__ = call

    FakeCUDAKernel.__call__ = call
    try:
        yield
    finally:
        FakeCUDAKernel.__call__ = launch


def recorded_launches(launches: list[Callable[[], Any]]) -> AbstractContextManager[None]:
    """Inside the `with` block each launch is appended to the list instead of run."""
    return intercepted(
        lambda kernel, how, arguments: launches.append(lambda: kernel[how](*arguments))
    )
