"""Exercise 4. Max pooling: a thread for each output.

y[n, p, q, c] is the largest number in a window of 3x3 pixels, which begins at row 2p and column 2q.
The windows overlap, so several threads read the same pixel; that is fine. What no two threads may
do is write the same place: each output has one owner.

The index arithmetic is done. Find the maximum.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

SIZE, STRIDE = 3, 2


def specification(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (SIZE, SIZE), axis=(1, 2))
    return windows[:, ::STRIDE, ::STRIDE].max(axis=(-1, -2))


@cuda.jit
def max_pool(x, y):
    index = cuda.grid(1)
    if index >= y.size:
        return
    c = index % y.shape[3]
    q = index // y.shape[3] % y.shape[2]
    p = index // (y.shape[3] * y.shape[2]) % y.shape[1]
    n = index // (y.shape[3] * y.shape[2] * y.shape[1])
    best = ...
    ...
    y[n, p, q, c] = best


if __name__ == "__main__":
    below_zero = -1 - np.abs(numbers(1, 5, 3, 2))
    images = [numbers(1, 3, 3, 1), numbers(2, 7, 9, 5), below_zero, numbers(1, 9, 11, 32)]
    mark(max_pool, specification, [(x,) for x in images], goal=Goal(coalescing=1))
