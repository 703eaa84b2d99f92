"""Locally connected layer: a convolution whose filters are not shared between places.

    y[n, p, q, k] = b[p, q, k] + Σ_{r, s, c} x[n, h, w, c] · w[p, q, k, r, s, c]

        with  h = p·stride + r − padding   and   w = q·stride + s − padding

A convolution (`conv.py`) has the same w and b at all (p, q), and its dL/dw adds up what all places
contribute. Here each place keeps its own: a weight is used once an image, not P·Q times. At one
place the layer is fully connected (`linear.py`) with the window, unfolded to a row, as its input:

    u[p, q, n, (r, s, c)] = x[n, h, w, c]                  0 outside the image
    y[:, p, q] = u[p, q] · w[p, q]ᵀ + b[p, q]

    dL/dw[p, q] = dL/dy[:, p, q]ᵀ · u[p, q]                dL/db = Σ_n dL/dy[n]
    dL/du[p, q] = dL/dy[:, p, q] · w[p, q]
    dL/dx[n, h, w, c] = Σ dL/du[p, q, n, (r, s, c)] over the windows that hold (h, w), at (r, s)

The products are the vendor's library's, one for each place; only u and its reverse have loops. The
paper's nets for CIFAR-10 (§3.3) have two such layers, AlexNet has none. Shapes: x (N, H, W, C),
w (P, Q, K, R, S, C) with R = S, b (P, Q, K), y (N, P, Q, K); float32 or float64.
"""

import numpy as np
from numba import njit, prange

from layers.device import cuda, grid_for
from layers.layer import Layer, Parameter

# --- host
#
# u, du: (P, Q, N, R, S, C).


@njit(parallel=True, cache=True)
def unfold_host(x, u, stride, padding):
    for p in prange(u.shape[0]):
        for q, n, r, s in np.ndindex(u.shape[1:5]):
            h, column = p * stride + r - padding, q * stride + s - padding
            inside = 0 <= h < x.shape[1] and 0 <= column < x.shape[2]
            for c in range(x.shape[3]):
                u[p, q, n, r, s, c] = x[n, h, column, c] if inside else 0


@njit(parallel=True, cache=True)
def fold_host(du, dx, stride, padding):
    # Scatters: each window adds to its pixels. One thread owns image n.
    for n in prange(dx.shape[0]):
        dx[n] = 0
        for p, q in np.ndindex(du.shape[:2]):
            for r, s in np.ndindex(du.shape[3:5]):
                h, column = p * stride + r - padding, q * stride + s - padding
                if 0 <= h < dx.shape[1] and 0 <= column < dx.shape[2]:
                    for c in range(dx.shape[3]):
                        dx[n, h, column, c] += du[p, q, n, r, s, c]


# --- kernels
#
# One thread per element of u, or of dx, c fastest: coalesced. fold gathers from the windows that
# hold its pixel, in a fixed order: no races, no atomics, deterministic.


@cuda.jit
def unfold_kernel(x, u, stride, padding):
    index = cuda.grid(1)
    if index >= u.size:
        return
    c = index % u.shape[5]
    s = index // u.shape[5] % u.shape[4]
    r = index // (u.shape[5] * u.shape[4]) % u.shape[3]
    window = index // (u.shape[5] * u.shape[4] * u.shape[3])
    n = window % u.shape[2]
    q = window // u.shape[2] % u.shape[1]
    p = window // (u.shape[2] * u.shape[1])
    h, column = p * stride + r - padding, q * stride + s - padding
    value = u.dtype.type(0)
    if 0 <= h < x.shape[1] and 0 <= column < x.shape[2]:
        value = x[n, h, column, c]
    u[p, q, n, r, s, c] = value


@cuda.jit
def fold_kernel(du, dx, stride, padding):
    index = cuda.grid(1)
    if index >= dx.size:
        return
    c = index % dx.shape[3]
    left = index // dx.shape[3] % dx.shape[2] + padding
    top = index // (dx.shape[3] * dx.shape[2]) % dx.shape[1] + padding
    n = index // (dx.shape[3] * dx.shape[2] * dx.shape[1])
    total = dx.dtype.type(0)
    for p in range(max(0, (top - du.shape[3]) // stride + 1), min(du.shape[0], top // stride + 1)):
        r = top - p * stride
        for q in range(
            max(0, (left - du.shape[4]) // stride + 1), min(du.shape[1], left // stride + 1)
        ):
            total += du[p, q, n, r, left - q * stride, c]
    dx[n, top - padding, left - padding, c] = total


# --- layer


class LocallyConnected2D(Layer):
    """A convolution with filters of its own at each place (the 2012 code's "local" layer).

    input_shape (H, W, C) of an image, which decides how many weights there are; kernel_size R = S,
    stride and padding in pixels. Parameters `weight` (P, Q, K, R, S, C), `bias` (P, Q, K), zero
    until `tinyconv.initialize` draws them. ValueError names what does not fit.
    """

    def __init__(self, input_shape, out_channels, kernel_size, stride=1, padding=0):
        super().__init__()
        height, width, channels = self.input_shape = tuple(input_shape)
        window = min(height, width) + 2 * padding - kernel_size
        if min(channels, out_channels, kernel_size, stride) < 1 or min(padding, window) < 0:
            raise ValueError(
                f"LocallyConnected2D: {out_channels} filters of {kernel_size}x{kernel_size}, "
                f"stride {stride}, padding {padding} do not fit an image of shape {input_shape}"
            )
        self.stride, self.padding = stride, padding
        rows, columns = (
            (side + 2 * padding - kernel_size) // stride + 1 for side in (height, width)
        )
        places = rows, columns, out_channels
        self.weight = Parameter("weight", (*places, kernel_size, kernel_size, channels))
        self.bias = Parameter("bias", places)

    def parameters(self):
        """weight, bias."""
        return [self.weight, self.bias]

    def output_shape(self, input_shape):
        """(H, W, C) -> (P, Q, K)."""
        if tuple(input_shape) != self.input_shape:
            raise ValueError(
                f"{self.name}: an image of shape {input_shape} does not fit filters that belong to "
                f"the places of {self.input_shape}"
            )
        return self.bias.value.shape

    def multiply_adds(self, input_shape):
        """P · Q · K · R · S · C: each weight once."""
        return self.weight.value.size

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        x = self.check_input(x)
        rows, columns, _, *window = self.weight.value.shape
        self.u = u = self.buffer("u", (rows, columns, len(x), *window))
        self.y = y = self.buffer("y", (len(x), *self.bias.value.shape))
        self.x_shape = x.shape
        if self.device.is_cuda:
            unfold_kernel[grid_for(u.size)](x, u, self.stride, self.padding)
        else:
            unfold_host(x, u, self.stride, self.padding)
        matmul = self.device.xp.matmul
        matmul(as_rows(u), as_rows(self.weight.value).swapaxes(2, 3), out=by_place(y))
        y += self.bias.value
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C)."""
        dy, w, dw = by_place(self.check_gradient(dy)), self.weight.value, self.weight.grad
        du, dx = self.buffer("du", self.u.shape), self.buffer("dx", self.x_shape)
        matmul = self.device.xp.matmul
        matmul(dy.swapaxes(2, 3), as_rows(self.u), out=as_rows(dw))
        matmul(dy, as_rows(w), out=as_rows(du))
        dy.sum(axis=2, out=self.bias.grad)
        if self.device.is_cuda:
            fold_kernel[grid_for(dx.size)](du, dx, self.stride, self.padding)
        else:
            fold_host(du, dx, self.stride, self.padding)
        return dx


def as_rows(windows):
    """(P, Q, N or K, R, S, C) -> (P, Q, N or K, R·S·C): the same memory."""
    return windows.reshape(*windows.shape[:3], -1)


def by_place(y):
    """(N, P, Q, K) -> (P, Q, N, K): the same memory."""
    return y.transpose(1, 2, 0, 3)
