"""The epilogue of a matrix product in one pass: bias, ReLU, dropout; and its derivative.

    forward    y = relu(p + b)                              p: the product x · wᵀ
               y = m · factor · relu(p + b)                 with dropout, whose mask is m
    backward   dz = factor · dL/dy where y > 0, else 0      z: what entered the ReLU
               dL/db[k] = Σ_row dz[row, k]

Computed one by one, bias, ReLU and dropout read and write y three times with one operation for each
element: their cost is memory traffic. Backward needs no mask but y: y > 0 exactly where the unit
was on and was kept. (In testing with mode "paper" y is halved, and the smallest number above 0
becomes 0.) dz and the first pass of dL/db (`reductions.py`) read dL/dy together.

Shapes: p, y, dy, dz (rows, K), b, db (K), partial (parts, K). float32 or float64; y, dy and dz may
be bfloat16 in the kernels. Otherwise p and y are one array, updated in place. The roundings are
those of the layers one by one, in the same order: on the host the same bits, on a GPU all but db,
which is summed in another order. "not y <= 0" keeps a NaN, as in `layers/activation.py`.
"""

import numpy as np
from numba import njit, prange

from layers.device import cuda, grid_for
from layers.fast.bfloat16 import narrow, widen
from layers.fast.host.threads import threads_for
from layers.fast.reductions import (
    LANES,
    WARPS,
    parts_grid,
    parts_of,
    rows_in_part,
    sum_parts,
    sum_rows,
)
from layers.random_bits import random_words_device, random_words_host

# --- host


@njit(parallel=True, cache=True)
def bias_relu_host(y, b):
    for row in prange(y.shape[0]):
        for k in range(y.shape[1]):
            value = y[row, k] + b[k]
            y[row, k] = value if not value <= 0 else y.dtype.type(0)


@njit(parallel=True, cache=True)
def bias_relu_dropout_host(y, b, factor, threshold, key):
    seed, layer, step, first = key[0], key[1], key[2], key[3]
    zero = y.dtype.type(0)
    for row in prange(y.shape[0]):
        for k in range(y.shape[1]):
            value = y[row, k] + b[k]
            element = first + np.uint64(row * y.shape[1] + k)
            kept = random_words_host(seed, layer, step, element)[0] >= threshold
            y[row, k] = (value if not value <= 0 else zero) * factor if kept else zero


@njit(parallel=True, cache=True)
def masked_gradient_host(y, dy, dz, db, factor):
    # Each thread owns some columns and adds the rows in order, as NumPy's sum over rows does.
    columns = y.shape[1]
    for part in prange((columns + LANES - 1) // LANES):
        owned = slice(part * LANES, min((part + 1) * LANES, columns))
        total = db[owned]
        total[:] = 0
        for row in range(y.shape[0]):
            out, gradient, result = y[row, owned], dy[row, owned], dz[row, owned]
            for k in range(total.size):
                result[k] = gradient[k] * factor if not out[k] <= 0 else y.dtype.type(0)
                total[k] += result[k]


# --- kernels
#
# Forward: one thread per element of the flat p and y, coalesced; neighbours read neighbours of b.
# A thread reads and writes only its own element, so p may be y. Backward: blocks, threads and sums
# are those of `sum_rows_kernel`; each element is also masked and written, coalesced. One owner for
# each output, sums in a fixed order: no races, deterministic.


@cuda.jit
def bias_kernel(p, b, y):
    i = cuda.grid(1)
    if i < p.size:
        y[i] = narrow(p[i] + b[i % b.size], y)


@cuda.jit
def bias_relu_kernel(p, b, y):
    i = cuda.grid(1)
    if i >= p.size:
        return
    value = p[i] + b[i % b.size]
    y[i] = narrow(value if not value <= p.dtype.type(0) else p.dtype.type(0), y)


@cuda.jit
def bias_relu_dropout_kernel(p, b, y, factor, threshold, key):
    i = cuda.grid(1)
    if i >= p.size:
        return
    zero = p.dtype.type(0)
    value = p[i] + b[i % b.size]
    word = random_words_device(key[0], key[1], key[2], key[3] + np.uint64(i))[0]
    value = (value if not value <= zero else zero) * factor if word >= threshold else zero
    y[i] = narrow(value, y)


@cuda.jit
def masked_gradient_kernel(y, dy, dz, partial, rows, factor):
    sums = cuda.shared.array((WARPS, LANES), partial.dtype)
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    k, part = cuda.blockIdx.x * LANES + lane, cuda.blockIdx.y
    zero = partial.dtype.type(0)
    total = zero
    if k < y.shape[1]:
        for row in range(part * rows + warp, min((part + 1) * rows, y.shape[0]), WARPS):
            gradient = widen(dy[row, k])
            value = gradient * factor if not widen(y[row, k]) <= zero else zero
            dz[row, k] = narrow(value, dz)
            total += value
    sums[warp, lane] = total
    cuda.syncthreads()
    if warp == 0 and k < y.shape[1]:
        for other in range(1, WARPS):
            total += sums[other, lane]
        partial[part, k] = total


# --- launches


def add_bias(device, p, b, y):
    """y (rows, K) = p + b; on the host p is y."""
    if device.is_cuda:
        bias_kernel[grid_for(y.size)](p.reshape(-1), b, y.reshape(-1))
    else:
        y += b


def bias_relu(device, p, b, y, dropout=None):
    """y (rows, K) = relu(p + b), and dropout if one is given, after its `begin_pass`.

    On the host p is y.
    """
    if dropout is not None:
        extra = dropout.factor, dropout.threshold, dropout.key
        if device.is_cuda:
            launch = bias_relu_dropout_kernel[grid_for(y.size)]
            launch(p.reshape(-1), b, y.reshape(-1), *extra)
        else:
            bias_relu_dropout_host(y, b, *extra)
    elif device.is_cuda:
        bias_relu_kernel[grid_for(y.size)](p.reshape(-1), b, y.reshape(-1))
    else:
        with threads_for(y.size):
            bias_relu_host(y, b)


def bias_gradient(device, dy, db, buffer):
    """db (K) = the sum of the rows of dy (rows, K); `buffer` provides the partial sums."""
    if device.is_cuda:
        sum_rows(dy, db, buffer)
    else:
        dy.sum(axis=0, out=db)


def masked_gradient(device, y, dy, dz, db, factor, buffer):
    """dz (rows, K) and db (K) from y and dy (rows, K); `buffer` provides the partial sums."""
    if not device.is_cuda:
        with threads_for(y.size):
            masked_gradient_host(y, dy, dz, db, factor)
        return
    rows, columns = y.shape
    partial = buffer("partial", (parts_of(rows), columns))
    launch = masked_gradient_kernel[parts_grid(rows, columns)]
    launch(y, dy, dz, partial, rows_in_part(rows), factor)
    sum_parts(partial, db)
