"""Devices, on which arrays are stored and computed: the host, a GPU, or a simulated GPU.

The module that imports numba.cuda and cupy. Every other file has `from layers.device import cuda`,
but for intrinsics, which need numba.cuda.extending.

There are three cases:

* a machine with an NVIDIA GPU: `cuda` compiles and launches kernels; arrays are CuPy's;
* no GPU: `cuda` still decorates kernels (they are compiled at their first launch, which never
  happens), and every layer runs its host loops on NumPy arrays;
* `NUMBA_ENABLE_CUDASIM=1` set before Python starts: the same kernels run in plain Python on NumPy
  arrays, one simulated thread after the other (`layers/simulator/`), and can be stepped through.
"""

import os
from contextlib import nullcontext
from typing import Any

import numpy as np

# Numba takes CuPy's arrays by DLPack. By the older protocol it would wait for an array's stream at
# every launch, for nothing: all work of this project is queued on one stream in order.
os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")

# Small launches are intended here: a bias has few elements.
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")

# CuPy's float32 products are float32 ones: it reads this at its first product.
os.environ["CUPY_TF32"] = "0"

# numba-cuda 0.30 looks up this alias at import, and NumPy 2.5 has removed it.
vars(np).setdefault("row_stack", np.vstack)

from numba import cuda  # noqa: E402

from layers.process import launches  # noqa: E402
from layers.process.alignment import aligned  # noqa: E402

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""True when kernels run in the simulator of this process."""

SIMULATOR = "off"
if SIMULATED:
    from layers import simulator

    SIMULATOR = simulator.install()

THREADS = 128
"""Threads in a block for kernels in which one thread owns one output element: four warps."""


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
# one queue to stay in order: CuPy's current stream for this thread and GPU, wrapped for Numba once.
# It is ordered with CUDA's default stream, on which a launch goes that names no stream.

_cupy: Any = None
_own_streams: dict[int, Any] = {}  # by GPU: the stream of all work there
_numba_streams: dict[tuple[int, int], Any] = {}  # by GPU and pointer: wrapped for Numba


def stream() -> Any:
    """CuPy's current stream, wrapped for Numba; 0 where there is no GPU."""
    if _cupy is None:
        return 0
    current = _cupy.cuda.get_current_stream()
    key = current.device_id, current.ptr
    if key not in _numba_streams:
        _numba_streams[key] = cuda.external_stream(current.ptr) if current.ptr else 0
    return _numba_streams[key]


def _use_own_stream(cupy: Any, index: int) -> None:
    """Make the stream of GPU `index` its current one, unless the user has chosen one already."""
    global _cupy
    _cupy = cupy
    if cupy.cuda.get_current_stream().ptr == 0:
        own = _own_streams.get(index) or _own_streams.setdefault(index, cupy.cuda.Stream())
        own.use()


class DeviceError(RuntimeError):
    """This machine does not have the requested device."""


INSTALL_HINT = (
    "install the extra for your driver, pip install -e '.[cuda13]' (driver 580 or newer) or "
    "'.[cuda12]', or use --device cpu"
)


def _open_gpu(index: int) -> Any:
    """CuPy, with GPU `index` ready for work, or a DeviceError that says what is missing."""
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
    with cupy.cuda.Device(index):
        if not cuda.is_available():
            raise DeviceError(f"cuda:{index}: CuPy finds the GPU, Numba does not: {INSTALL_HINT}")
        _use_own_stream(cupy, index)
    launches.keep_views(cupy)
    return cupy


class Device:
    """A place for arrays: `Device("cpu")`, `Device("cuda:0")`, or `Device("auto")`.

    `auto` takes the first GPU if one works, else the host; `str(device)` says in one line which
    and why. Under NUMBA_ENABLE_CUDASIM=1 `cuda:0` is the simulator and its arrays are NumPy's
    (`auto` then still means the host, which is far faster).

    Attributes: `name` ("cpu", "cuda:0"); `index`, the GPU's number; `is_cuda`, kernels are launched
    here; `is_simulated`; `xp`, NumPy or CuPy. Two devices of one name are equal. Arrays are made on
    this GPU; which one is current only `use` and `current` change.

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
        """`with device.current():` kernels are launched here, among several GPUs.

        Numba launches on whatever GPU is current for CuPy. Not yet run on two GPUs.
        """
        if not self.is_cuda or self.is_simulated:
            return nullcontext()
        return self.xp.cuda.Device(self.index)

    def use(self) -> "Device":
        """Make this the GPU that is current in this thread outside of `current()`; itself."""
        if self.is_cuda and not self.is_simulated:
            self.xp.cuda.Device(self.index).use()
        return self

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of `shape` with undefined contents."""
        return self._make("empty", shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of `shape` filled with zeros."""
        return self._make("zeros", shape, dtype)

    def _make(self, how: str, shape: tuple[int, ...], dtype: Any) -> Any:
        if not self.is_cuda:
            return aligned(getattr(np, how), shape, dtype)
        with self.current():
            return getattr(self.xp, how)(shape, dtype)

    def array(self, values: Any, dtype: Any = None) -> Any:
        """A C-contiguous copy of `values` (NumPy or CuPy array, nested lists) on this device."""
        if self.xp is np and hasattr(values, "get"):
            values = values.get()
        with self.current():
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
            with self.current():
                self.xp.cuda.runtime.deviceSynchronize()
