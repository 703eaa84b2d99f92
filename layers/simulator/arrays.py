"""What a simulated kernel sees: arrays that check every index, poisoned memory, and `cuda`.

NumPy accepts what a GPU does not. `x[-1]` is the last element on the host and memory outside the
array on a GPU; `np.empty` often holds zeros, while shared and local memory hold whatever the last
kernel left there. So inside a simulated kernel every array is a `KernelArray`: a thin wrapper
that rejects negative and out-of-range indices and names the array. Shared and local arrays start
*poisoned*, so that an element read before it is written shows in the result:

    floating point and complex    NaN
    signed integers               the most negative value
    unsigned integers             the largest value, all bits set
    booleans                      True
    dynamic shared memory         all bits set (NaN; -1; the largest)

Poison shows only as far as arithmetic lets it: NaN survives every sum, an integer may not.

A kernel reaches memory only through `KernelArray.__getitem__` and `__setitem__`, and emulated
intrinsics through `memory`, `read` and `write`. In a recorded launch the arrays are of a subclass
that notes each access (`recorder.py`). `KernelCuda` replaces the name `cuda` inside a kernel:
positions, barriers, shared and local memory.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy import ndarray

from layers.simulator.warps import REFUSED, WARP, WarpCuda, poison

# --- memory


class ArrayIndexError(IndexError):
    """An index outside a kernel's array: its name, and the index or None if that is no integer."""

    def __init__(self, text: str, array: str, index: tuple[int, ...] | None):
        super().__init__(text)
        self.array = array
        self.index = index


class KernelArray:
    """A NumPy array as a kernel sees it: shape and elements, each index checked.

    It shares memory with `data`, whatever its strides. Elements are NumPy scalars, so float32
    stays float32. Fewer indices than dimensions give a row, which is checked again. Slices raise
    TypeError.
    """

    __slots__ = ("_begin", "data", "dtype", "name", "ndim", "shape", "size", "space", "strides")

    def __init__(self, data: ndarray, name: str, space: str = "global"):
        self.data = data
        self.name = name
        self.space = space
        self.dtype = data.dtype
        self.ndim = data.ndim
        self.shape = data.shape
        self.size = data.size
        self.strides = data.strides
        self._begin: int | None = None  # its address modulo 16, once computed

    def __getitem__(self, index: Any) -> Any:
        try:
            # The common case in tiled kernels. The general code below gives the same, slower.
            if self.ndim == 2 and type(index) is tuple:
                i, j = index
                if i >= 0 and j >= 0:
                    return self.data[index]
            if type(index) is not int or index < 0:
                _check(index)
            value = self.data[index]
        except (IndexError, ValueError) as error:
            self._raise(index, error)
        if type(value) is ndarray:
            return KernelArray(value, f"{self.name}[{_text(index)}]", self.space)
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            _check(index)
            self.data[index] = value
        except IndexError as error:
            self._raise(index, error)

    def memory(self, at: int, count: int) -> ndarray:
        """Elements at ... at + count - 1 of a flat array, as a view. Not recorded."""
        if self.ndim != 1 or at < 0 or at + count > self.size:
            # The first element outside; `at` itself if that is already outside.
            first = at if self.ndim != 1 or at < 0 else max(at, self.size)
            error = IndexError("not all of them are in a flat array")
            self._raise(first, error, f"{at}:{at + count}")
        return self.data[at : at + count]

    def read(self, at: int, count: int, caller: tuple | None = None) -> ndarray:
        """`memory`, recorded as one vectorized (16-byte) load.

        caller: the code object and bytecode offset it is recorded for; None: the kernel's call.
        """
        return self.memory(at, count)

    def write(
        self, at: int, values: ndarray, caller: tuple | None = None, completes: bool = False
    ) -> None:
        """Write elements from `at` on, recorded as one vectorized (16-byte) store.

        caller: as in `read`. completes: the store belongs to an asynchronous copy that another
        instruction began.
        """
        self.memory(at, len(values))[:] = values

    def check_aligned(self, at: int, what: str) -> None:
        """ValueError unless the address of element `at` is a multiple of 16 bytes."""
        if self._begin is None:
            # A GPU aligns shared and local memory as requested, so there NumPy's own address says
            # nothing.
            is_global = self.space == "global"
            self._begin = self.data.__array_interface__["data"][0] % 16 if is_global else 0
        if (self._begin + int(at) * self.data.itemsize) % 16:
            raise ValueError(f"{what} {self.name}[{at}]: not at a multiple of 16 bytes")

    def _raise(self, index: Any, error: Exception, text: str = "") -> NoReturn:
        raise ArrayIndexError(
            f"{self.name}[{text or _text(index)}] of shape {self.shape}: {error}",
            self.name,
            _integers(index),
        ) from None

    def __len__(self) -> int:
        return len(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"{self.name} = {self.data!r}"


def _check(index: Any) -> None:
    for i in index if type(index) is tuple else (index,):
        if i < 0:
            raise IndexError("negative index")


def _text(index: Any) -> str:
    return ", ".join(map(str, index)) if isinstance(index, tuple) else str(index)


def _integers(index: Any) -> tuple[int, ...] | None:
    items = index if isinstance(index, tuple) else (index,)
    return tuple(map(int, items)) if all(isinstance(i, (int, np.integer)) for i in items) else None


@functools.cache
def _poison(dtype: Any) -> tuple[np.dtype, Any]:
    """The NumPy type of a NumPy or Numba `dtype`, and its poison."""
    try:
        numpy_type = np.dtype(dtype)
    except TypeError:
        numpy_type = np.dtype(str(dtype))  # Numba's scalar types print as NumPy's names
    return numpy_type, poison(numpy_type)


Wrap = Callable[[ndarray, str, str], KernelArray]
"""Wraps memory with its name and its space ("global", "shared", "local") for a kernel."""


def wrap_unrecorded(data: ndarray, name: str, space: str) -> KernelArray:
    """The `Wrap` of a launch that is not recorded."""
    return KernelArray(data, name, space)


def _poisoned(shape: Any, dtype: Any) -> ndarray:
    numpy_type, value = _poison(dtype)
    return np.full(shape, value, numpy_type)


class LocalMemory:
    """`cuda.local` in a kernel: each call makes an array of the running thread."""

    def __init__(self, wrap: Wrap):
        self._wrap = wrap

    def array(self, shape: Any, dtype: Any, alignment: Any = None) -> KernelArray:
        """A poisoned array of `shape`. Any `alignment` is accepted."""
        name = f"local array of line {sys._getframe(1).f_lineno}"
        return self._wrap(_poisoned(shape, dtype), name, "local")


STATIC_SHARED = 48 * 1024
"""Bytes of shared memory that the arrays of a block may have, on every GPU; beyond that the
assembler refuses the kernel."""


class SharedMemory:
    """`cuda.shared` in a kernel: the arrays of one block, identified by the call that makes them.

    All threads of a block run the same code, so the bytecode offset of the call identifies the
    array. A line number would not, as one line may hold two calls.
    """

    def __init__(self, dynamic_bytes: int, wrap: Wrap):
        self._wrap = wrap
        self._static_bytes = 0
        self._arrays: dict[tuple[int, int], KernelArray] = {}
        self._dynamic = np.full(dynamic_bytes, 0xFF, np.uint8)

    def array(self, shape: Any, dtype: Any, alignment: Any = None) -> KernelArray:
        """The block's array for this call, poisoned; shape 0 is the launch's dynamic memory.

        Any `alignment` is accepted.
        """
        caller = sys._getframe(1)
        call = id(caller.f_code), caller.f_lasti
        array = self._arrays.get(call)
        if array is None:
            name = f"shared array of line {caller.f_lineno}"
            if shape == 0:
                numpy_type, _ = _poison(dtype)
                whole = self._dynamic.size // numpy_type.itemsize * numpy_type.itemsize
                memory = self._dynamic[:whole].view(numpy_type)
            else:
                memory = _poisoned(shape, dtype)
                self._static_bytes += memory.nbytes
                if self._static_bytes > STATIC_SHARED:
                    raise ValueError(
                        f"{self._static_bytes:,} bytes of shared memory in a block: arrays of "
                        f"constant shape may have {STATIC_SHARED:,} together"
                    )
            array = self._arrays[call] = self._wrap(memory, name, "shared")
        return array


def wrap_argument(value: Any, name: str, wrap: Wrap) -> Any:
    """Arrays, wrapped but not copied, with the name of their parameter; other values unchanged."""
    from numba.cuda.simulator.args import ArgHint, In

    if isinstance(value, ArgHint):
        # `In` is copied, as what the kernel writes there must not reach the caller.
        value = np.array(value.value) if isinstance(value, In) else value.value
    if getattr(value, "__cuda_ndarray__", False):  # of cuda.to_device and the like
        value = value._ary
    if isinstance(value, np.ndarray):
        return wrap(np.asarray(value), name, "global")
    if type(value) is tuple:
        return tuple(wrap_argument(item, f"{name}[{i}]", wrap) for i, item in enumerate(value))
    return value


# --- the name `cuda`


@dataclass(slots=True)
class Dim3:
    """A position or a size in a grid: `cuda.threadIdx`, `cuda.blockDim`, and so on."""

    x: int
    y: int
    z: int

    def __str__(self) -> str:
        return f"({self.x}, {self.y}, {self.z})"


@functools.cache
def _stock_cuda() -> Any:
    from numba.cuda.simulator.kernelapi import FakeCUDAModule

    return FakeCUDAModule((1, 1, 1), (1, 1, 1), 0)


class KernelCuda(WarpCuda):
    """Replaces the name `cuda` inside a kernel.

    The scheduler sets `threadIdx` and `blockIdx` when it switches threads. What needs no scheduler
    (`atomic`, `fma`, `popc`, ...) is taken from Numba's own simulator.
    """

    warpsize = WARP
    threadIdx: Dim3
    blockIdx: Dim3
    shared: SharedMemory

    def __init__(self, wait: Callable[..., Any], grid: Dim3, block: Dim3, wrap: Wrap):
        self.gridDim = grid
        self.blockDim = block
        self.local = LocalMemory(wrap)
        self.atomic = _stock_cuda().atomic
        self._wait = wait  # called by a method below, which a kernel calls

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise NotImplementedError(f"cuda.{name}: {REFUSED[name]}")
        return getattr(_stock_cuda(), name)

    @property
    def laneid(self) -> int:
        """The thread's lane: its number in its warp."""
        size, thread = self.blockDim, self.threadIdx
        return (thread.x + size.x * (thread.y + size.y * thread.z)) % WARP

    def grid(self, ndim: int) -> Any:
        """The thread's position in the whole grid: x, (x, y) or (x, y, z)."""
        block, size, thread = self.blockIdx, self.blockDim, self.threadIdx
        x = block.x * size.x + thread.x
        if ndim == 1:
            return x
        y = block.y * size.y + thread.y
        if ndim == 2:
            return x, y
        return x, y, block.z * size.z + thread.z

    def gridsize(self, ndim: int) -> Any:
        """The number of threads in the grid along x, (x, y) or (x, y, z)."""
        grid, block = self.gridDim, self.blockDim
        sizes = grid.x * block.x, grid.y * block.y, grid.z * block.z
        return sizes[0] if ndim == 1 else sizes[:ndim]

    def syncthreads(self) -> None:
        """Wait for all threads of the block."""
        self._wait("syncthreads")

    def syncthreads_count(self, predicate: Any) -> int:
        """Wait for all threads of the block; the number of true predicates."""
        return self._wait("syncthreads_count", predicate)

    def syncthreads_and(self, predicate: Any) -> int:
        """Wait for all threads of the block; 1 if every predicate is true, else 0."""
        return self._wait("syncthreads_and", predicate)

    def syncthreads_or(self, predicate: Any) -> int:
        """Wait for all threads of the block; 1 if any predicate is true, else 0."""
        return self._wait("syncthreads_or", predicate)
