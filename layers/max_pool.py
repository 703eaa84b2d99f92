"""Max pooling, overlapping where the stride is smaller than the window (paper §3.4: 3 and 2).

    y[n, p, q, c] = max over r, s < K of x[n, p·stride + r, q·stride + s, c]

The derivative hands each dL/dy to the one input that was the maximum, its winner; among equals
the first one, row by row. Windows overlap, so an input can win up to ⌈K / stride⌉² times:

    dL/dx[n, h, w, c] = Σ over the windows (p, q) that hold (h, w) and that (h, w) won
                        of dL/dy[n, p, q, c]

Forward notes the winner of each window (its place h·W + w). On a GPU backward gathers: each input
asks the windows around it "was it me?" and adds up. The other way round, each window adding to its
winner, would have two windows write to one place at once; on the host, where one thread goes
through all windows of an image, nothing happens at once, and it is the shorter way. Both add in the
same order, window by window and row by row: the same bits.

Shapes: x, dx (N, H, W, C); y, dy (N, P, Q, C) with P = (H − K) // stride + 1, Q likewise; rows
and columns beyond the last whole window are not looked at (AlexNet has none). float32 or
float64, in kernels bfloat16 as well.
A NaN in a window wins it, so that it is seen at the end and not lost.
"""

import numpy as np
from numba import njit, prange

from layers.device import cuda, grid_for
from layers.fast.bfloat16 import narrow, wide_type, widen
from layers.fast.host.threads import threads_for
from layers.layer import Layer

# --- host


@njit(inline="always")
def larger_of(best, place, value, at):
    """The winner so far and its place, after looking at the value at `at`."""
    wins = (value > best) | (value != value)
    return (value if wins else best), (at if wins else place)


@njit(parallel=True, cache=True)
def max_pool_forward_host(x, y, winner, size, stride):
    images, rows, columns, channels = y.shape
    width, last = x.shape[2], size * size - 1
    for n_p in prange(images * rows):
        n, p = n_p // rows, n_p % rows
        pixels = x[n].reshape(-1, channels)
        for q in range(columns):
            best, places = y[n, p, q], winner[n, p, q]
            corner = p * stride * width + q * stride
            # All channels at a time, of three pixels of the window, so that `best` is seldom read.
            # Where it has no three more the last one is looked at again, which changes nothing.
            for k in range(0, last + 1, 3):
                k_1, k_2 = min(k + 1, last), min(k + 2, last)
                at_0 = np.int32(corner + k // size * width + k % size)
                at_1 = np.int32(corner + k_1 // size * width + k_1 % size)
                at_2 = np.int32(corner + k_2 // size * width + k_2 % size)
                x_0, x_1, x_2 = pixels[at_0], pixels[at_1], pixels[at_2]
                if k == 0:
                    for c in range(channels):
                        value, place = larger_of(x_0[c], at_0, x_1[c], at_1)
                        best[c], places[c] = larger_of(value, place, x_2[c], at_2)
                else:
                    for c in range(channels):
                        value, place = larger_of(best[c], places[c], x_0[c], at_0)
                        value, place = larger_of(value, place, x_1[c], at_1)
                        best[c], places[c] = larger_of(value, place, x_2[c], at_2)


@njit(parallel=True, cache=True)
def max_pool_backward_host(dy, winner, dx):
    images, rows, columns, channels = dy.shape
    for n in prange(images):
        dx[n] = 0
        image = dx[n].reshape(-1)
        for p in range(rows):
            for q in range(columns):
                gradients, places = dy[n, p, q], winner[n, p, q]
                for c in range(channels):
                    # Unsigned, since Numba has to look whether any other index is negative.
                    image[np.uintp(places[c]) * np.uintp(channels) + np.uintp(c)] += gradients[c]


# --- kernels
#
# Forward: one thread per output (n, p, q, c), c fastest. A warp reads 32 neighbouring channels of
# one pixel at a time: coalesced. Each input is read by up to ⌈K / stride⌉² threads, mostly from
# the cache.
#
# Backward: one thread per input (n, h, w, c), c fastest. It looks at the windows that hold it:
# those p with p·stride <= h <= p·stride + K − 1. One owner per dx, added up in a fixed order: no
# races and no atomics, deterministic.


@cuda.jit
def max_pool_forward_kernel(x, y, winner, size, stride):
    index = cuda.grid(1)
    if index >= y.size:
        return
    c = index % y.shape[3]
    q = index // y.shape[3] % y.shape[2]
    p = index // (y.shape[3] * y.shape[2]) % y.shape[1]
    n = index // (y.shape[3] * y.shape[2] * y.shape[1])
    best = widen(x[n, p * stride, q * stride, c])
    place = p * stride * x.shape[2] + q * stride
    for h in range(p * stride, p * stride + size):
        for w in range(q * stride, q * stride + size):
            value = widen(x[n, h, w, c])
            if value > best or value != value:
                best = value
                place = h * x.shape[2] + w
    y[n, p, q, c] = narrow(best, y)
    winner[n, p, q, c] = place


@cuda.jit
def max_pool_backward_kernel(dy, winner, dx, size, stride):
    index = cuda.grid(1)
    if index >= dx.size:
        return
    c = index % dx.shape[3]
    w = index // dx.shape[3] % dx.shape[2]
    h = index // (dx.shape[3] * dx.shape[2]) % dx.shape[1]
    n = index // (dx.shape[3] * dx.shape[2] * dx.shape[1])
    total = wide_type(dx).type(0)
    for p in range(max(0, (h - size) // stride + 1), min(dy.shape[1], h // stride + 1)):
        for q in range(max(0, (w - size) // stride + 1), min(dy.shape[2], w // stride + 1)):
            if winner[n, p, q, c] == h * dx.shape[2] + w:
                total += widen(dy[n, p, q, c])
    dx[n, h, w, c] = narrow(total, dx)


# --- layer


class MaxPool2D(Layer):
    """Maximum over windows of kernel_size × kernel_size, `stride` apart (paper §3.4).

    ValueError if a size is below 1 or an image is smaller than the window.
    """

    def __init__(self, kernel_size=3, stride=2):
        super().__init__()
        if kernel_size < 1 or stride < 1:
            raise ValueError(
                f"MaxPool2D: kernel_size and stride must be at least 1, not {kernel_size}, {stride}"
            )
        self.kernel_size, self.stride = kernel_size, stride

    def output_shape(self, input_shape):
        """(H, W, C) -> (P, Q, C)."""
        if len(input_shape) != 3 or min(input_shape[:2]) < self.kernel_size:
            raise ValueError(
                f"{self.name}: an image of shape {input_shape} has no whole window of "
                f"{self.kernel_size}x{self.kernel_size}; expected (H, W, C)"
            )
        height, width, channels = input_shape
        return (
            (height - self.kernel_size) // self.stride + 1,
            (width - self.kernel_size) // self.stride + 1,
            channels,
        )

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, C)."""
        x = self.check_input(x)
        self.x_shape = x.shape
        shape = (x.shape[0], *self.output_shape(x.shape[1:]))
        self.y = y = self.buffer("y", shape, self.storage)
        self.winner = self.buffer("winner", shape, "int32")
        if self.device.is_cuda:
            max_pool_forward_kernel[grid_for(y.size)](
                x, y, self.winner, self.kernel_size, self.stride
            )
        else:
            with threads_for(x.size):
                max_pool_forward_host(x, y, self.winner, self.kernel_size, self.stride)
        return y

    def backward(self, dy):
        """dy (N, P, Q, C) -> dx (N, H, W, C)."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", self.x_shape, self.storage)
        if self.device.is_cuda:
            max_pool_backward_kernel[grid_for(dx.size)](
                dy, self.winner, dx, self.kernel_size, self.stride
            )
        else:
            with threads_for(dx.size):
                max_pool_backward_host(dy, self.winner, dx)
        return dx
