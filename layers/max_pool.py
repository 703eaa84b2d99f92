"""Max pooling; windows overlap where the stride is smaller than the window (paper §3.4: 3 and 2).

    y[n, p, q, c] = max over r, s < K of x[n, p·stride + r, q·stride + s, c]

The derivative passes each dL/dy to the one input that was the maximum, the winner; among equals
the first one, row by row. Windows overlap, so an input can win up to ⌈K / stride⌉² times:

    dL/dx[n, h, w, c] = Σ over the windows (p, q) that contain (h, w) and that (h, w) won
                        of dL/dy[n, p, q, c]

Forward stores the winner of each window (its place h·W + w). On a GPU backward gathers: each input
checks the windows around it and adds up those that it won. Scattering, where each window adds to
its winner, would let two threads write to one place at once. On the host one thread owns an image,
so it can scatter, which is shorter. Both add in the same order, row by row: the same bits.

Shapes: x, dx (N, H, W, C); y, dy, winner (N, P, Q, C) with P = (H − K) // stride + 1, Q likewise;
rows and columns beyond the last whole window are not read (AlexNet has none). With `ceil`, as in
the 2012 code, the division rounds up: the last windows hang over the right and bottom edge and hold
only what is inside (24 pixels, windows 3/2: 12 outputs instead of 11). float32 or float64. A NaN in
a window wins, so that it reaches the loss and is noticed.
"""

import math

from numba import njit, prange

from layers.device import cuda, grid_for
from layers.layer import Layer

# --- host


@njit(parallel=True, cache=True)
def max_pool_forward_host(x, y, winner, size, stride):
    for n in prange(y.shape[0]):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                for c in range(y.shape[3]):
                    best = x[n, p * stride, q * stride, c]
                    place = p * stride * x.shape[2] + q * stride
                    for h in range(p * stride, min(p * stride + size, x.shape[1])):
                        for w in range(q * stride, min(q * stride + size, x.shape[2])):
                            value = x[n, h, w, c]
                            if value > best or value != value:
                                best = value
                                place = h * x.shape[2] + w
                    y[n, p, q, c] = best
                    winner[n, p, q, c] = place


@njit(parallel=True, cache=True)
def max_pool_backward_host(dy, winner, dx):
    for n in prange(dx.shape[0]):
        dx[n] = 0
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    h, w = divmod(winner[n, p, q, c], dx.shape[2])
                    dx[n, h, w, c] += dy[n, p, q, c]


# --- kernels
#
# Forward: one thread per output (n, p, q, c), c fastest. A warp reads 32 neighbouring channels of
# one pixel at a time: coalesced. Each input is read by up to ⌈K / stride⌉² threads, mostly from
# the cache.
#
# Backward: one thread per input (n, h, w, c), c fastest. It visits the windows that contain it:
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
    best = x[n, p * stride, q * stride, c]
    place = p * stride * x.shape[2] + q * stride
    for h in range(p * stride, min(p * stride + size, x.shape[1])):
        for w in range(q * stride, min(q * stride + size, x.shape[2])):
            value = x[n, h, w, c]
            if value > best or value != value:
                best = value
                place = h * x.shape[2] + w
    y[n, p, q, c] = best
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
    total = dx.dtype.type(0)
    for p in range(max(0, (h - size) // stride + 1), min(dy.shape[1], h // stride + 1)):
        for q in range(max(0, (w - size) // stride + 1), min(dy.shape[2], w // stride + 1)):
            if winner[n, p, q, c] == h * dx.shape[2] + w:
                total += dy[n, p, q, c]
    dx[n, h, w, c] = total


# --- layer


class Pool2D(Layer):
    """What all pooling layers share: square windows of kernel_size, `stride` apart, and shapes.

    ceil: windows may hang over the right and bottom edge. ValueError if a size is below 1 or an
    image is smaller than the window.
    """

    def __init__(self, kernel_size=3, stride=2, ceil=False):
        super().__init__()
        if kernel_size < 1 or stride < 1:
            raise ValueError(
                f"{type(self).__name__}: kernel_size and stride must be at least 1, not "
                f"{kernel_size}, {stride}"
            )
        self.kernel_size, self.stride, self.ceil = kernel_size, stride, ceil

    def output_shape(self, input_shape):
        """(H, W, C) -> (P, Q, C)."""
        if len(input_shape) != 3 or min(input_shape[:2]) < self.kernel_size:
            raise ValueError(
                f"{self.name}: an image of shape {input_shape} has no whole window of "
                f"{self.kernel_size}x{self.kernel_size}; expected (H, W, C)"
            )
        *sides, channels = input_shape
        steps = [(side - self.kernel_size) / self.stride for side in sides]
        if self.ceil:  # but every window begins inside the image
            last = [(side - 1) // self.stride for side in sides]
            steps = [min(math.ceil(step), most) for step, most in zip(steps, last, strict=True)]
        return *(int(step) + 1 for step in steps), channels


class MaxPool2D(Pool2D):
    """Maximum over windows of kernel_size × kernel_size, `stride` apart (paper §3.4)."""

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, C)."""
        x = self.check_input(x)
        self.x_shape = x.shape
        shape = (x.shape[0], *self.output_shape(x.shape[1:]))
        self.y = y = self.buffer("y", shape)
        self.winner = winner = self.buffer("winner", shape, "int32")
        window = self.kernel_size, self.stride
        if self.device.is_cuda:
            max_pool_forward_kernel[grid_for(y.size)](x, y, winner, *window)
        else:
            max_pool_forward_host(x, y, winner, *window)
        return y

    def backward(self, dy):
        """dy (N, P, Q, C) -> dx (N, H, W, C)."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", self.x_shape)
        window = self.kernel_size, self.stride
        if self.device.is_cuda:
            max_pool_backward_kernel[grid_for(dx.size)](dy, self.winner, dx, *window)
        else:
            max_pool_backward_host(dy, self.winner, dx)
        return dx
