"""Exercise 6. Local response normalization: neighbours in a row.

AlexNet divides each activation by a power of what its neighbours among the channels do:

    y[i] = x[i] / scale[i] ** 0.75,   scale[i] = 2 + 0.5 * (sum of x[j] ** 2, i - 2 <= j <= i + 2)

Rows are pixels, columns are channels. At either end of a row the window is cut: that of channel 0
has only 0, 1, 2. The last channel of a pixel is next to the first channel of the next pixel in
memory, but not in a window.

Constants in float32 stay in float32: `K * x` with K = np.float32(2). A bare 0.75 is a float64, and
so is everything that it meets.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

K, ALPHA, BETA = np.float32(2), np.float32(0.5), np.float32(0.75)
HALF = 2


def specification(x):
    squares = np.pad(x * x, ((0, 0), (HALF, HALF)))
    sums = np.lib.stride_tricks.sliding_window_view(squares, 2 * HALF + 1, axis=1).sum(axis=-1)
    return x * (K + ALPHA * sums) ** -BETA


@cuda.jit
def lrn(x, y):
    index = cuda.grid(1)
    if index >= x.size:
        return
    row = index // x.shape[1]
    i = index % x.shape[1]
    ...


if __name__ == "__main__":
    rows = [numbers(1, 1), numbers(3, 2), numbers(5, 13), numbers(4, 64)]
    mark(lrn, specification, [(x,) for x in rows], goal=Goal(coalescing=0.8))
