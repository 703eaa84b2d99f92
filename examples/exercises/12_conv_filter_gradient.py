"""Exercise 12. The gradient of the filters: a sum over all images and pixels.

    dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p + r - 1, q + s - 1, c]

Here the sum is long, and the outputs are few: a thread owns one weight and walks through the whole
batch. It needs no atomics, and adds in the same order in every run, so that it gives the same bits.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

PAD = 1


def windows_of(x, size):
    """(N, P, Q, C, R, S): the window around each pixel, with zeros outside of the image."""
    padded = np.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))


def specification(x, dy):
    return np.einsum("npqcrs,npqk->krsc", windows_of(x, 3), dy)


@cuda.jit
def conv_filter_gradient(x, dy, dw):
    index = cuda.grid(1)
    if index >= dw.size:
        return
    c = index % dw.shape[3]
    s = index // dw.shape[3] % dw.shape[2]
    r = index // (dw.shape[3] * dw.shape[2]) % dw.shape[1]
    k = index // (dw.shape[3] * dw.shape[2] * dw.shape[1])
    ...


if __name__ == "__main__":
    inputs = [
        (numbers(n, h, w, c), numbers(n, h, w, k))
        for n, h, w, c, k in ((1, 1, 1, 1, 1), (2, 3, 4, 2, 5), (2, 3, 4, 8, 2))
    ]
    mark(conv_filter_gradient, specification, inputs, goal=Goal(coalescing=0.6))
