"""Local response normalization across channels (paper §3.3).

Each activation is divided by a sum over the squares of its neighbours in the channel direction,
so that a filter which answers strongly damps the filters next to it at the same place:

    s[i] = k + α Σ_j a[j]²          j from max(lo, i − n//2) to min(hi, i + n//2)
    b[i] = a[i] · s[i]^−β

    dL/da[j] = dL/db[j] · s[j]^−β  −  2 α β a[j] Σ_i dL/db[i] · b[i] / s[i]

The second sum runs over the channels i whose window holds j, which for an odd n are again
j − n//2 … j + n//2, cut at the same ends. That is why an even n is refused: its window is
lopsided, and the window that looks back would be another one.

Shapes: x, y, dy, dx (N, H, W, C) or any (N, ..., C); channels are last, so a window is a run of
neighbours in memory. float32 or float64; in kernels x, y, dy and dx may be bfloat16, s is not.

lo and hi are 0 and C − 1. With `groups` > 1 the channels are cut into that many equal parts and a
window stays inside its part: the two GPUs of the 2012 code each normalized their own maps. That
code also divides α by n, which here is simply another α (see `tinyconv/recipes.py`).
"""

import math

import numpy as np
from numba import njit, prange

from layers.device import cuda, grid_for
from layers.fast.bfloat16 import narrow, widen
from layers.layer import Layer

# --- host
#
# x, y, dy, dx, scale: (rows, C), one row for each image and place. width: channels in a group.
# The kernels below take one channel i and walk over its window; here the loops are exchanged, one
# distance d = j − i at a time for all i, so that the inner loop runs along memory and the compiler
# can make it work on several channels at once. (error_model="numpy": Python's division would look
# for a zero at each channel. There is none, s is at least k.)


@njit(cache=True, error_model="numpy")
def power_host(s, beta, out):
    """out[i] = s[i]^−β."""
    if beta == 0.75:
        # A power is a function call for each channel; roots are done several at once. In float64
        # they lose nothing: the result is the power, rounded.
        for i in range(s.size):
            root = math.sqrt(np.float64(s[i]))
            out[i] = 1 / (root * math.sqrt(root))
    else:
        for i in range(s.size):
            out[i] = s[i] ** -beta


@njit(parallel=True, cache=True, error_model="numpy")
def lrn_forward_host(x, y, scale, width, half, k, alpha, beta):
    rows, channels = x.shape
    reach = min(half, width - 1)
    for row in prange(rows):
        for low in range(0, channels, width):
            group = slice(low, low + width)
            a, b, s = x[row, group], y[row, group], scale[row, group]
            s[:] = 0
            for d in range(-reach, reach + 1):
                first, last = max(0, -d), min(width, width - d)
                total, near = s[first:last], a[first + d : last + d]
                for i in range(total.size):
                    total[i] += near[i] * near[i]
            for i in range(width):
                s[i] = k + alpha * s[i]
            power_host(s, beta, b)
            for i in range(width):
                b[i] *= a[i]


@njit(parallel=True, cache=True, error_model="numpy")
def lrn_backward_host(x, y, scale, dy, dx, width, half, two_alpha_beta, beta):
    rows, channels = x.shape
    reach = min(half, width - 1)
    for row in prange(rows):
        share, power = np.empty(width, x.dtype), np.empty(width, x.dtype)
        for low in range(0, channels, width):
            group = slice(low, low + width)
            a, b, s = x[row, group], y[row, group], scale[row, group]
            da, db = dx[row, group], dy[row, group]
            for i in range(width):
                share[i] = db[i] * b[i] / s[i]
            da[:] = 0
            for d in range(-reach, reach + 1):
                first, last = max(0, -d), min(width, width - d)
                total, near = da[first:last], share[first + d : last + d]
                for j in range(total.size):
                    total[j] += near[j]
            power_host(s, beta, power)
            for j in range(width):
                da[j] = db[j] * power[j] - two_alpha_beta * a[j] * da[j]


# --- kernels
#
# Both: one thread per element of the (rows, C) arrays, flat index = row · C + channel; THREADS
# threads a block. Neighbouring threads own neighbouring channels, so each of the n loads of a
# window is coalesced, and n − 1 of them find their data in the cache. A thread writes only what
# it owns and reads only what an earlier launch wrote: no races, deterministic.


@cuda.jit
def lrn_forward_kernel(x, y, scale, width, half, k, alpha, beta):
    index = cuda.grid(1)
    if index >= x.size:
        return
    row = index // x.shape[1]
    i = index % x.shape[1]
    low = i // width * width
    total = scale.dtype.type(0)
    for j in range(max(low, i - half), min(low + width, i + half + 1)):
        total += widen(x[row, j]) * widen(x[row, j])
    scale[row, i] = k + alpha * total
    y[row, i] = narrow(widen(x[row, i]) * scale[row, i] ** -beta, y)


@cuda.jit
def lrn_backward_kernel(x, y, scale, dy, dx, width, half, two_alpha_beta, beta):
    index = cuda.grid(1)
    if index >= x.size:
        return
    row = index // x.shape[1]
    j = index % x.shape[1]
    low = j // width * width
    total = scale.dtype.type(0)
    for i in range(max(low, j - half), min(low + width, j + half + 1)):
        total += widen(dy[row, i]) * widen(y[row, i]) / scale[row, i]
    direct = widen(dy[row, j]) * scale[row, j] ** -beta
    dx[row, j] = narrow(direct - two_alpha_beta * widen(x[row, j]) * total, dx)


# --- layer


class LocalResponseNorm(Layer):
    """Local response normalization across channels (paper §3.3: size 5, k 2, α 1e-4, β 0.75).

    size: window in channels, odd; k > 0; groups: equal parts of the channels that a window does
    not leave. ValueError for others.
    """

    def __init__(self, size=5, k=2.0, alpha=1e-4, beta=0.75, groups=1):
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"LocalResponseNorm: size must be odd, at least 1, not {size}")
        if k <= 0 or alpha < 0:
            raise ValueError(f"LocalResponseNorm: needs k > 0 and alpha >= 0, not {k} and {alpha}")
        if groups < 1:
            raise ValueError(f"LocalResponseNorm: groups must be at least 1, not {groups}")
        self.size, self.k, self.alpha, self.beta, self.groups = size, k, alpha, beta, groups

    def output_shape(self, input_shape):
        """(..., C) -> (..., C)."""
        if input_shape[-1] % self.groups:
            raise ValueError(
                f"{self.name}: {self.groups} groups do not divide the channels of {input_shape}"
            )
        return input_shape

    def forward(self, x, train=True):
        """x (N, ..., C) -> y of the same shape."""
        self.x = x = self.check_input(x)
        self.y = y = self.buffer("y", x.shape, self.storage)
        self.scale = scale = self.buffer("scale", x.shape)
        rows = (-1, x.shape[-1])
        number = self.dtype.type
        arguments = (
            *(a.reshape(rows) for a in (x, y, scale)),
            *(x.shape[-1] // self.groups, self.size // 2),
            *(number(self.k), number(self.alpha), number(self.beta)),
        )
        if self.device.is_cuda:
            lrn_forward_kernel[grid_for(x.size)](*arguments)
        else:
            lrn_forward_host(*arguments)
        return y

    def backward(self, dy):
        """dy -> dx, both of x's shape."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", dy.shape, self.storage)
        rows = (-1, dy.shape[-1])
        number = self.dtype.type
        arguments = (
            *(a.reshape(rows) for a in (self.x, self.y, self.scale, dy, dx)),
            *(dy.shape[-1] // self.groups, self.size // 2),
            *(number(2 * self.alpha * self.beta), number(self.beta)),
        )
        if self.device.is_cuda:
            lrn_backward_kernel[grid_for(dy.size)](*arguments)
        else:
            lrn_backward_host(*arguments)
        return dx
