"""Max pooling on the host, all channels of three pixels at a time.

Replaces the loops of `layers/max_pool.py`, which has the formulas, shapes and names. Those look at
one channel after the other. Here the loop over channels is the inner one, and the compiler
vectorizes it. The same bits: among equals the first wins, a NaN wins.
"""

import numpy as np
from numba import njit

from layers.fast.host.threads import in_rows
from layers.fast.step import Step

WORTH_WAKING = 2**19
"""Elements above which several threads pool: with fewer, one is done before another is awake."""

# --- host


@njit(inline="always")
def larger_of(best, place, value, at):
    """The winner so far and its place, after looking at the value at `at`."""
    wins = (value > best) | (value != value)
    return (value if wins else best), (at if wins else place)


@njit(nogil=True, cache=True)
def max_pool_vectorized_forward_host(x, y, winner, size, stride):
    images, rows, columns, channels = y.shape
    height, width = x.shape[1:3]
    for n_p in range(images * rows):
        n, p = n_p // rows, n_p % rows
        pixels = x[n].reshape(-1, channels)
        down = min(size, height - p * stride)  # less where the window hangs over the edge
        for q in range(columns):
            across = min(size, width - q * stride)
            best, places = y[n, p, q], winner[n, p, q]
            # All channels at a time, of three pixels in a row, so that `best` is seldom read.
            # Where there are no three more the last one is looked at again, which changes nothing.
            for h in range(down):
                start = (p * stride + h) * width + q * stride
                last = start + across - 1
                for w in range(start, last + 1, 3):
                    w_1, w_2 = min(w + 1, last), min(w + 2, last)
                    at_0, at_1, at_2 = np.int32(w), np.int32(w_1), np.int32(w_2)
                    x_0, x_1, x_2 = pixels[at_0], pixels[at_1], pixels[at_2]
                    if h == 0 and w == start:
                        for c in range(channels):
                            value, place = larger_of(x_0[c], at_0, x_1[c], at_1)
                            best[c], places[c] = larger_of(value, place, x_2[c], at_2)
                    else:
                        for c in range(channels):
                            value, place = larger_of(best[c], places[c], x_0[c], at_0)
                            value, place = larger_of(value, place, x_1[c], at_1)
                            best[c], places[c] = larger_of(value, place, x_2[c], at_2)


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
        arrays = x, y, self.winner
        sizes = pool.kernel_size, pool.stride
        in_rows(max_pool_vectorized_forward_host, arrays, *sizes, least=WORTH_WAKING)
        return y

    def backward(self, dy):
        """dy (N, P, Q, C) -> dx (N, H, W, C)."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", self.x_shape)
        in_rows(max_pool_vectorized_backward_host, (dx, dy, self.winner), least=WORTH_WAKING)
        return dx
