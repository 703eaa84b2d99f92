"""Exercise 11. The gradient of the image: the same windows, seen from the pixel.

A pixel x[n, h, w, c] went into the outputs of all windows that contain it, each time with another
weight. Its gradient gathers from them:

    dx[n, h, w, c] = sum over r, s, k of dy[n, h - r + 1, w - s + 1, k] * w[k, r, s, c]

for the outputs that exist. NumPy turns the filters by 180 degrees and convolves once more. Compare
the indices with exercise 10: what was p + r - 1 is now solved for p.
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


def specification(dy, w):
    return np.einsum("nhwkrs,krsc->nhwc", windows_of(dy, w.shape[1]), w[:, ::-1, ::-1])


@cuda.jit
def conv_input_gradient(dy, weight, dx):
    index = cuda.grid(1)
    if index >= dx.size:
        return
    c = index % dx.shape[3]
    w = index // dx.shape[3] % dx.shape[2]
    h = index // (dx.shape[3] * dx.shape[2]) % dx.shape[1]
    n = index // (dx.shape[3] * dx.shape[2] * dx.shape[1])
    ...


if __name__ == "__main__":
    inputs = [
        (numbers(n, h, w, k), numbers(k, 3, 3, c))
        for n, h, w, c, k in ((1, 1, 1, 1, 1), (2, 3, 4, 2, 5), (1, 4, 5, 8, 3))
    ]
    mark(conv_input_gradient, specification, inputs, goal=Goal(coalescing=0.7))
