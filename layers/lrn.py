"""Local response normalization across channels (paper §3.3).

Each activation is divided by a power of the sum of squares of its neighbours across channels, so
that a filter with a strong response damps the filters next to it at the same place:

    s[i] = k + α Σ_j a[j]²          j from max(lo, i − n//2) to min(hi, i + n//2)
    b[i] = a[i] · s[i]^−β

    dL/da[j] = dL/db[j] · s[j]^−β  −  2 α β a[j] Σ_i dL/db[i] · b[i] / s[i]

The second sum runs over the channels i whose window contains j, which for an odd n are again
j − n//2 … j + n//2, cut off at the same ends. An even n is refused: its window is not symmetric,
so the window of the second sum would be a different one.

Shapes: x, y, dy, dx, s (N, H, W, C) or any (N, ..., C); channels are last, so a window is a run of
neighbours in memory. float32 or float64.

lo and hi are 0 and C − 1. With `groups` > 1 the channels are split into that many equal groups and
a window stays inside its group: each of the two GPUs of the 2012 code normalized its own maps. That
code also divides α by n, which here is just another α (see `tinyconv/recipes.py`).
"""

from numba import njit, prange

from layers.device import cuda, grid_for
from layers.layer import Layer

# --- host
#
# x, y, dy, dx, scale (s): (rows, C), one row for each image and place. width: channels of a group.


@njit(parallel=True, cache=True)
def lrn_forward_host(x, y, scale, width, half, k, alpha, beta):
    for row in prange(x.shape[0]):
        for i in range(x.shape[1]):
            low = i // width * width
            total = x.dtype.type(0)
            for j in range(max(low, i - half), min(low + width, i + half + 1)):
                total += x[row, j] * x[row, j]
            scale[row, i] = k + alpha * total
            y[row, i] = x[row, i] * scale[row, i] ** -beta


@njit(parallel=True, cache=True)
def lrn_backward_host(x, y, scale, dy, dx, width, half, two_alpha_beta, beta):
    for row in prange(x.shape[0]):
        for j in range(x.shape[1]):
            low = j // width * width
            total = x.dtype.type(0)
            for i in range(max(low, j - half), min(low + width, j + half + 1)):
                total += dy[row, i] * y[row, i] / scale[row, i]
            direct = dy[row, j] * scale[row, j] ** -beta
            dx[row, j] = direct - two_alpha_beta * x[row, j] * total


# --- kernels
#
# Both: one thread per element of the (rows, C) arrays, flat index = row · C + channel, THREADS
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
    total = x.dtype.type(0)
    for j in range(max(low, i - half), min(low + width, i + half + 1)):
        total += x[row, j] * x[row, j]
    scale[row, i] = k + alpha * total
    y[row, i] = x[row, i] * scale[row, i] ** -beta


@cuda.jit
def lrn_backward_kernel(x, y, scale, dy, dx, width, half, two_alpha_beta, beta):
    index = cuda.grid(1)
    if index >= x.size:
        return
    row = index // x.shape[1]
    j = index % x.shape[1]
    low = j // width * width
    total = x.dtype.type(0)
    for i in range(max(low, j - half), min(low + width, j + half + 1)):
        total += dy[row, i] * y[row, i] / scale[row, i]
    direct = dy[row, j] * scale[row, j] ** -beta
    dx[row, j] = direct - two_alpha_beta * x[row, j] * total


# --- layer


class LocalResponseNorm(Layer):
    """Local response normalization across channels (paper §3.3: size 5, k 2, α 1e-4, β 0.75).

    size: window in channels, odd; k > 0; groups: equal groups of channels that a window does not
    leave. ValueError for others.
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
        self.y = y = self.buffer("y", x.shape)
        self.scale = scale = self.buffer("scale", x.shape)
        number = self.dtype.type
        arguments = (
            *(array.reshape(-1, x.shape[-1]) for array in (x, y, scale)),
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
        dx = self.buffer("dx", dy.shape)
        number = self.dtype.type
        arguments = (
            *(array.reshape(-1, dy.shape[-1]) for array in (self.x, self.y, self.scale, dy, dx)),
            *(dy.shape[-1] // self.groups, self.size // 2),
            *(number(2 * self.alpha * self.beta), number(self.beta)),
        )
        if self.device.is_cuda:
            lrn_backward_kernel[grid_for(dy.size)](*arguments)
        else:
            lrn_backward_host(*arguments)
        return dx
