"""What the compiler says of a kernel, where one is installed: no GPU is needed to compile.

The simulator runs a kernel as Python, so it takes what no GPU could run: dictionaries, strings,
exceptions. Numba decides about the simulator once in a process; so the compiler runs in another one
(`compile_server.py`), which is started at the first request, and ends with this process.
"""

from __future__ import annotations

import atexit
import functools
import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.cloudpickle import Pickler

from layers.device import cuda
from tinyconv.lab.compile_server import receive, send
from tinyconv.lab.issues import Issue, Line

HINT = "pip install -e '.[cuda13]'"

enabled = True
"""False: nothing is compiled."""


class Verdict:
    """What a compiler made of a kernel."""

    def __init__(self, answer: dict[str, Any], kernel: Any) -> None:
        self.unable: str | None = answer.get("unable")
        """Why nothing was compiled."""
        code = kernel.py_func.__code__
        self.doubles = [Line.of(code.co_filename, n) for n in answer.get("doubles", ())]
        """Lines that compute in float64."""
        self.issues: list[Issue] = []
        if "error" in answer:
            line = Line.of(code.co_filename, answer.get("place") or code.co_firstlineno)
            text = str(answer["error"]).replace("\n", "\n  ")
            message = f"the compiler makes no code for a GPU of it:\n  {text}\n    at {line}"
            self.issues.append(Issue("compile", "", None, (line,), (), message))


def submit(kernel: Any, args: tuple[Any, ...]) -> Future[Verdict]:
    """Have `kernel` compiled for arguments like `args`, while this process continues."""
    try:
        types = tuple(map(_type_of, args))
    except ValueError as error:
        text = f"an argument has no type there: {str(error).strip().splitlines()[0]}"
        return _answered(Verdict({"error": text}, kernel))
    return submit_types(kernel, types)


def submit_types(kernel: Any, types: tuple[Any, ...]) -> Future[Verdict]:
    """The same for arguments of Numba's `types`; what has been asked before is not asked again."""
    return _submit(kernel, types) if enabled else _answered(Verdict({}, kernel))


def _answered(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


@functools.lru_cache(256)
def _submit(kernel: Any, types: tuple[Any, ...]) -> Future[Verdict]:
    try:
        # Here and now: while the kernel runs, its `cuda` is the simulator's.
        request = _pickled((kernel.py_func, types))
    except Exception as error:  # of a global that has no place in another process
        return _answered(Verdict({"unable": f"{type(error).__name__}: {error}"}, kernel))
    return _worker().submit(_ask, kernel, request)


def _type_of(value: Any) -> Any:
    value = getattr(value, "value", value)  # of cuda.In, Out, InOut
    value = getattr(value, "_ary", value)  # of cuda.to_device
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        value = value.view()  # arrays of a GPU are writable, or copied there
        return numba.typeof(value).copy(readonly=False)
    return numba.typeof(value)


# --- the process


@functools.cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


@functools.cache
def _process() -> Any:
    server = Path(__file__).with_name("compile_server.py")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    process: Any = subprocess.Popen(
        [sys.executable, str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=server.parent,  # that of this process may be removed
    )
    atexit.register(process.kill)
    send(process.stdin, pickle.dumps([path or os.getcwd() for path in sys.path]))
    return process


def _ask(kernel: Any, request: bytes) -> Verdict:
    try:
        process = _process()
        send(process.stdin, request)
        answer = receive(process.stdout)
    except OSError as error:  # of a process that has ended
        return Verdict({"unable": f"{type(error).__name__}: {error}"}, kernel)
    if answer is None:
        return Verdict({"unable": "the compiler's process has ended"}, kernel)
    found = pickle.loads(answer)
    if "error" in found and _is_missing(found["error"]):
        found = {"unable": f"no compiler for GPUs is installed: {HINT}"}
    return Verdict(found, kernel)


def _is_missing(error: str) -> bool:
    """Whether the compiler's own libraries were not found."""
    return any(name in error.lower() for name in ("libnvvm", "nvvm.dll", "nvrtc", "libdevice"))


def _pickled(content: Any) -> bytes:
    class ByValue(Pickler):
        def persistent_id(self, value: Any) -> bytes | None:
            fake = isinstance(value, cuda.simulator.kernel.FakeCUDAKernel)
            return _pickled(value.fn) if fake else None

    buffer = io.BytesIO()
    ByValue(buffer).dump(content)
    return buffer.getvalue()
