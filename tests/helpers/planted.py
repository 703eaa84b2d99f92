"""Kernels with a fault each, and beside some of them the same without it.

A comment marks the lines that a report has to name.
"""

from numba import cuda, float32, int32

N = 64  # threads of a block


@cuda.jit
def missing_barrier(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]  # fills
    y[i] = tile[N - 1 - i]  # reverses


@cuda.jit
def missing_second_barrier(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    total = float32(0)
    for k in range(2):
        tile[i] = x[k * N + i]  # the next tile
        cuda.syncthreads()
        total += tile[N - 1 - i]  # the last tile
    y[i] = total


@cuda.jit
def barrier_in_a_branch(x, y):
    i = cuda.threadIdx.x
    if i < 40:
        cuda.syncthreads()  # not for all
    y[i] = x[i]


@cuda.jit
def window_too_wide(x, y):
    tile = cuda.shared.array(N + 2, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncthreads()
    y[i] = tile[i] + tile[i + 1]  # one beyond


@cuda.jit
def unguarded_edge(x, y):
    i = cuda.grid(1)
    y[i] = x[i]  # no guard


@cuda.jit
def negative_index(x, y):
    i = cuda.grid(1)
    if i < x.size:
        y[i] = x[i - 1]  # x[-1]


@cuda.jit
def row_too_short(x, y):
    i = cuda.threadIdx.x
    row = x[i]
    y[i] = row[i]  # a row of 5


@cuda.jit
def divides_by_zero(x, y):
    i = cuda.threadIdx.x
    y[i] = x[i] / (i // N)  # int / 0


@cuda.jit
def local_unwritten(x, y):
    part = cuda.local.array(3, float32)
    i = cuda.threadIdx.x
    part[0] = part[1] = x[i]
    y[i] = part[0] + part[2]  # part[2]


@cuda.jit
def output_unwritten(x, y):
    i = cuda.threadIdx.x
    y[i] += x[i]  # adds to nothing


@cuda.jit
def two_blocks_one_element(x, y):
    i = cuda.threadIdx.x + cuda.blockIdx.x * (N - 1)
    y[i] = x[i]  # block 0's last is block 1's first


@cuda.jit
def two_threads_one_element(x, y):
    i = cuda.threadIdx.x
    y[i // 2] = 1  # i and i + 1


@cuda.jit
def twice_in_turn(x, y):
    i = cuda.threadIdx.x
    y[i] = x[i]  # once
    cuda.syncthreads()
    y[N - 1 - i] = x[N - 1 - i]  # and again


@cuda.jit
def missing_writer(x, y):
    i = cuda.grid(1)
    if i < y.size - 1:  # but the last
        y[i] = x[i]  # nearly all


@cuda.jit
def writes_nothing(x, y):
    if x[0] < y.size:
        return


@cuda.jit
def append(x, found, count):
    i = cuda.grid(1)
    if x[i] > 0:
        found[count[0]] = x[i]  # next
        count[0] += 1  # counts


@cuda.jit
def append_atomically(x, found, count):
    i = cuda.grid(1)
    if x[i] > 0:
        found[cuda.atomic.add(count, 0, 1)] = x[i]  # next


@cuda.jit
def sum_in_any_order(x, total):
    cuda.atomic.add(total, 0, x[cuda.grid(1)])  # adds


@cuda.jit
def histogram(x, bins):
    cuda.atomic.add(bins, x[cuda.grid(1)], 1)  # counts


@cuda.jit
def histogram_read_early(x, bins, y):
    i = cuda.grid(1)
    cuda.atomic.add(bins, x[i], 1)  # counts
    y[i] = bins[x[i]]  # and reads


@cuda.jit
def stencil(x, y):
    i = cuda.grid(1)
    if 0 < i < x.size - 1:
        y[i] = (x[i - 1] + x[i + 1]) / 2  # neighbours


@cuda.jit
def fails_in_other_orders(x, y):
    i = cuda.threadIdx.x
    if i == 0:
        x[0] = 1
    if x[0] == 0:
        y[i + N] = 1  # too far
    y[i] = 1


# --- warps: masks are of lanes, their lowest bit lane 0


@cuda.jit
def lanes_unsynced(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]  # fills
    y[i] = tile[i ^ 1]  # swaps


@cuda.jit
def lanes_synced(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncwarp()
    y[i] = tile[i ^ 1]


@cuda.jit
def other_warp(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]  # fills
    cuda.syncwarp()
    y[i] = tile[i ^ 32]  # of the other warp


@cuda.jit
def warp_sum_hasty(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncwarp()
    distance = 16
    while distance > 0:
        tile[i] += tile[i ^ distance]  # while its partner writes
        cuda.syncwarp()
        distance //= 2
    y[i] = tile[i]


@cuda.jit
def handed_on(y, late):
    note = cuda.shared.array(1, int32)
    i = cuda.threadIdx.x
    if i == 0 and not late:
        note[0] = 7
    if i < 2:
        cuda.syncwarp(0b011)
    if i == 0 and late:
        note[0] = 7  # after the barrier
    if 0 < i < 3:
        cuda.syncwarp(0b110)
    if i == 2:
        y[0] = note[0]  # in the end


@cuda.jit
def half_warps(x, y, reach):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]  # fills
    if i % 32 < 16:
        cuda.syncwarp(0x0000FFFF)
    else:
        cuda.syncwarp(0xFFFF0000)
    y[i] = tile[i ^ reach]  # in reach


@cuda.jit
def warp_sum(x, y):
    tile = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncwarp()
    distance = 16
    while distance > 0:
        value = tile[i ^ distance]
        cuda.syncwarp()
        tile[i] += value
        cuda.syncwarp()
        distance //= 2
    y[i] = tile[i]
