"""Exercise 10. Convolution: a thread for each output.

    y[n, p, q, k] = b[k] + sum over r, s, c of x[n, p + r - 1, q + s - 1, c] * w[k, r, s, c]

Filters are 3x3, the image is padded by one row and column of zeros on each side, so y has the size
of x. The zeros are not stored: where a window sticks out of the image, skip the term. Beware of -1,
which is the last row in Python and someone else's memory on a GPU.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import mark, numbers

PAD = 1


def windows_of(x, size):
    """(N, P, Q, C, R, S): the window around each pixel, with zeros outside of the image."""
    padded = np.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))


def specification(x, w, b):
    return np.einsum("npqcrs,krsc->npqk", windows_of(x, w.shape[1]), w) + b


@cuda.jit
def conv(x, w, b, y):
    index = cuda.grid(1)
    if index >= y.size:
        return
    k = index % y.shape[3]
    q = index // y.shape[3] % y.shape[2]
    p = index // (y.shape[3] * y.shape[2]) % y.shape[1]
    n = index // (y.shape[3] * y.shape[2] * y.shape[1])
    total = b[k]
    ...
    y[n, p, q, k] = total


if __name__ == "__main__":
    inputs = [
        (numbers(n, h, w, c), numbers(k, 3, 3, c), numbers(k))
        for n, h, w, c, k in ((1, 1, 1, 1, 1), (2, 3, 4, 2, 5), (1, 4, 5, 3, 8))
    ]
    mark(conv, specification, inputs)
