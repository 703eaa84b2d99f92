"""What a simulated kernel sees: arrays that check every index, loud fresh memory, and `cuda`.

NumPy forgives what a GPU does not. `x[-1]` is the last element on the host and somebody else's
memory on a GPU; `np.empty` often holds zeros, while shared and local memory hold whatever the
last kernel left there. So inside a simulated kernel every array is a `KernelArray`: a thin
wrapper that refuses negative and out-of-range indices and names the array. Shared and local
arrays start *poisoned*, so that an element read before it is written shows in the result:

    floating point and complex    NaN
    signed integers               the most negative value
    unsigned integers             the largest value, all bits set
    booleans                      True
    dynamic shared memory         all bits set (NaN; -1; the largest)

Poison is as loud as arithmetic lets it be: NaN survives every sum, an integer may not.

`KernelArray.__getitem__` and `__setitem__` are the one way from a kernel to its memory; where a
launch is recorded, its arrays are of a subclass that notes each access (`trace.py`).
`KernelCuda` is what the name `cuda` means there: positions, barriers, shared and local memory.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy import ndarray

WARP = 32

# --- memory


class KernelArray:
    """A NumPy array as a kernel sees it: shape and elements, each index checked.

    It shares memory with `data`, whatever its strides. Elements are NumPy scalars, so float32
    stays float32. Fewer indices than dimensions give a row that is checked again; slices are
    refused.
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
        self._begin: int | None = None  # its address modulo 16, once somebody has asked

    def __getitem__(self, index: Any) -> Any:
        try:
            # A short cut for what tiled kernels do most; the lines after it would do as well,
            # but slower.
            if self.ndim == 2 and type(index) is tuple:
                i, j = index
                if i >= 0 and j >= 0:
                    return self.data[index]
            if type(index) is not int or index < 0:
                _check(index)
            value = self.data[index]
        except (IndexError, ValueError) as error:
            self._refuse(index, error)
        if type(value) is ndarray:
            return KernelArray(value, f"{self.name}[{_text(index)}]", self.space)
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            _check(index)
            self.data[index] = value
        except IndexError as error:
            self._refuse(index, error)

    def memory(self, at: int, count: int) -> ndarray:
        """The `count` neighbouring elements of a flat array from `at` on."""
        if self.ndim != 1 or at < 0 or at + count > self.size:
            self._refuse(f"{at}:{at + count}", IndexError("not all of them are in a flat array"))
        return self.data[at : at + count]

    def read(self, at: int, count: int, place: tuple | None = None) -> ndarray:
        """`memory`, for reading, by an instruction that moves 16 bytes."""
        return self.memory(at, count)

    def write(
        self, at: int, values: ndarray, place: tuple | None = None, arrived: bool = False
    ) -> None:
        """Neighbouring elements from `at` on, written by an instruction that moves 16 bytes.

        arrived: it only waits for a copy that was begun elsewhere.
        """
        self.memory(at, len(values))[:] = values

    def check_aligned(self, at: int, what: str) -> None:
        """ValueError unless element `at` lies at a multiple of 16 bytes, as on a GPU it must."""
        if self._begin is None:
            # Shared and local memory is aligned there as asked for, here as NumPy has it.
            is_global = self.space == "global"
            self._begin = self.data.__array_interface__["data"][0] % 16 if is_global else 0
        if (self._begin + int(at) * self.data.itemsize) % 16:
            raise ValueError(f"{what} {self.name}[{at}]: not at a multiple of 16 bytes")

    def _refuse(self, index: Any, error: Exception) -> NoReturn:
        raise IndexError(f"{self.name}[{_text(index)}] of shape {self.shape}: {error}") from None

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


@functools.cache
def _poison(dtype: Any) -> tuple[np.dtype, Any]:
    """The NumPy type of a NumPy or Numba `dtype`, and the value fresh memory of it holds."""
    try:
        numpy_type = np.dtype(dtype)
    except TypeError:
        numpy_type = np.dtype(str(dtype))  # Numba's scalar types print as NumPy's names
    if numpy_type.kind in "fc":
        return numpy_type, np.nan
    if numpy_type.kind == "i":
        return numpy_type, np.iinfo(numpy_type).min
    if numpy_type.kind == "u":
        return numpy_type, np.iinfo(numpy_type).max
    return numpy_type, True


Make = Callable[[ndarray, str, str], KernelArray]
"""Turns memory, its name and its space ("global", "shared", "local") into what a kernel sees."""


def unwatched(data: ndarray, name: str, space: str) -> KernelArray:
    """`data` as a kernel sees it when nobody records what it does."""
    return KernelArray(data, name, space)


def _fresh(shape: Any, dtype: Any) -> ndarray:
    numpy_type, value = _poison(dtype)
    return np.full(shape, value, numpy_type)


class LocalMemory:
    """`cuda.local` in a kernel: every call is one thread's own array."""

    def __init__(self, make: Make):
        self._make = make

    def array(self, shape: Any, dtype: Any, alignment: Any = None) -> KernelArray:
        """An array of `shape` that no other thread sees, poisoned. Every alignment is given."""
        name = f"local array of line {sys._getframe(1).f_lineno}"
        return self._make(_fresh(shape, dtype), name, "local")


class SharedMemory:
    """`cuda.shared` in a kernel: one block's arrays, each known by the call that made it.

    All threads of a block run the same code, so the place of the call in the bytecode says
    which array is meant; a line number would not, as one line may hold two calls.
    """

    def __init__(self, dynamic_bytes: int, make: Make):
        self._make = make
        self._arrays: dict[tuple[int, int], KernelArray] = {}
        self._dynamic = np.full(dynamic_bytes, 0xFF, np.uint8)

    def array(self, shape: Any, dtype: Any, alignment: Any = None) -> KernelArray:
        """The block's array for this call, poisoned; shape 0 is the launch's dynamic memory.

        Every alignment is given.
        """
        caller = sys._getframe(1)
        place = id(caller.f_code), caller.f_lasti
        array = self._arrays.get(place)
        if array is None:
            name = f"shared array of line {caller.f_lineno}"
            if shape == 0:
                numpy_type, _ = _poison(dtype)
                whole = self._dynamic.size // numpy_type.itemsize * numpy_type.itemsize
                memory = self._dynamic[:whole].view(numpy_type)
            else:
                memory = _fresh(shape, dtype)
            array = self._arrays[place] = self._make(memory, name, "shared")
        return array


def as_kernel_sees(value: Any, name: str, make: Make) -> Any:
    """Arrays, wrapped but not copied, by the name of their parameter; all else as it is."""
    from numba.cuda.simulator.args import ArgHint, In

    if isinstance(value, ArgHint):
        # What goes in only must not come out, so that alone is copied.
        value = np.array(value.value) if isinstance(value, In) else value.value
    if getattr(value, "__cuda_ndarray__", False):  # of cuda.to_device and its like
        value = value._ary
    if isinstance(value, np.ndarray):
        return make(np.asarray(value), name, "global")
    if type(value) is tuple:
        return tuple(as_kernel_sees(item, f"{name}[{i}]", make) for i, item in enumerate(value))
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


class KernelCuda:
    """What the name `cuda` stands for inside a kernel.

    The scheduler writes `threadIdx` and `blockIdx` as it goes from thread to thread. What needs
    no scheduler (`atomic`, `fma`, `popc`, ...) is that of Numba's own simulator.
    """

    warpsize = WARP
    threadIdx: Dim3
    blockIdx: Dim3
    shared: SharedMemory

    def __init__(self, wait: Callable[..., Any], grid: Dim3, block: Dim3, make: Make):
        self.gridDim = grid
        self.blockDim = block
        self.local = LocalMemory(make)
        self.atomic = _stock_cuda().atomic
        self._wait = wait  # expects to be called by one of the methods below, called by a kernel

    def __getattr__(self, name: str) -> Any:
        if name == "cg":
            raise NotImplementedError("cooperative groups are not simulated")
        return getattr(_stock_cuda(), name)

    @property
    def laneid(self) -> int:
        """The thread's place in its warp."""
        size, thread = self.blockDim, self.threadIdx
        return (thread.x + size.x * (thread.y + size.y * thread.z)) % WARP

    def grid(self, ndim: int) -> Any:
        """The thread's place in the whole grid: x, (x, y) or (x, y, z)."""
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
        """Wait for all threads of the block; how many of them came with a true predicate."""
        return self._wait("syncthreads_count", predicate)

    def syncthreads_and(self, predicate: Any) -> int:
        """Wait for all threads of the block; 1 if all of them came with a true predicate."""
        return self._wait("syncthreads_and", predicate)

    def syncthreads_or(self, predicate: Any) -> int:
        """Wait for all threads of the block; 1 if any of them came with a true predicate."""
        return self._wait("syncthreads_or", predicate)

    def syncwarp(self, mask: int = 0xFFFFFFFF) -> None:
        """Wait for those lanes of the warp whose bits are set in `mask` (the caller's must be)."""
        mask = int(mask) & 0xFFFFFFFF
        if not mask >> self.laneid & 1:
            raise ValueError(f"syncwarp({mask:#010x}) by lane {self.laneid}, which is not in it")
        self._wait("syncwarp", mask=mask)
