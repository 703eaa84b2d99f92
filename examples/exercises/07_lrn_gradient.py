"""Exercise 7. The gradient of LRN: a window of outputs.

y[j] depends on x[i] in two ways: directly, if j = i, and through scale[j] for all j whose window
contains i. With scale as in exercise 6,

    dx[i] = dy[i] / scale[i] ** 0.75 - 0.75 * x[i] * total,
    total = sum of dy[j] * y[j] / scale[j], i - 2 <= j <= i + 2

where the second 0.75 is 2 * alpha * beta. Derive it once on paper. Then write the kernel: again a
thread owns one dx, and gathers from the windows that contain it. The window is symmetric, so those
are of the same five channels.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

BETA, TWO_ALPHA_BETA = np.float32(0.75), np.float32(0.75)
HALF = 2


def window_sums(values):
    padded = np.pad(values, ((0, 0), (HALF, HALF)))
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * HALF + 1, axis=1).sum(axis=-1)


def specification(x, y, scale, dy):
    return dy * scale**-BETA - TWO_ALPHA_BETA * x * window_sums(dy * y / scale)


@cuda.jit
def lrn_gradient(x, y, scale, dy, dx):
    index = cuda.grid(1)
    if index >= x.size:
        return
    row = index // x.shape[1]
    i = index % x.shape[1]
    ...


def after_forward(*shape):
    """x, y, scale as exercise 6 leaves them, and some dL/dy."""
    x = numbers(*shape)
    scale = np.float32(2) + np.float32(0.5) * window_sums(x * x)
    return x, x * scale**-BETA, scale, numbers(*shape, seed=1)


if __name__ == "__main__":
    shapes = (1, 1), (3, 2), (5, 13), (4, 64)
    inputs = [after_forward(*shape) for shape in shapes]
    mark(lrn_gradient, specification, inputs, goal=Goal(coalescing=0.8))
