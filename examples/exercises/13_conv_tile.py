"""Exercise 13. Convolution with a tile: read once, use nine times.

One image of one channel, one filter of 3x3, padded by one. In exercise 10 nine threads read each
pixel from global memory. Here a block of 16x16 threads first copies the 18x18 pixels that its
windows need, with a border one pixel wide, into `tile`, zeros where the image ends; after a barrier
each thread computes its output from the tile alone. 324 pixels and 256 threads: some threads copy
two. The filter is in shared memory already.

Threads outside of the image own no output, but they copy, and they come to the barrier.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np
from numba import float32

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

BLOCK, WIDE = 16, 18


def specification(x, w):
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, 1), (3, 3))
    return np.einsum("hwrs,rs->hw", windows, w)


@cuda.jit
def conv_tile(x, w, y):
    tile = cuda.shared.array((WIDE, WIDE), float32)
    weights = cuda.shared.array((3, 3), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    top, left = cuda.blockIdx.y * BLOCK - 1, cuda.blockIdx.x * BLOCK - 1  # of the tile, in x
    if tx < 3 and ty < 3:
        weights[ty, tx] = w[ty, tx]
    ...


if __name__ == "__main__":
    inputs = [(numbers(*shape), numbers(3, 3)) for shape in ((1, 1), (17, 5), (32, 32))]
    mark(
        conv_tile,
        specification,
        inputs,
        launch=lambda y: ((-(-y.shape[1] // BLOCK), -(-y.shape[0] // BLOCK)), (BLOCK, BLOCK)),
        goal=Goal(bytes=2),
    )
