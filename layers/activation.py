"""Rectified linear units and tanh (paper §3.1).

    ReLU   y = max(x, 0)        dL/dx = dL/dy where x > 0, else 0   (at x = 0 we take 0)
    Tanh   y = tanh(x)          dL/dx = dL/dy · (1 − y²)

Any shape; float32 or float64. Both derivatives need only the output: y > 0 exactly where x > 0.

The paper's figure 1 compares the two: a net with ReLU reaches 25 % training error on CIFAR-10
about six times faster, because max(x, 0) does not saturate: its slope stays 1 however large x is.
"""

import math

from numba import njit, prange

from layers.device import cuda, grid_for
from layers.layer import Layer

# --- host


@njit(parallel=True, cache=True)
def relu_forward_host(x, y):
    for i in prange(x.size):
        y[i] = x[i] if not x[i] <= 0 else x.dtype.type(0)


@njit(parallel=True, cache=True)
def relu_backward_host(y, dy, dx):
    for i in prange(y.size):
        dx[i] = dy[i] if not y[i] <= 0 else y.dtype.type(0)


@njit(parallel=True, cache=True)
def tanh_forward_host(x, y):
    for i in prange(x.size):
        y[i] = math.tanh(x[i])


@njit(parallel=True, cache=True)
def tanh_backward_host(y, dy, dx):
    for i in prange(y.size):
        dx[i] = dy[i] * (y.dtype.type(1) - y[i] * y[i])


# --- kernels
#
# All four: one thread per element of a flat array, THREADS threads a block. Thread i reads and
# writes element i, so the 32 threads of a warp touch 32 neighbouring elements: fully coalesced.
# Every element has one owner: no races, deterministic.
#
# "not x <= 0" instead of "x > 0": comparisons with a NaN are false, so a NaN passes through instead
# of silently becoming 0.


@cuda.jit
def relu_forward_kernel(x, y):
    i = cuda.grid(1)
    if i >= x.size:
        return
    y[i] = x[i] if not x[i] <= 0 else x.dtype.type(0)


@cuda.jit
def relu_backward_kernel(y, dy, dx):
    i = cuda.grid(1)
    if i >= y.size:
        return
    dx[i] = dy[i] if not y[i] <= 0 else y.dtype.type(0)


@cuda.jit
def tanh_forward_kernel(x, y):
    i = cuda.grid(1)
    if i >= x.size:
        return
    y[i] = math.tanh(x[i])


@cuda.jit
def tanh_backward_kernel(y, dy, dx):
    i = cuda.grid(1)
    if i >= y.size:
        return
    dx[i] = dy[i] * (y.dtype.type(1) - y[i] * y[i])


# --- layers


class ReLU(Layer):
    """y = max(x, 0), element by element; any shape (paper §3.1)."""

    def forward(self, x, train=True):
        """x (N, ...) -> y of the same shape."""
        x = self.check_input(x)
        self.y = y = self.buffer("y", x.shape)
        if self.device.is_cuda:
            relu_forward_kernel[grid_for(x.size)](x.reshape(-1), y.reshape(-1))
        else:
            relu_forward_host(x.reshape(-1), y.reshape(-1))
        return y

    def backward(self, dy):
        """dy -> dx, both of x's shape."""
        y, dy = self.y, self.check_gradient(dy)
        dx = self.buffer("dx", y.shape)
        if self.device.is_cuda:
            relu_backward_kernel[grid_for(y.size)](y.reshape(-1), dy.reshape(-1), dx.reshape(-1))
        else:
            relu_backward_host(y.reshape(-1), dy.reshape(-1), dx.reshape(-1))
        return dx


class Tanh(Layer):
    """y = tanh(x), element by element; any shape (what paper §3.1 argues against)."""

    def forward(self, x, train=True):
        """x (N, ...) -> y of the same shape."""
        x = self.check_input(x)
        self.y = y = self.buffer("y", x.shape)
        if self.device.is_cuda:
            tanh_forward_kernel[grid_for(x.size)](x.reshape(-1), y.reshape(-1))
        else:
            tanh_forward_host(x.reshape(-1), y.reshape(-1))
        return y

    def backward(self, dy):
        """dy -> dx, both of x's shape."""
        y, dy = self.y, self.check_gradient(dy)
        dx = self.buffer("dx", y.shape)
        if self.device.is_cuda:
            tanh_backward_kernel[grid_for(y.size)](y.reshape(-1), dy.reshape(-1), dx.reshape(-1))
        else:
            tanh_backward_host(y.reshape(-1), dy.reshape(-1), dx.reshape(-1))
        return dx
