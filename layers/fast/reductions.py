"""Sums over many rows in two passes, the same bits every time.

    total[k] = Σ_row x[row, k]            totals = (1/N Σ_n losses[n], Σ_n hits[n])

One thread for each k would leave a GPU idle (conv1 has 96 filters and 387,200 rows at batch 128);
atomic additions would occupy it, but in an order that changes from run to run, and so would the
last bits. So there are two passes. The rows are split into parts, whose number follows from the
shape alone; in the first pass a block computes the partial sum of a part, and the second adds the
partial sums in order.

Shapes: x (rows, K), partial (parts, K), total (K). float32 or float64; x may be bfloat16.
`bias_relu.py` combines the first pass with the mask of the ReLU.
"""

import math

from layers.device import cuda, grid_for, grid_of
from layers.fast.bfloat16 import narrow, widen
from layers.fast.conv.ptx import is_aligned, load_vec4, store_vec4

BLOCK = 256
"""Threads of a block in the first pass, at most."""

COLUMNS = 4
"""Those of a thread: one load of 16 bytes in float32."""

SUMS, TWO_ROWS = BLOCK * COLUMNS, 2 * COLUMNS

FEWEST_ROWS, MOST_PARTS = 64, 512
WIDE = 64
"""From this many parts on a block shares the sum of a column."""
LANES, WARPS = 32, 32
"""A block of the second pass then: columns, and threads for each."""
TOTALS_THREADS = 128


def rows_in_part(rows: int) -> int:
    """How many rows a part has: 64 at least, and no more than 512 parts."""
    return max(FEWEST_ROWS, -(-rows // MOST_PARTS))


def parts_of(rows: int) -> int:
    """Into how many parts `rows` rows are split."""
    return -(-rows // rows_in_part(rows))


def parts_grid(rows: int, columns: int):
    """The launch of a first pass: blocks of (fours of columns, rows at once) for each part."""
    fours = -(-columns // COLUMNS)
    across = min(fours, BLOCK // 4)
    return grid_of((-(-fours // across), parts_of(rows)), (across, BLOCK // across))


def whole_fours(columns, *arrays):
    """Whether rows of `arrays` (rows, columns) can be read and written four columns at a time."""
    return columns % COLUMNS == 0 and all(is_aligned(array) for array in arrays)


# --- kernels
#
# First pass, of flat x: thread (lane, r) of a block adds up rows r, r + blockDim.y, ... of the
# block's part, two at a time, in four columns; neighbouring lanes read neighbouring elements, by 16
# bytes at a time where rows are `whole_fours`: coalesced. The sums of a column are written to
# shared memory, where thread (lane, 0) adds them in order. Second pass: one thread for four
# columns, over the parts in order, coalesced; of many parts warp w of a block adds w, w + 32, ...,
# and warp 0 the sums of the warps. Totals: one block; thread t adds losses and hits t, t + 128,
# ..., then the sums are added pairwise; thread 0 sets `skip` if the mean loss is not finite, and
# nothing clears it. All orders are fixed: deterministic.


@cuda.jit(device=True, inline="always")
def load_four(values, first, x, at, left, vectorized):
    """Four columns of a row, or the first `left` of them and zeros."""
    if vectorized:
        load_vec4(values, first, x, at)
    else:
        for i in range(COLUMNS):
            values[first + i] = 0
            if i < left:
                values[first + i] = widen(x[at + i])


@cuda.jit(device=True, inline="always")
def store_four(x, at, values, first, left, vectorized):
    """Four columns of a row, or the first `left` of them."""
    if vectorized:
        store_vec4(x, at, values, first)
    else:
        for i in range(COLUMNS):
            if i < left:
                x[at + i] = narrow(values[first + i], x)


@cuda.jit(device=True, inline="always")
def store_part(totals, sums, partial, at, left):
    """The block's sums of four columns, `totals` of each thread, to partial[at : at + 4]."""
    place = COLUMNS * (cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x)
    for i in range(COLUMNS):
        sums[place + i] = totals[i]
    cuda.syncthreads()
    if cuda.threadIdx.y == 0:
        for other in range(1, cuda.blockDim.y):
            for i in range(COLUMNS):
                totals[i] += sums[COLUMNS * (other * cuda.blockDim.x + cuda.threadIdx.x) + i]
        for i in range(COLUMNS):
            if i < left:
                partial[at + i] = totals[i]


@cuda.jit
def sum_rows_kernel(x, partial, rows, columns, rows_of_part, vectorized):
    sums = cuda.shared.array(SUMS, partial.dtype)
    totals = cuda.local.array(COLUMNS, partial.dtype)
    values = cuda.local.array(TWO_ROWS, partial.dtype)
    k, part = COLUMNS * (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x), cuda.blockIdx.y
    left, step = columns - k, cuda.blockDim.y
    row, end = part * rows_of_part + cuda.threadIdx.y, min((part + 1) * rows_of_part, rows)
    for i in range(COLUMNS):
        totals[i] = 0
    if left <= 0:
        row = end
    while row < end:
        for i in range(COLUMNS):
            values[COLUMNS + i] = 0
        load_four(values, 0, x, row * columns + k, left, vectorized)
        if row + step < end:
            load_four(values, COLUMNS, x, (row + step) * columns + k, left, vectorized)
        for i in range(COLUMNS):
            totals[i] = totals[i] + values[i] + values[COLUMNS + i]
        row += 2 * step
    store_part(totals, sums, partial, part * columns + k, left)


@cuda.jit
def sum_parts_kernel(partial, total, parts, vectorized):
    totals = cuda.local.array(COLUMNS, total.dtype)
    values = cuda.local.array(COLUMNS, total.dtype)
    k = COLUMNS * cuda.grid(1)
    left = total.size - k
    if left <= 0:
        return
    load_four(totals, 0, partial, k, left, vectorized)
    at = k
    for _ in range(1, parts):
        at += total.size
        load_four(values, 0, partial, at, left, vectorized)
        for i in range(COLUMNS):
            totals[i] += values[i]
    store_four(total, k, totals, 0, left, vectorized)


@cuda.jit
def sum_many_parts_kernel(partial, total):
    sums = cuda.shared.array((WARPS, LANES), total.dtype)
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    k = cuda.blockIdx.x * LANES + lane
    so_far = total.dtype.type(0)
    if k < total.size:
        for part in range(warp, partial.shape[0], WARPS):
            so_far += partial[part, k]
    sums[warp, lane] = so_far
    cuda.syncthreads()
    if warp == 0 and k < total.size:
        for other in range(1, WARPS):
            so_far += sums[other, lane]
        total[k] = so_far


@cuda.jit
def totals_kernel(losses, hits, totals, skip):
    sums = cuda.shared.array(TOTALS_THREADS, losses.dtype)
    counts = cuda.shared.array(TOTALS_THREADS, losses.dtype)
    t = cuda.threadIdx.x
    loss = hit = losses.dtype.type(0)
    for n in range(t, losses.size, TOTALS_THREADS):
        loss += losses[n]
        hit += hits[n]
    sums[t], counts[t] = loss, hit
    cuda.syncthreads()
    active = TOTALS_THREADS // 2
    while active > 0:
        if t < active:
            sums[t] += sums[t + active]
            counts[t] += counts[t + active]
        cuda.syncthreads()
        active //= 2
    if t == 0:
        mean = sums[0] / losses.dtype.type(losses.size)
        totals[0], totals[1] = mean, counts[0]
        if not math.isfinite(mean):
            skip[0] = 1


# --- launches


def sum_rows(x, total, buffer):
    """total (K) = the sum of the rows of x (rows, K); `buffer` provides the partial sums."""
    rows, columns = x.shape
    partial = buffer("partial", (parts_of(rows), columns))
    launch = sum_rows_kernel[parts_grid(rows, columns)]
    sizes = rows, columns, rows_in_part(rows), whole_fours(columns, x)
    launch(x.reshape(-1), partial.reshape(-1), *sizes)
    sum_parts(partial, total)


def sum_parts(partial, total):
    """total (K) = the sum of the parts' sums, partial (parts, K): the second pass."""
    if partial.shape[0] < WIDE:
        vectorized = whole_fours(total.size, partial, total)
        launch = sum_parts_kernel[grid_for(-(-total.size // COLUMNS))]
        launch(partial.reshape(-1), total, partial.shape[0], vectorized)
    else:
        blocks = -(-total.size // LANES)
        sum_many_parts_kernel[grid_of(blocks, (LANES, WARPS))](partial, total)


def totals_of(losses, hits, totals, skip):
    """totals (2) = mean of losses (N), sum of hits (N); skip (1) = 1 if the mean isn't finite."""
    totals_kernel[grid_of(1, TOTALS_THREADS)](losses, hits, totals, skip)
