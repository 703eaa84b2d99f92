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
from layers.fast.bfloat16 import widen

LANES = 32
"""Columns of a block: a warp reads 32 neighbours of one row."""

WARPS = 8
"""Rows that a block reads at once."""

FEWEST_ROWS, MOST_PARTS = 64, 256
TOTALS_THREADS = 128


def rows_in_part(rows: int) -> int:
    """How many rows a part has: 64 at least, and no more than 256 parts."""
    return max(FEWEST_ROWS, -(-rows // MOST_PARTS))


def parts_of(rows: int) -> int:
    """Into how many parts `rows` rows are split."""
    return -(-rows // rows_in_part(rows))


def parts_grid(rows: int, columns: int):
    """The launch of a first pass: a block for 32 columns of one part, LANES × WARPS threads."""
    return grid_of((-(-columns // LANES), parts_of(rows)), (LANES, WARPS))


# --- kernels
#
# First pass: thread (lane, warp) of a block adds up rows warp, warp + 8, ... of the block's part,
# in one column; neighbouring lanes read neighbouring elements: coalesced. The eight sums of a
# column are written to shared memory, where warp 0 adds them in order. Second pass: one thread per
# column, over the parts in order, coalesced. Totals: one block; thread t adds losses and hits t,
# t + 128, ..., then the sums are added pairwise; thread 0 sets `skip` if the mean loss is not
# finite, and nothing clears it. All orders are fixed: deterministic.


@cuda.jit
def sum_rows_kernel(x, partial, rows):
    sums = cuda.shared.array((WARPS, LANES), partial.dtype)
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    k, part = cuda.blockIdx.x * LANES + lane, cuda.blockIdx.y
    total = partial.dtype.type(0)
    if k < x.shape[1]:
        for row in range(part * rows + warp, min((part + 1) * rows, x.shape[0]), WARPS):
            total += widen(x[row, k])
    sums[warp, lane] = total
    cuda.syncthreads()
    if warp == 0 and k < x.shape[1]:
        for other in range(1, WARPS):
            total += sums[other, lane]
        partial[part, k] = total


@cuda.jit
def sum_parts_kernel(partial, total):
    k = cuda.grid(1)
    if k >= total.size:
        return
    so_far = partial[0, k]
    for part in range(1, partial.shape[0]):
        so_far += partial[part, k]
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
    sum_rows_kernel[parts_grid(rows, columns)](x, partial, rows_in_part(rows))
    sum_parts(partial, total)


def sum_parts(partial, total):
    """total (K) = the sum of the parts' sums, partial (parts, K): the second pass."""
    sum_parts_kernel[grid_for(total.size)](partial, total)


def totals_of(losses, hits, totals, skip):
    """totals (2) = mean of losses (N), sum of hits (N); skip (1) = 1 if the mean isn't finite."""
    totals_kernel[grid_of(1, TOTALS_THREADS)](losses, hits, totals, skip)
