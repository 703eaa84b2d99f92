"""Local response normalization on the host, one distance at a time.

Replaces the loops of `layers/lrn.py`, which has the formulas, shapes and names. Those take one
channel i and walk over its window. Here the loops are exchanged: one distance d = j − i at a time
for all i, so that the inner loop runs along memory and the compiler can vectorize it.
"""

import math

import numpy as np
from numba import njit, prange

from layers.fast.step import Step

# --- host
#
# x, y, dy, dx, scale: (rows, C), one row for each image and place; width: channels of a group.
# error_model="numpy": without it Numba checks each division for a zero. There is none: s >= k > 0.


@njit(cache=True, error_model="numpy")
def power_host(s, beta, out):
    """out[i] = s[i]^−β."""
    if beta == 0.75:
        # A power is a function call for each channel; square roots are vectorized. They are taken
        # in float64, so that the result is the power, rounded once.
        for i in range(s.size):
            root = math.sqrt(np.float64(s[i]))
            out[i] = 1 / (root * math.sqrt(root))
    else:
        for i in range(s.size):
            out[i] = s[i] ** -beta


@njit(parallel=True, cache=True, error_model="numpy")
def lrn_distance_forward_host(x, y, scale, width, half, k, alpha, beta):
    rows, channels = x.shape
    half = min(half, width - 1)
    for row in prange(rows):
        for low in range(0, channels, width):
            group = slice(low, low + width)
            a, b, s = x[row, group], y[row, group], scale[row, group]
            s[:] = 0
            for d in range(-half, half + 1):
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
def lrn_distance_backward_host(x, y, scale, dy, dx, width, half, two_alpha_beta, beta):
    rows, channels = x.shape
    half = min(half, width - 1)
    for row in prange(rows):
        terms, power = np.empty(width, x.dtype), np.empty(width, x.dtype)
        for low in range(0, channels, width):
            group = slice(low, low + width)
            a, b, s = x[row, group], y[row, group], scale[row, group]
            da, db = dx[row, group], dy[row, group]
            for i in range(width):
                terms[i] = db[i] * b[i] / s[i]
            da[:] = 0
            for d in range(-half, half + 1):
                first, last = max(0, -d), min(width, width - d)
                total, near = da[first:last], terms[first + d : last + d]
                for j in range(total.size):
                    total[j] += near[j]
            power_host(s, beta, power)
            for j in range(width):
                da[j] = db[j] * power[j] - two_alpha_beta * a[j] * da[j]


# --- step


class LRNByDistance(Step):
    """A LocalResponseNorm on the host by the loops above."""

    short = "by distance"
    computed_by = "lrn_distance_forward_host, lrn_distance_backward_host"

    def forward(self, x, train=True):
        """x (N, ..., C) -> y of the same shape."""
        (norm,) = self.layers
        self.x = x = self.check_input(x)
        y = self.output(x.shape)
        self.scale = self.buffer("scale", x.shape)
        number = self.dtype.type
        lrn_distance_forward_host(
            *(array.reshape(-1, x.shape[-1]) for array in (x, y, self.scale)),
            *(x.shape[-1] // norm.groups, norm.size // 2),
            *(number(norm.k), number(norm.alpha), number(norm.beta)),
        )
        return y

    def backward(self, dy):
        """dy -> dx, both of x's shape."""
        (norm,) = self.layers
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", dy.shape)
        number = self.dtype.type
        arrays = self.x, self.y, self.scale, dy, dx
        lrn_distance_backward_host(
            *(array.reshape(-1, dy.shape[-1]) for array in arrays),
            *(dy.shape[-1] // norm.groups, norm.size // 2),
            *(number(2 * norm.alpha * norm.beta), number(norm.beta)),
        )
        return dx
