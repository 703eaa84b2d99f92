"""Exercise 9. A transpose: coalesced both ways, and without bank conflicts.

y[j, i] = x[i, j] in one line is right and slow: if a warp reads a row, it writes a column, and each
of its 32 numbers takes a sector of its own. So a block of 32x32 threads copies a square of x into
shared memory, row by row, and writes it to y, row by row of y. The column is then read from the
tile instead.

Word k of shared memory is in bank k % 32, and a bank serves one word at a time. What are the banks
of a column of a 32x32 tile? Another PITCH changes that.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np
from numba import float32

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

TILE = 32
PITCH = TILE  # words from one row of the tile to the next


def specification(x):
    return np.ascontiguousarray(x.T)


@cuda.jit
def transpose(x, y):
    tile = cuda.shared.array((TILE, PITCH), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx  # in x
    ...


if __name__ == "__main__":
    mark(
        transpose,
        specification,
        [(numbers(33, 5),), (numbers(64, 32),)],
        launch=lambda y: ((-(-y.shape[0] // TILE), -(-y.shape[1] // TILE)), (TILE, TILE)),
        goal=Goal(coalescing=1, conflicts=1),
    )
