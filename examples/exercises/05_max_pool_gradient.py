"""Exercise 5. The gradient of max pooling: gather, don't scatter.

Each window passes its dL/dy on to the one pixel that was its maximum, the winner. NumPy scatters:
for each window, it adds to the winner. On a GPU that is a race, as two windows that overlap can
have one winner, and two threads would add to one place at once.

So turn it around. A thread owns one pixel (n, h, w, c) of dx, looks at all windows that contain it,
and adds up the dy of those that it has won. winner[n, p, q, c] is h * width + w of the winner.
Which p contain row h? Those with 2p <= h <= 2p + 2, and of these the ones that exist.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

SIZE, STRIDE = 3, 2


def specification(dy, winner, height, width):
    dx = np.zeros((dy.shape[0], height * width, dy.shape[3]), dy.dtype)
    n, _, _, c = np.indices(dy.shape)
    np.add.at(dx, (n, winner, c), dy)
    return dx.reshape(dy.shape[0], height, width, dy.shape[3])


@cuda.jit
def max_pool_gradient(dy, winner, height, width, dx):
    index = cuda.grid(1)
    if index >= dx.size:
        return
    c = index % dx.shape[3]
    w = index // dx.shape[3] % width
    h = index // (dx.shape[3] * width) % height
    n = index // (dx.shape[3] * width * height)
    total = dx.dtype.type(0)
    for p in range(...):
        for q in range(...):
            ...
    dx[n, h, w, c] = total


def windows_of(n, height, width, channels):
    """dL/dy and a winner in each window, as max pooling would leave them."""
    shape = n, (height - SIZE) // STRIDE + 1, (width - SIZE) // STRIDE + 1, channels
    _, p, q, _ = np.indices(shape)
    rows, columns = np.random.default_rng(n).integers(0, SIZE, (2, *shape))
    winner = (STRIDE * p + rows) * width + STRIDE * q + columns
    return numbers(*shape), winner.astype(np.int32), height, width


if __name__ == "__main__":
    inputs = [windows_of(1, 5, 5, 1), windows_of(2, 8, 6, 5), windows_of(1, 7, 9, 32)]
    mark(max_pool_gradient, specification, inputs, goal=Goal(coalescing=0.8, bytes=3))
