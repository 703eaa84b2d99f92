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
from numba import njit

from layers.device import THREADS, cuda, grid_of
from layers.fast.bfloat16 import narrow, nearest_tf32
from layers.fast.host.threads import in_parallel, in_rows, shares, threads_for_loop
from layers.fast.reductions import (
    COLUMNS,
    SUMS,
    TWO_ROWS,
    load_four,
    parts_grid,
    parts_of,
    rows_in_part,
    store_four,
    store_part,
    sum_parts,
    sum_rows,
    whole_fours,
)
from layers.random_bits import random_words_device, random_words_host

# --- host


@njit(nogil=True, cache=True)
def bias_relu_host(y, b):
    for row in range(y.shape[0]):
        for k in range(y.shape[1]):
            value = y[row, k] + b[k]
            y[row, k] = value if not value <= 0 else y.dtype.type(0)


@njit(nogil=True, cache=True)
def bias_relu_dropout_host(y, b, factor, threshold, key, row_before):
    # `row_before` rows of the pass are before those of y.
    seed, layer, step, first = key[0], key[1], key[2], key[3]
    zero = y.dtype.type(0)
    for row in range(y.shape[0]):
        for k in range(y.shape[1]):
            value = y[row, k] + b[k]
            element = first + np.uint64((row_before + row) * y.shape[1] + k)
            kept = random_words_host(seed, layer, step, element)[0] >= threshold
            y[row, k] = (value if not value <= 0 else zero) * factor if kept else zero


@njit(nogil=True, cache=True)
def masked_gradient_host(y, dy, dz, db, factor, low, high):
    # A thread owns columns low to high and adds the rows in order, as NumPy's sum over rows does.
    total = db[low:high]
    for k in range(total.size):
        total[k] = 0
    for row in range(y.shape[0]):
        out, gradient, result = y[row, low:high], dy[row, low:high], dz[row, low:high]
        for k in range(total.size):
            result[k] = gradient[k] * factor if not out[k] <= 0 else y.dtype.type(0)
            total[k] += result[k]


# --- kernels
#
# Forward, of flat p and y: grid (parts of a row, rows); a thread owns four neighbouring elements,
# which are read and written by 16 bytes at a time where rows are `whole_fours`: coalesced;
# all rows read the same b. A thread reads and writes only its own elements, so p may be y. Dropout,
# which is bound by its random numbers, has one element a thread. Backward: blocks, threads and sums
# are those of `sum_rows_kernel`; each element is also masked and written, coalesced. One owner for
# each output, sums in a fixed order: no races, deterministic.


@cuda.jit
def bias_kernel(p, b, y, columns, vectorized, relu):
    values = cuda.local.array(COLUMNS, p.dtype)
    k = COLUMNS * (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
    left, zero = columns - k, p.dtype.type(0)
    if left > 0:
        at = cuda.blockIdx.y * columns + k
        load_four(values, 0, p, at, left, vectorized)
        for i in range(COLUMNS):
            if i < left:
                value = values[i] + b[k + i]
                values[i] = zero if relu and value <= zero else value  # a NaN stays one
        store_four(y, at, values, 0, left, vectorized)


@cuda.jit
def bias_relu_dropout_kernel(p, b, y, columns, factor, threshold, key):
    k = cuda.grid(1)
    if k >= columns:
        return
    i = cuda.blockIdx.y * columns + k
    zero = p.dtype.type(0)
    value = p[i] + b[k]
    word = random_words_device(key[0], key[1], key[2], key[3] + np.uint64(i))[0]
    value = (value if not value <= zero else zero) * factor if word >= threshold else zero
    y[i] = narrow(value, y)


@cuda.jit
def masked_gradient_kernel(
    y, dy, dz, partial, rows, columns, rows_of_part, vectorized, factor, rounded
):
    sums = cuda.shared.array(SUMS, partial.dtype)
    totals = cuda.local.array(COLUMNS, partial.dtype)
    outputs = cuda.local.array(TWO_ROWS, partial.dtype)
    values = cuda.local.array(TWO_ROWS, partial.dtype)
    k, part = COLUMNS * (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x), cuda.blockIdx.y
    left, step = columns - k, cuda.blockDim.y
    row, end = part * rows_of_part + cuda.threadIdx.y, min((part + 1) * rows_of_part, rows)
    zero = partial.dtype.type(0)
    for i in range(COLUMNS):
        totals[i] = zero
    if left <= 0:
        row = end
    while row < end:
        two = row + step < end
        at = row * columns + k
        after = at + step * columns
        load_four(values, 0, dy, at, left, vectorized)
        load_four(outputs, 0, y, at, left, vectorized)
        for i in range(COLUMNS):
            values[COLUMNS + i] = outputs[COLUMNS + i] = zero
        if two:
            load_four(values, COLUMNS, dy, after, left, vectorized)
            load_four(outputs, COLUMNS, y, after, left, vectorized)
        for i in range(TWO_ROWS):
            values[i] = values[i] * factor if not outputs[i] <= zero else zero
        for i in range(COLUMNS):
            totals[i] = totals[i] + values[i] + values[COLUMNS + i]
        if rounded:
            for i in range(TWO_ROWS):
                values[i] = nearest_tf32(values[i])
        store_four(dz, at, values, 0, left, vectorized)
        if two:
            store_four(dz, after, values, COLUMNS, left, vectorized)
        row += 2 * step
    store_part(totals, sums, partial, part * columns + k, left)


# --- launches


def rows_grid(y, per_thread):
    """A grid of (parts of a row, rows), for y (rows, K)."""
    return grid_of((-(-y.shape[1] // (per_thread * THREADS)), y.shape[0]), THREADS)


def _launch_bias(p, b, y, relu):
    columns = y.shape[1]
    launch = bias_kernel[rows_grid(y, COLUMNS)]
    launch(p.reshape(-1), b, y.reshape(-1), columns, whole_fours(columns, p, y), relu)


def add_bias(device, p, b, y):
    """y (rows, K) = p + b; on the host p is y."""
    if device.is_cuda:
        _launch_bias(p, b, y, False)
    else:
        y += b


def bias_relu(device, p, b, y, dropout=None):
    """y (rows, K) = relu(p + b), and dropout if one is given, after its `begin_pass`.

    On the host p is y.
    """
    if dropout is not None:
        extra = dropout.factor, dropout.threshold, dropout.key
        if device.is_cuda:
            launch = bias_relu_dropout_kernel[rows_grid(y, 1)]
            launch(p.reshape(-1), b, y.reshape(-1), y.shape[1], *extra)
        else:
            in_parallel(
                lambda _, part: bias_relu_dropout_host(y[part], b, *extra, part.start),
                shares(len(y), threads_for_loop(y.size)),
            )
    elif device.is_cuda:
        _launch_bias(p, b, y, True)
    else:
        in_rows(bias_relu_host, (y,), b)


def bias_gradient(device, dy, db, buffer):
    """db (K) = the sum of the rows of dy (rows, K); `buffer` provides the partial sums."""
    if device.is_cuda:
        sum_rows(dy, db, buffer)
    else:
        dy.sum(axis=0, out=db)


def masked_gradient(device, y, dy, dz, db, factor, buffer, rounded=False):
    """dz (rows, K) and db (K) from y and dy (rows, K); `buffer` provides the partial sums.

    rounded: dz to TF32, on a GPU; db is the sum of what was not rounded.
    """
    if not device.is_cuda:

        def owned(_, part):
            masked_gradient_host(y, dy, dz, db, factor, part.start, part.stop)

        in_parallel(owned, shares(y.shape[1], threads_for_loop(y.size)))
        return
    rows, columns = y.shape
    partial = buffer("partial", (parts_of(rows), columns))
    launch = masked_gradient_kernel[parts_grid(rows, columns)]
    arrays = (array.reshape(-1) for array in (y, dy, dz, partial))
    sizes = rows, columns, rows_in_part(rows), whole_fours(columns, y, dy, dz)
    launch(*arrays, *sizes, factor, rounded)
    sum_parts(partial, db)
