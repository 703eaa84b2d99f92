"""The scheduler: one launch of a kernel, block after block, each thread a greenlet.

`layers/simulator/__init__.py` explains greenlets and lists what is checked. `Launch.run` runs the
grid and `_run_block` one block; a greenlet executes `_work`. `wait`, and `collective` for a whole
warp, suspend a thread at a barrier; `_open_barriers` releases it.
"""

from __future__ import annotations

import bdb
import contextvars
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from random import Random
from typing import Any

import numpy as np

from layers.simulator import intrinsics
from layers.simulator.arrays import (
    WARP,
    ArrayIndexError,
    Dim3,
    KernelArray,
    KernelCuda,
    SharedMemory,
    wrap_argument,
    wrap_unrecorded,
)
from layers.simulator.barriers import VOTES, Barrier, Combine, Thread, xyz
from layers.simulator.copies import Copies
from layers.simulator.errors import SimulatorDeadlockError, SimulatorError, SimulatorIndexError
from layers.simulator.recorder import Recorder
from layers.simulator.trace import LOCAL, Trace

try:
    import greenlet
except ImportError:  # needed only to simulate
    greenlet = None


def positions(size: Dim3) -> list[Dim3]:
    """Every position in a grid or block, in order: x fastest, then y, then z."""
    ranges = range(size.z), range(size.y), range(size.x)
    return [Dim3(x, y, z) for z, y, x in itertools.product(*ranges)]


class Launch:
    """One launch of a kernel: its arguments, and the state of the block that runs."""

    def __init__(self, kernel: Any, args: tuple, order: Random | None, record: bool):
        self.fn = kernel.fn
        self.dynamic_bytes = kernel.dynshared_size
        self.order = order  # None: x fastest
        grid, block = Dim3(*kernel.grid_dim), Dim3(*kernel.block_dim)
        code = self.fn.__code__
        self.trace = Trace(self.fn.__name__, code.co_filename, code.co_firstlineno, grid, block)
        self.recorder = Recorder(self.trace) if record else None
        self.wrap = self._wrap_recorded if record else wrap_unrecorded
        names = code.co_varnames
        self.args = [
            wrap_argument(arg, names[i] if i < len(names) else f"argument {i}", self.wrap)
            for i, arg in enumerate(args)
        ]
        self.trace.arguments = args
        self.cuda = KernelCuda(self.wait, grid, block, self.wrap)
        self.barriers: dict[tuple, Barrier] = {}
        self.threads: list[Thread] = []
        self.thread = Thread(0, Dim3(0, 0, 0))  # the running one
        self.scheduler = greenlet.getcurrent()
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._unstarted: Iterator[Thread] = iter(())
        self._patched: dict[int, tuple[dict, dict]] = {}  # globals and originals, by identity

    def run(self) -> None:
        """Run every block of the grid."""
        self.patch_cuda(self.fn)
        hook = sys.breakpointhook
        if hook is sys.__breakpointhook__ and "PYTHONBREAKPOINT" not in os.environ:
            sys.breakpointhook = _breakpoint
        try:
            # As on a GPU: integers wrap and x / 0 is inf or NaN, without a warning.
            with np.errstate(all="ignore"):
                for number, block in self._ordered(list(enumerate(positions(self.cuda.gridDim)))):
                    self._run_block(number, block)
        except (SimulatorError, bdb.BdbQuit):  # BdbQuit: `q` at pdb's prompt
            raise
        except Exception as error:
            raise self._located(error) from error
        finally:
            sys.breakpointhook = hook
            for worker in self._workers:
                worker.throw()  # ends the greenlet, wherever it is suspended
            for names, original in self._patched.values():
                names.update(original)

    def patch_cuda(self, fn: Callable) -> None:
        """Replace `cuda` among the globals of `fn` by this launch's KernelCuda, until it ends."""
        names = fn.__globals__
        if id(names) not in self._patched:
            from numba import cuda

            original = {name: value for name, value in names.items() if value is cuda}
            self._patched[id(names)] = names, original
            names.update(dict.fromkeys(original, self.cuda))

    def _ordered(self, items: list[Any]) -> list[Any]:
        """The items, shuffled if the launch is: a GPU guarantees no order of blocks or threads."""
        return items if self.order is None else self.order.sample(items, len(items))

    def _wrap_recorded(self, data: np.ndarray, name: str, space: str) -> KernelArray:
        assert self.recorder is not None
        owner = self.thread.number if space == LOCAL else None
        return self.recorder.wrap(data, name, space, owner)

    def _run_block(self, number: int, block: Dim3) -> None:
        if self.recorder is not None:
            self.recorder.begin_block(number)
        self.cuda.blockIdx = block
        self.cuda.shared = SharedMemory(self.dynamic_bytes, self.wrap)
        self.threads = [Thread(i, at) for i, at in enumerate(positions(self.cuda.blockDim))]
        self._unstarted = iter(self._ordered(self.threads))
        for thread in self._unstarted:
            worker = self._idle.pop() if self._idle else self._new_worker()
            worker.switch(thread)
        while released := self._open_barriers():
            for thread in released:
                self._enter(thread)
                thread.greenlet.switch()

    def _new_worker(self) -> Any:
        worker = greenlet.greenlet(self._work)
        worker.gr_context = contextvars.copy_context()  # np.errstate lives in there
        self._workers.append(worker)
        return worker

    def _work(self, thread: Thread) -> None:
        """The body of a greenlet: run one thread after the other.

        A new greenlet is needed only when a thread waits, so a kernel without barriers needs one.
        Greenlets are expensive to create and cheap to switch to; blocks reuse those of the last.
        """
        while True:
            self._enter(thread)
            self.fn(*self.args)
            if thread.copies is not None:
                thread.copies.check_none_left()
            thread.returned = True
            following = next(self._unstarted, None)
            if following is None:
                self._idle.append(greenlet.getcurrent())
                following = self.scheduler.switch()
            thread = following

    def _enter(self, thread: Thread) -> None:
        self.thread = thread
        self.cuda.threadIdx = thread.threadIdx
        if self.recorder is not None:
            self.recorder.begin_segment(thread.number)

    def wait(
        self, call: str, part: Any = None, mask: int | None = None, combine: Combine | None = None
    ) -> Any:
        """Suspend the running thread at a barrier; returns its answer when the barrier opens."""
        warp = None if mask is None else self.thread.number // WARP
        return self._wait_at(call, warp, mask, part, combine or VOTES.get(call))

    def collective(self, call: str, part: Any, combine: Combine) -> Any:
        """Execute an intrinsic of a whole warp: each lane hands in a part and gets an answer.

        call: the name of the intrinsic, which calls this. combine: computes the answers once all
        32 lanes have come. Unlike `syncwarp`, this exempts no lane that has returned, and it
        orders no memory accesses.
        """
        return self._wait_at(call, self.thread.number // WARP, None, part, combine)

    @property
    def copies(self) -> Copies:
        """The asynchronous copies of the running thread."""
        if self.thread.copies is None:
            note = None if self.recorder is None else self.recorder.note_group
            self.thread.copies = Copies(note)
        return self.thread.copies

    def _wait_at(
        self, call: str, warp: int | None, mask: int | None, part: Any, combine: Combine | None
    ) -> Any:
        thread = self.thread
        frame = sys._getframe(3)  # the caller of the method of KernelCuda, or of the intrinsic
        while frame.f_code.co_filename in intrinsics.FILES:
            assert frame.f_back is not None
            frame = frame.f_back
        key = id(frame.f_code), frame.f_lasti, warp, mask
        barrier = self.barriers.get(key)
        if barrier is None:
            file, line = frame.f_code.co_filename, frame.f_lineno
            barrier = self.barriers[key] = Barrier(call, file, line, warp, mask, combine)
        barrier.waiting.append(thread)
        thread.part = part
        thread.greenlet = greenlet.getcurrent()
        self.scheduler.switch()
        return thread.part

    def _open_barriers(self) -> list[Thread]:
        """Open every full barrier; returns the released threads in order, none at the end.

        SimulatorDeadlockError if threads wait and no barrier is full.
        """
        waiting = [barrier for barrier in self.barriers.values() if barrier.waiting]
        full = [barrier for barrier in waiting if barrier.is_full(self.threads)]
        if waiting and not full:
            raise SimulatorDeadlockError(
                self.fn.__name__,
                xyz(self.cuda.blockIdx),
                tuple(barrier.wait() for barrier in waiting),
                tuple(xyz(thread.threadIdx) for thread in self.threads if thread.returned),
            )
        released = []
        for barrier in full:
            threads = barrier.open()
            released += threads
            if self.recorder is not None and (barrier.warp is None or barrier.call == "syncwarp"):
                numbers = [thread.number for thread in threads]
                self.recorder.open_barrier(barrier.call, barrier.file, barrier.line, numbers)
        return self._ordered(sorted(released, key=attrgetter("number")))

    def _located(self, error: Exception) -> SimulatorError:
        """`error` as a SimulatorError with the kernel, the thread and the line."""
        file, line = self.fn.__code__.co_filename, self.fn.__code__.co_firstlineno
        trace = error.__traceback__
        while trace is not None:  # the innermost frame that is not skipped is the kernel's
            if not intrinsics.is_skipped(trace.tb_frame.f_globals.get("__name__") or ""):
                file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
            trace = trace.tb_next
        kind = SimulatorIndexError if isinstance(error, IndexError) else SimulatorError
        name = "IndexError" if isinstance(error, ArrayIndexError) else type(error).__name__
        block, thread = xyz(self.cuda.blockIdx), xyz(self.thread.threadIdx)
        what = f"{name}: {error}"
        located = kind(self.fn.__name__, block, thread, file, line, what, error)
        if isinstance(located, SimulatorIndexError) and isinstance(error, ArrayIndexError):
            located.array, located.index = error.array, error.index
        return located


def _breakpoint() -> None:
    """`breakpoint()` in a kernel: pdb, whose `s` steps over the simulator's own lines."""
    import pdb

    debugger = pdb.Pdb(skip=intrinsics.skip_patterns())
    debugger.set_trace(sys._getframe(1))
