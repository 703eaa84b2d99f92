"""Five kernels out of every CUDA textbook, all correct, each as a launch ready to be made.

    kernel, grid, block, args, outputs = transpose_padded()
    kernel[grid, block](*args)

What is known of them by heart is what the laboratory in `tinyconv/lab/` has to say of them: none
does anything wrong; the strided copy wastes its transactions; the transpose without padding has
bank conflicts of 32 ways, the padded one none. All arrays are float32, their values random.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32

SIZE = 64  # of the matrices
TILE = 32  # of the transposes, by blocks of TILE × ROWS threads: each thread has TILE / ROWS rows
PADDED = TILE + 1  # Numba wants the sides of a shared array as constants, not as sums
ROWS = 8
SQUARE = 16  # tile and block of the matrix product


class Textbook(NamedTuple):
    """A launch: `kernel[grid, block](*args)` fills the parameters named in `outputs`."""

    kernel: Any
    grid: Any
    block: Any
    args: tuple[Any, ...]
    outputs: tuple[str, ...]


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@cuda.jit
def copy_kernel(x, y):
    i = cuda.grid(1)
    if i < y.size:
        y[i] = x[i]


def copy(n: int = 4000) -> Textbook:
    """y = x, one thread an element; n is no multiple of the 256 threads of a block."""
    return Textbook(copy_kernel, -(-n // 256), 256, (_random(n), np.zeros(n, np.float32)), ("y",))


@cuda.jit
def strided_copy_kernel(x, y, stride):
    i = cuda.grid(1)
    if i < y.size:
        y[i] = x[i * stride]


def strided_copy(n: int = 1024, stride: int = 8) -> Textbook:
    """y = x[::stride]: neighbouring threads read elements `stride` apart."""
    args = _random(n * stride), np.zeros(n, np.float32), stride
    return Textbook(strided_copy_kernel, -(-n // 256), 256, args, ("y",))


@cuda.jit
def transpose_kernel(x, y):
    tile = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
    for i in range(ty, TILE, ROWS):
        tile[i, tx] = x[row + i, column + tx]
    cuda.syncthreads()
    for i in range(ty, TILE, ROWS):
        y[column + i, row + tx] = tile[tx, i]


def transpose(size: int = SIZE) -> Textbook:
    """y = x.T by way of a tile of 32 × 32 in shared memory: its columns are in one bank each."""
    args = _random(size, size), np.zeros((size, size), np.float32)
    return Textbook(transpose_kernel, (size // TILE,) * 2, (TILE, ROWS), args, ("y",))


@cuda.jit
def transpose_padded_kernel(x, y):
    tile = cuda.shared.array((TILE, PADDED), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
    for i in range(ty, TILE, ROWS):
        tile[i, tx] = x[row + i, column + tx]
    cuda.syncthreads()
    for i in range(ty, TILE, ROWS):
        y[column + i, row + tx] = tile[tx, i]


def transpose_padded(size: int = SIZE) -> Textbook:
    """The same by way of a tile of 32 × 33: one unused column spreads the others over the banks."""
    return transpose(size)._replace(kernel=transpose_padded_kernel)


@cuda.jit
def product_kernel(a, b, c):
    a_tile = cuda.shared.array((SQUARE, SQUARE), float32)
    b_tile = cuda.shared.array((SQUARE, SQUARE), float32)
    column, row = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0)
    for k in range(0, a.shape[1], SQUARE):
        a_tile[ty, tx] = a[row, k + tx]
        b_tile[ty, tx] = b[k + ty, column]
        cuda.syncthreads()
        for j in range(SQUARE):
            total += a_tile[ty, j] * b_tile[j, tx]
        cuda.syncthreads()
    c[row, column] = total


def product(size: int = SIZE) -> Textbook:
    """c = a b, tile by tile through shared memory."""
    a, b = _random(2, size, size)
    args = a, b, np.zeros((size, size), np.float32)
    return Textbook(product_kernel, (size // SQUARE,) * 2, (SQUARE, SQUARE), args, ("c",))


TEXTBOOK = {
    "copy": copy,
    "strided copy": strided_copy,
    "transpose": transpose,
    "transpose, padded": transpose_padded,
    "matrix product": product,
}
"""By name, the functions that make a launch."""
