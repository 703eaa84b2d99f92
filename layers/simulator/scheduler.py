"""The scheduler: one launch of a kernel, block after block, each thread a greenlet.

See `layers/simulator/__init__.py` for what a greenlet is and what is checked. `Launch.run` is the
way through the grid; `_run_block` through one block; `_work` is what a greenlet does; `wait`, and
`collective` for what a warp does as one, are where a thread is set aside, and `_open_barriers` is
where it is let go.
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

from layers.simulator.arrays import (
    WARP,
    Dim3,
    KernelArray,
    KernelCuda,
    SharedMemory,
    as_kernel_sees,
    unwatched,
)
from layers.simulator.barriers import VOTES, Barrier, Combine, Thread
from layers.simulator.copies import Copies
from layers.simulator.recorder import Recorder
from layers.simulator.trace import LOCAL, Trace

try:
    import greenlet
except ImportError:  # needed only to simulate
    greenlet = None

SIMULATORS = ("layers.simulator", "numba.cuda.simulator", "layers.fast.conv.ptx", "layers.fast.conv.mma")
"""Modules whose functions stand for instructions, or run kernels."""


class SimulatorError(RuntimeError):
    """A simulated kernel did what it must not do; the text says which thread, and where."""


class SimulatorIndexError(SimulatorError, IndexError):
    """An index outside its array."""


def positions(size: Dim3) -> list[Dim3]:
    """Every position in a grid or block, in the order of their numbers: x fastest, then y, z."""
    ranges = range(size.z), range(size.y), range(size.x)
    return [Dim3(x, y, z) for z, y, x in itertools.product(*ranges)]


class Launch:
    """A kernel with its arguments, on its way through the blocks of its grid."""

    def __init__(self, kernel: Any, args: tuple, order: Random | None, record: bool):
        self.fn = kernel.fn
        self.dynamic_bytes = kernel.dynshared_size
        self.order = order  # None: by number
        grid, block = Dim3(*kernel.grid_dim), Dim3(*kernel.block_dim)
        code = self.fn.__code__
        self.trace = Trace(self.fn.__name__, code.co_filename, code.co_firstlineno, grid, block)
        self.recorder = Recorder(self.trace) if record else None
        self.make = self._watched if record else unwatched
        names = code.co_varnames
        self.args = [
            as_kernel_sees(arg, names[i] if i < len(names) else f"argument {i}", self.make)
            for i, arg in enumerate(args)
        ]
        self.trace.arguments = args
        self.cuda = KernelCuda(self.wait, grid, block, self.make)
        self.barriers: dict[tuple, Barrier] = {}
        self.threads: list[Thread] = []
        self.thread = Thread(0, Dim3(0, 0, 0))  # the one that runs
        self.scheduler = greenlet.getcurrent()
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._unstarted: Iterator[Thread] = iter(())
        self._given: dict[int, tuple[dict, dict]] = {}  # by identity: a module's globals

    def run(self) -> None:
        """Run every block of the grid."""
        self.give_cuda_to(self.fn)
        hook = sys.breakpointhook
        if hook is sys.__breakpointhook__ and "PYTHONBREAKPOINT" not in os.environ:
            sys.breakpointhook = _breakpoint
        try:
            # As on a GPU: integers wrap, x / 0 is inf or NaN, and nobody is warned.
            with np.errstate(all="ignore"):
                for number, block in self._ordered(list(enumerate(positions(self.cuda.gridDim)))):
                    self._run_block(number, block)
        except (SimulatorError, bdb.BdbQuit):  # the second is `q` at the prompt of pdb
            raise
        except Exception as error:
            raise self._explained(error) from error
        finally:
            sys.breakpointhook = hook
            for worker in self._workers:
                worker.throw()  # ends it, wherever it stands
            for names, original in self._given.values():
                names.update(original)

    def give_cuda_to(self, fn: Callable) -> None:
        """Make `cuda`, among the globals of `fn`, the one that knows the running thread."""
        names = fn.__globals__
        if id(names) not in self._given:
            from numba import cuda

            original = {name: value for name, value in names.items() if value is cuda}
            self._given[id(names)] = names, original
            names.update(dict.fromkeys(original, self.cuda))

    def _ordered(self, items: list[Any]) -> list[Any]:
        """As they are, or shuffled: a GPU promises no order of blocks or threads."""
        return items if self.order is None else self.order.sample(items, len(items))

    def _watched(self, data: np.ndarray, name: str, space: str) -> KernelArray:
        assert self.recorder is not None
        owner = self.thread.number if space == LOCAL else None
        return self.recorder.watch(data, name, space, owner)

    def _run_block(self, number: int, block: Dim3) -> None:
        if self.recorder is not None:
            self.recorder.begin_block(number)
        self.cuda.blockIdx = block
        self.cuda.shared = SharedMemory(self.dynamic_bytes, self.make)
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
        """What a greenlet does: run thread after thread, for as long as none has to wait.

        So a kernel without barriers needs only one of them. A greenlet is dear to make and
        cheap to switch to, which is why the next block finds here those of the last.
        """
        while True:
            self._enter(thread)
            self.fn(*self.args)
            if thread.copies is not None:
                thread.copies.check_none_left()
            thread.finished = True
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

    def wait(self, call: str, vote: Any = None, mask: int | None = None) -> Any:
        """Set the running thread aside at a barrier; returns when that opens, with its answer."""
        warp = None if mask is None else self.thread.number // WARP
        return self._meet(call, warp, mask, vote, VOTES.get(call))

    def collective(self, call: str, part: Any, combine: Combine) -> Any:
        """What the 32 lanes of a warp do as one: each hands in a part and is given its answer.

        call: what the instruction is called, whose stand-in calls this. combine: makes the answers
        of the parts, once all lanes are there. Unlike `syncwarp` it exempts none that have
        returned, and it orders no accesses to memory.
        """
        return self._meet(call, self.thread.number // WARP, None, part, combine)

    @property
    def copies(self) -> Copies:
        """The asynchronous copies of the running thread."""
        if self.thread.copies is None:
            self.thread.copies = Copies()
        return self.thread.copies

    def _meet(
        self, call: str, warp: int | None, mask: int | None, part: Any, combine: Combine | None
    ) -> Any:
        thread = self.thread
        frame = sys._getframe(3)  # the kernel's, past the method of KernelCuda or the stand-in
        place = id(frame.f_code), frame.f_lasti, warp, mask
        barrier = self.barriers.get(place)
        if barrier is None:
            file, line = frame.f_code.co_filename, frame.f_lineno
            barrier = self.barriers[place] = Barrier(call, file, line, warp, mask, combine)
        barrier.waiting.append(thread)
        thread.part = part
        thread.greenlet = greenlet.getcurrent()
        self.scheduler.switch()
        return thread.part

    def _open_barriers(self) -> list[Thread]:
        """Who may go on, in order, as nobody is missing where they wait; empty at the end."""
        waiting = [barrier for barrier in self.barriers.values() if barrier.waiting]
        full = [barrier for barrier in waiting if barrier.is_full(self.threads)]
        if waiting and not full:
            raise SimulatorError(self._report(waiting))
        released = []
        for barrier in full:
            met = barrier.open()
            released += met
            if self.recorder is not None and (barrier.warp is None or barrier.mask is not None):
                numbers = [thread.number for thread in met]
                self.recorder.open_barrier(barrier.call, barrier.file, barrier.line, numbers)
        return self._ordered(sorted(released, key=attrgetter("number")))

    def _report(self, waiting: list[Barrier]) -> str:
        lines = [
            f"kernel {self.fn.__name__}, block {self.cuda.blockIdx}: "
            "no thread can go on, as barriers wait for threads that never come"
        ]
        lines += [f"wait at {barrier}: {_listed(barrier.waiting)}" for barrier in waiting]
        finished = [thread for thread in self.threads if thread.finished]
        if finished:
            lines.append(f"have returned: {_listed(finished)}")
        return "\n  ".join(lines)

    def _explained(self, error: Exception) -> SimulatorError:
        """`error` with the kernel, the thread and the line, for raising in its place."""
        file, line = self.fn.__code__.co_filename, self.fn.__code__.co_firstlineno
        trace = error.__traceback__
        while trace is not None:  # the last line that is not the simulator's is the kernel's
            module = trace.tb_frame.f_globals.get("__name__") or ""
            if not module.startswith(SIMULATORS):
                file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
            trace = trace.tb_next
        kind = SimulatorIndexError if isinstance(error, IndexError) else SimulatorError
        return kind(
            f"kernel {self.fn.__name__}, thread {self.thread.threadIdx} "
            f"of block {self.cuda.blockIdx}, {file}:{line}: {type(error).__name__}: {error}"
        )


def _listed(threads: list[Thread]) -> str:
    first = ", ".join(str(thread.threadIdx) for thread in threads[:4])
    more = ", ..." if len(threads) > 4 else ""
    return f"{len(threads)} thread{'s' * (len(threads) > 1)}: {first}{more}"


def _breakpoint() -> None:
    """`breakpoint()` in a kernel: pdb, whose `s` goes past the simulator's own lines."""
    import pdb

    debugger = pdb.Pdb(skip=[f"{module}*" for module in SIMULATORS])
    debugger.set_trace(sys._getframe(1))
