"""Devices, on which arrays are stored and computed: the host, a GPU, or a simulated GPU.

The only module that imports numba.cuda and cupy. Every other file imports `cuda` from here:

    from layers.device import cuda, grid_for

There are three cases:

* a machine with an NVIDIA GPU: `cuda` compiles and launches kernels; arrays are CuPy's;
* no GPU: `cuda` still decorates kernels (they are compiled at their first launch, which never
  happens), and every layer runs its host loops on NumPy arrays;
* `NUMBA_ENABLE_CUDASIM=1` set before Python starts: the same kernels run in plain Python on NumPy
  arrays, one simulated thread after the other (`layers/simulator/`), and can be stepped through.
"""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

# Numba takes CuPy's arrays by DLPack. By the older protocol it would wait for an array's stream at
# every launch, for nothing: all work of this project is queued on one stream in order.
os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")

# Small launches are intended here: a bias has few elements.
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")

# numba-cuda 0.30 looks up this alias at import, and NumPy 2.5 has removed it.
vars(np).setdefault("row_stack", np.vstack)

from numba import cuda  # noqa: E402

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""True when kernels run in the simulator of this process."""

SIMULATOR = "off"
if SIMULATED:
    from layers import simulator

    SIMULATOR = simulator.install()

THREADS = 128
"""Threads in a block for kernels in which one thread owns one output element: four warps."""

CACHE_LINE = 64
"""Bytes of a cache line of the host's processor."""


def grid_for(count: int) -> tuple[int, int, Any]:
    """The launch configuration (blocks, threads, stream) with one thread for each of `count`.

    The last block may reach beyond `count`; a kernel's first lines return for those threads.
    """
    return max(1, -(-count // THREADS)), THREADS, stream()


def grid_of(blocks: Any, threads: Any) -> tuple[Any, Any, Any]:
    """The launch configuration of these blocks and threads (ints, or tuples of ints)."""
    return blocks, threads, stream()


# --- streams
#
# A stream is a queue of work for a GPU. Numba's kernels and CuPy's products and copies must be in
# one queue to stay in order. CuPy has a current stream for each thread and GPU; a launch takes that
# one, wrapped for Numba once. It is a blocking stream, ordered with CUDA's default stream, so that
# work launched without naming a stream is in order as well.

_cupy: Any = None
_own_streams: dict[int, Any] = {}  # by GPU: the stream of all work there
_numba_streams: dict[int, Any] = {0: 0}  # by pointer: a CuPy stream wrapped for Numba


def stream() -> Any:
    """CuPy's current stream, wrapped for Numba; 0 where there is no GPU."""
    if _cupy is None:
        return 0
    pointer = _cupy.cuda.get_current_stream().ptr
    if pointer not in _numba_streams:
        _numba_streams[pointer] = cuda.external_stream(pointer)
    return _numba_streams[pointer]


def _use_own_stream(cupy: Any, index: int) -> None:
    """Make the stream of GPU `index` the current one, unless the user has chosen one already."""
    global _cupy
    _cupy = cupy
    if cupy.cuda.get_current_stream().ptr == 0:
        if index not in _own_streams:
            _own_streams[index] = cupy.cuda.Stream()
        _own_streams[index].use()


class DeviceError(RuntimeError):
    """This machine does not have the requested device."""


INSTALL_HINT = (
    "install the extra for your driver, pip install -e '.[cuda13]' (driver 580 or newer) or "
    "'.[cuda12]', or use --device cpu"
)


def _open_gpu(index: int) -> Any:
    """CuPy with GPU `index` made current, or a DeviceError that says what is missing."""
    try:
        import cupy
    except ImportError:
        raise DeviceError(f"cuda:{index}: CuPy is not installed: {INSTALL_HINT}") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"cuda:{index}: no working GPU here ({error}): {INSTALL_HINT}") from None
    if index >= count:
        raise DeviceError(f"cuda:{index}: this machine has {count} GPU(s), counted from cuda:0")
    cupy.cuda.Device(index).use()
    if not cuda.is_available():
        raise DeviceError(f"cuda:{index}: CuPy finds the GPU and Numba does not: {INSTALL_HINT}")
    _use_own_stream(cupy, index)
    return cupy


def aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`make(shape, dtype)`, NumPy's `empty` or `zeros`, aligned to a cache line.

    NumPy aligns large arrays to 16 bytes only, and then every vector of 64 bytes is in two lines.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = make(size + CACHE_LINE - 1, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)


class Device:
    """A place for arrays: `Device("cpu")`, `Device("cuda:0")`, or `Device("auto")`.

    `auto` takes the first GPU if one works, else the host; `str(device)` says in one line which
    and why. Under NUMBA_ENABLE_CUDASIM=1 `cuda:0` is the simulator and its arrays are NumPy's
    (`auto` then still means the host, which is far faster).

    Attributes: `name` ("cpu", "cuda:0"); `index`, the GPU's number; `is_cuda`, kernels are launched
    here; `is_simulated`; `xp`, NumPy or CuPy. Two devices of one name are equal.

    Raises DeviceError if the device is missing, ValueError for any other name.
    """

    def __init__(self, name: "str | Device" = "auto") -> None:
        self.why = ""
        self.xp: Any = np
        name = str(getattr(name, "name", name))
        if name == "auto":
            name = self._choose()
        kind, _, index = name.partition(":")
        if name != "cpu" and (kind != "cuda" or not (index or "0").isdecimal()):
            raise ValueError(f"device {name!r}: use 'cpu', 'cuda:0' (or another index) or 'auto'")
        self.is_cuda, self.index = kind == "cuda", int(index or 0)
        self.is_simulated = self.is_cuda and SIMULATED
        self.name = f"cuda:{self.index}" if self.is_cuda else "cpu"
        if self.is_simulated and self.name != "cuda:0":
            raise DeviceError(f"{self.name}: the simulator has one device, cuda:0")
        if self.is_cuda and not self.is_simulated:
            self.xp = _open_gpu(self.index)

    def _choose(self) -> str:
        if SIMULATED:
            self.why = "auto never takes the simulator"
            return "cpu"
        try:
            _open_gpu(0)
        except DeviceError as error:
            self.why = str(error).partition(": install")[0]
            return "cpu"
        return "cuda:0"

    def __str__(self) -> str:
        if self.is_simulated:
            return f"{self.name}, simulated ({SIMULATOR})"
        if self.is_cuda:
            properties = self.xp.cuda.runtime.getDeviceProperties(self.index)
            return f"{self.name}, {properties['name'].decode()}"
        return f"the host, {os.cpu_count()} cores" + (f" ({self.why})" if self.why else "")

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    def __reduce__(self) -> Any:
        return Device, (self.name,)  # a copy, or another process, opens it again

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def current(self) -> Any:
        """`with device.current():` arrays are made and kernels launched here, among several GPUs.

        Numba launches on whatever GPU is current for CuPy. Not yet run on two GPUs.
        """
        if not self.is_cuda or self.is_simulated:
            return nullcontext()
        return self.xp.cuda.Device(self.index)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of `shape` with undefined contents."""
        return self.xp.empty(shape, dtype) if self.is_cuda else aligned(np.empty, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of `shape` filled with zeros."""
        return self.xp.zeros(shape, dtype) if self.is_cuda else aligned(np.zeros, shape, dtype)

    def array(self, values: Any, dtype: Any = None) -> Any:
        """A C-contiguous copy of `values` (NumPy or CuPy array, nested lists) on this device."""
        if self.xp is np and hasattr(values, "get"):
            values = values.get()
        return self.xp.array(values, dtype=dtype, order="C")

    @staticmethod
    def write(array: Any, values: Any) -> None:
        """Overwrite a small contiguous `array` with host values, queued like everything else."""
        values = np.ascontiguousarray(values, array.dtype).reshape(array.shape)
        if hasattr(array, "set"):
            array.set(values)
        else:
            array[...] = values

    @staticmethod
    def to_host(array: Any) -> np.ndarray:
        """`array` as a NumPy array; copied only if it lives on a GPU."""
        return array.get() if hasattr(array, "get") else np.asarray(array)

    def synchronize(self) -> None:
        """Wait until everything queued on this device is done (for timing)."""
        if self.is_cuda and not self.is_simulated:
            self.xp.cuda.runtime.deviceSynchronize()
