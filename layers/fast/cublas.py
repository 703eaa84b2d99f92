"""cuBLAS called by itself, so that a CUDA graph can hold its products.

CuPy refuses every call of cuBLAS while a stream is captured. The library itself allows it. Its
workspace then has to be the caller's memory, as a replay uses it again. So the library that CuPy
has loaded is called through ctypes, with a handle and a workspace of our own. Where it cannot be
loaded, products are CuPy's (`gemm.py`), and a recording is cut at them (`graph.py`).

Not yet run on a GPU. The tests call a library of the same interface that multiplies on the host.
"""

import ctypes
from typing import Any

import numpy as np

from layers.device import Device

WORKSPACE = 32 * 2**20
"""Bytes: what NVIDIA recommends for Hopper; older GPUs need less."""

_libraries: dict[str, "Cublas | None"] = {}
"""By device; None: it cannot be loaded."""


class Cublas:
    """A handle of cuBLAS on one GPU. library: its functions, as `ctypes.CDLL` gives them.

    RuntimeError if a call fails.
    """

    def __init__(self, library: Any, device: Device) -> None:
        self._library, self._cuda = library, device.xp.cuda
        self._workspace = device.empty((WORKSPACE,), np.uint8)
        self._stream: int | None = None
        handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(handle))
        self._handle = handle

    def gemm_ex(self, *arguments: int) -> None:
        """cublasGemmEx on CuPy's current stream; arguments after the handle, pointers as ints."""
        stream = self._cuda.get_current_stream().ptr
        if stream != self._stream:
            self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
            # A new stream means the library's own workspace, until it is told again.
            workspace = ctypes.c_void_p(self._workspace.data.ptr), ctypes.c_size_t(WORKSPACE)
            self._call("cublasSetWorkspace_v2", self._handle, *workspace)
            self._stream = stream
        pointers = 5, 6, 9, 12, 13  # alpha, a, b, beta, out
        typed = [
            ctypes.c_void_p(each) if place in pointers else ctypes.c_int(each)
            for place, each in enumerate(arguments)
        ]
        self._call("cublasGemmEx", self._handle, *typed)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} failed with status {status}")


def _load() -> Any:
    """The library that CuPy uses: the loader takes one that is in the process already."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)


def cublas_of(device: Device) -> Cublas | None:
    """The handle for a GPU, made at the first call; None for other devices, or without library."""
    if not device.is_cuda or device.is_simulated:
        return None
    if device.name not in _libraries:
        try:
            with device.current():  # a handle belongs to the GPU that is current at its creation
                _libraries[device.name] = Cublas(_load(), device)
        except Exception:  # of the loader or the library: CuPy's products need neither
            _libraries[device.name] = None
    return _libraries[device.name]
