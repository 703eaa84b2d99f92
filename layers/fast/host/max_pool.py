"""Max pooling on the host, a vector of channels at a time.

Replaces the loops of `layers/max_pool.py`, which has the formulas, shapes and names. Those look at
one channel after the other. Here the largest values so far and their places stay in two registers
(`vectors.py`) while the window's pixels are read. The last vector of a pixel ends with its last
channel; pixels of fewer channels than a vector has numbers are left to the book's loop. The same
bits: among equals the first wins, a NaN wins.
"""

import numpy as np
from numba import njit

from layers.fast.host.threads import in_rows
from layers.fast.host.vectors import WIDE, all_at, larger, load, store
from layers.fast.step import Step
from layers.max_pool import max_pool_forward_host

WORTH_WAKING = 2**19
"""Elements above which several threads pool: with fewer, one is done before another is awake."""

# --- host


@njit(nogil=True, cache=True)
def max_pool_vectorized_forward_host(x, y, winner, size, stride):
    images, rows, columns, channels = y.shape
    height, width = x.shape[1:3]
    lanes = WIDE // x.itemsize
    for out in range(images * rows * columns):
        n, p, q = out // columns // rows, out // columns % rows, out % columns
        down = min(size, height - p * stride)  # less where the window hangs over the edge
        across = min(size, width - q * stride)
        corner = p * stride * width + q * stride
        for start in range(0, channels, lanes):
            low = min(start, channels - lanes)
            image = n * height * width * channels + low
            best = load(x, image + corner * channels)
            places = all_at(corner, best)
            for h in range(down):
                for at in range(corner + h * width, corner + h * width + across):
                    value = load(x, image + at * channels)
                    best, places = larger(best, places, value, at)
            store(best, y, out * channels + low)
            store(places, winner, out * channels + low)


@njit(nogil=True, cache=True)
def max_pool_vectorized_backward_host(dx, dy, winner):
    images, rows, columns, channels = dy.shape
    for n in range(images):
        dx[n] = 0
        image = dx[n].reshape(-1)
        for p in range(rows):
            for q in range(columns):
                gradients, places = dy[n, p, q], winner[n, p, q]
                for c in range(channels):
                    # Unsigned, since Numba has to look whether any other index is negative.
                    image[np.uintp(places[c]) * np.uintp(channels) + np.uintp(c)] += gradients[c]


# --- step


class MaxPoolVectorized(Step):
    """A MaxPool2D on the host by the loops above."""

    short = "vectorized"
    computed_by = "max_pool_vectorized_forward_host, max_pool_vectorized_backward_host"

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, C)."""
        (pool,) = self.layers
        x = self.check_input(x)
        self.x_shape = x.shape
        y = self.output((x.shape[0], *pool.output_shape(x.shape[1:])))
        self.winner = self.buffer("winner", y.shape, "int32")
        arrays, sizes = (x, y, self.winner), (pool.kernel_size, pool.stride)
        if x.shape[3] < WIDE // self.dtype.itemsize:  # fewer channels than numbers in a vector
            max_pool_forward_host(*arrays, *sizes)
        else:
            in_rows(max_pool_vectorized_forward_host, arrays, *sizes, least=WORTH_WAKING)
        return y

    def backward(self, dy):
        """dy (N, P, Q, C) -> dx (N, H, W, C)."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", self.x_shape)
        in_rows(max_pool_vectorized_backward_host, (dx, dy, self.winner), least=WORTH_WAKING)
        return dx
