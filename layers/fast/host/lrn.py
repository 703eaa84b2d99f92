"""Local response normalization on the host, one distance at a time.

Replaces the loops of `layers/lrn.py`, which has the formulas, shapes and names. Those take one
channel i and walk over its window. Here the loops are exchanged: one distance d = j − i at a time
for all i, so that the inner loop runs along memory and the compiler can vectorize it. It runs over
several rows at a time, which are copied one behind the other with `half` zeros between them: so no
window reaches another row, and a row of few channels does not end the loop.
"""

import math

import numpy as np
from numba import njit

from layers.fast.host.threads import in_rows
from layers.fast.step import Step

AT_ONCE = 1024
"""Elements of the rows that are processed at a time: their copies stay in the L1 cache."""

# --- host
#
# x, y, dy, dx, scale: (rows, width), one row for each image, place and group of `width` channels.
# error_model="numpy": without it Numba checks each division for a zero. There is none: s >= k > 0.


@njit(nogil=True, cache=True, error_model="numpy")
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


@njit(nogil=True, cache=True, error_model="numpy")
def window_sums(terms, sums, half):
    """sums[e] = terms[e] + ... + terms[e + 2·half]."""
    sums[:] = 0
    for d in range(2 * half + 1):
        near = terms[d : d + sums.size]
        for e in range(sums.size):
            sums[e] += near[e]


@njit(nogil=True, cache=True, error_model="numpy")
def lrn_distance_forward_host(x, y, scale, half, k, alpha, beta):
    rows, width = x.shape
    half = min(half, width - 1)
    step = width + half
    at_once = max(1, AT_ONCE // step)
    squares = np.zeros(half + at_once * step, x.dtype)
    sums, power = np.empty(at_once * step, x.dtype), np.empty(at_once * step, x.dtype)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        for r in range(count):
            a, square = x[first + r], squares[half + r * step : half + r * step + width]
            for i in range(width):
                square[i] = a[i] * a[i]
        s, p = sums[: count * step], power[: count * step]
        window_sums(squares, s, half)
        for e in range(s.size):
            s[e] = k + alpha * s[e]
        power_host(s, beta, p)
        for r in range(count):
            a, b, kept = x[first + r], y[first + r], scale[first + r]
            s, p = sums[r * step : r * step + width], power[r * step : r * step + width]
            for i in range(width):
                kept[i] = s[i]
                b[i] = p[i] * a[i]


@njit(nogil=True, cache=True, error_model="numpy")
def lrn_distance_backward_host(x, y, scale, dy, dx, half, two_alpha_beta, beta):
    rows, width = x.shape
    half = min(half, width - 1)
    step = width + half
    at_once = max(1, AT_ONCE // step)
    terms = np.zeros(half + at_once * step, x.dtype)
    sums, power = np.empty(at_once * step, x.dtype), np.empty(at_once * width, x.dtype)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        power_host(scale[first : first + count].reshape(-1), beta, power[: count * width])
        for r in range(count):
            b, s, db = y[first + r], scale[first + r], dy[first + r]
            term = terms[half + r * step : half + r * step + width]
            for i in range(width):
                term[i] = db[i] * b[i] / s[i]
        window_sums(terms, sums[: count * step], half)
        for r in range(count):
            a, db, da = x[first + r], dy[first + r], dx[first + r]
            total, p = sums[r * step : r * step + width], power[r * width : (r + 1) * width]
            for j in range(width):
                da[j] = db[j] * p[j] - two_alpha_beta * a[j] * total[j]


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
        rows = [a.reshape(-1, x.shape[-1] // norm.groups) for a in (x, y, self.scale)]
        numbers = number(norm.k), number(norm.alpha), number(norm.beta)
        in_rows(lrn_distance_forward_host, rows, norm.size // 2, *numbers)
        return y

    def backward(self, dy):
        """dy -> dx, both of x's shape."""
        (norm,) = self.layers
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", dy.shape)
        number = self.dtype.type
        arrays = self.x, self.y, self.scale, dy, dx
        rows = [a.reshape(-1, dy.shape[-1] // norm.groups) for a in arrays]
        numbers = number(2 * norm.alpha * norm.beta), number(norm.beta)
        in_rows(lrn_distance_backward_host, rows, norm.size // 2, *numbers)
        return dx
