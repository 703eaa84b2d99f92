"""Tiled convolution, backward: both gradients as implicit GEMM. float32.

The formulas and shapes are those of `layers/conv.py`, tiles and threads those of `tiled.py`.

**dL/dx**, for stride 1, is itself a convolution of dL/dy:

    dx[n, h, w, c] = Σ_{r, s, k} dy[n, h + before − r, w + before − s, k] · w[k, r, s, c]

As r rises, the row of dy falls. So the filters are flipped (rotated by 180°) and their channel axes
exchanged, flipped[c, r, s, k] = w[k, R − 1 − r, S − 1 − s, c] within a group, once a step; then the
forward kernel computes dx, with R − 1 − before rows of padding. With another stride only every
stride-th (r, s) meets an output, which would break up contiguous runs: those layers use the direct
kernel.

**dL/dw** is a GEMM whose K is the number of output pixels:

    dw[m, n] = Σ_k dy[k, m] · a[k, n]           for each group; a as in `tiled.py`

    M   filters of the group                    BM = 64
    N   values (r, s, c) of a filter            BN = 128
    K   output pixels (image, p, q)             BK = 8

The output is small and K is long (conv1 has 34,848 weights, and 387,200 output pixels at batch
128), so K is split (split-K): a block computes a tile of dw over *one split* of K, and writes its
partial sums to a workspace (splits, size of dw). A second kernel adds the partial sums in order.
The number of splits depends on the shapes alone, so results are bitwise reproducible.

Both operands are contiguous along M and N in memory, so k-tiles are stored as they are loaded.
"""

from numba import float32, int32

from layers.device import cuda, grid_for, grid_of
from layers.fast.conv.ptx import copy_scalar, copy_vec4
from layers.fast.conv.tile import (
    BK,
    BUFFER_STRIDE,
    OUTSIDE,
    SUMS,
    THREADS,
    can_vectorize,
    check_sizes,
    multiply_k_tile,
    store_tile,
    within,
)
from layers.fast.conv.tiled import tiled_forward
from layers.fast.reductions import sum_parts

BM, BN = 64, 128

# Shared memory is [buffer][A = dy, then B = a][k][column]; the 16 put the rows that the halves of a
# warp store into different banks.
A_STRIDE, B_STRIDE = BM + 16, BN + 16
B_OFFSET = BK * A_STRIDE
TILES = BUFFER_STRIDE + B_OFFSET + BK * B_STRIDE

BLOCKS, MOST_SPLITS = 1024, 128
"""About how many blocks a launch should have: several for each multiprocessor of a large GPU."""

MIN_SPLIT = 256
"""Output pixels of a split, at least: writing the partial sums should be cheap beside computing
them."""


# --- dL/dx
#
# One thread owns one element of `flipped`, k fastest: coalesced writes. Its reads are R · S · C /
# groups elements apart, each in another sector; filters are small beside images.


@cuda.jit
def flip_filters_kernel(w, flipped, groups):
    index = cuda.grid(1)
    if index >= flipped.size:
        return
    k = index % flipped.shape[3]
    s = index // flipped.shape[3] % flipped.shape[2]
    r = index // (flipped.shape[3] * flipped.shape[2]) % flipped.shape[1]
    c = index // (flipped.shape[3] * flipped.shape[2] * flipped.shape[1])
    filters_per_group = w.shape[0] // groups
    group = c // w.shape[3]
    from_r, from_s = flipped.shape[1] - 1 - r, flipped.shape[2] - 1 - s
    flipped[c, r, s, k] = w[group * filters_per_group + k, from_r, from_s, c % w.shape[3]]


def tiled_input_gradient(dy, w, dx, before, groups, buffer):
    """dx (N, H, W, C) from dy (N, P, Q, K), for stride 1; `buffer` is a layer's."""
    filters, size, _, channels_per_group = w.shape
    shape = channels_per_group * groups, size, size, filters // groups
    flipped = buffer("flipped filters", shape)
    flip_filters_kernel[grid_for(flipped.size)](w, flipped, groups)
    tiled_forward(dy, flipped, None, dx, 1, size - 1 - before, groups)


# --- dL/dw
#
# All arrays are flat. grid (tiles of dw, groups, splits). `split_k`: output pixels of a split, a
# multiple of BK. Neighbouring threads load neighbouring filters of dy and values of x, and a warp
# writes 32 neighbouring values of 4 filters at a time: coalesced. Each partial sum is written by
# the thread that has it: no races, no atomics.


@cuda.jit(device=True, inline="always")
def advance_pixel(n, p, q, rows, columns):
    """(n, p, q) of the output pixel BK further on."""
    q = int32(q + BK)
    while q >= columns:
        q = int32(q - columns)
        p = int32(p + 1)
        if p == rows:
            p = int32(0)
            n = int32(n + 1)
    return n, p, q


def make_filter_gradient(name, vec):
    """The kernel called `name`; vec: floats of a load, 4 (vectorized) or 1 (scalar)."""
    lanes = THREADS // BK  # threads that load one row of a k-tile
    step = lanes * vec
    a_loads, b_loads = BM // step, BN // step
    a_values, b_values = a_loads * vec, b_loads * vec
    copy = copy_vec4 if vec == 4 else copy_scalar

    def kernel(
        x, dy, partial, height, width, channels, rows, columns, filters, size, stride, before,
        groups, split_k,
    ):  # fmt: skip
        tiles = cuda.shared.array(TILES, float32, alignment=16)
        sums = cuda.local.array(SUMS, float32)
        a_regs = cuda.local.array(a_values, float32)
        b_regs = cuda.local.array(b_values, float32)
        tap_row = cuda.local.array(b_loads, int32)
        tap_column = cuda.local.array(b_loads, int32)
        t = cuda.threadIdx.x & (THREADS - 1)
        group, split = cuda.blockIdx.y, cuda.blockIdx.z
        filters_per_group, channels_per_group = filters // groups, channels // groups
        depth = size * size * channels_per_group
        tiles_n = (depth + BN - 1) // BN
        first_filter = cuda.blockIdx.x // tiles_n * BM
        first_value = cuda.blockIdx.x % tiles_n * BN

        # Thread t loads row t // lanes of each k-tile, one output pixel. It loads the same filters
        # and values each time, so the offsets of its values in the window stay the same.
        load_row = t // lanes
        load_column = t % lanes * vec
        for i in range(b_loads):
            value = first_value + load_column + step * i
            r, s = value // (size * channels_per_group), value // channels_per_group % size
            tap_row[i] = r if value < depth else OUTSIDE
            tap_column[i] = s * channels + group * channels_per_group + value % channels_per_group
        k = int32(split * split_k + load_row)
        end = int32(min((split + 1) * split_k, dy.size // filters))
        n, p, q = int32(k // (rows * columns)), int32(k // columns % rows), int32(k % columns)
        first_load = first_filter + load_column
        loads_left = int32((filters_per_group - first_load + step - 1) // step)
        dy_offset = int32(k * filters + group * filters_per_group + first_load)
        dy_step = int32(BK * filters)
        line, pixel = int32(width * channels), int32(channels)
        y_rows, y_columns = int32(rows), int32(columns)
        a_store = int32(load_row * A_STRIDE + load_column)
        b_store = int32(B_OFFSET + load_row * B_STRIDE + load_column)

        # A warp multiplies 32 filters by 64 values (see `add_outer_product`).
        lane = t % 32
        row = t // 64 * 32 + lane // 8 * 4
        column = t // 32 % 2 * 64 + lane % 8 * 4
        a_read = int32(BUFFER_STRIDE + row)
        b_read = int32(BUFFER_STRIDE + B_OFFSET + column)
        for i in range(SUMS):
            sums[i] = float32(0)

        num_k_tiles = int32(split_k // BK)
        k_tile = int32(-1)  # the first round only loads
        while k_tile < num_k_tiles:
            # Load the next k-tile into registers.
            for i in range(a_loads):
                for j in range(vec):
                    a_regs[vec * i + j] = float32(0)
                if k < end and i < loads_left:
                    copy(a_regs, vec * i, dy, int32(dy_offset + step * i))
            top = int32(p * stride - before)
            left = int32((q * stride - before) * pixel)
            for i in range(b_loads):
                h, offset = int32(top + tap_row[i]), int32(left + tap_column[i])
                for j in range(vec):
                    b_regs[vec * i + j] = float32(0)
                if k < end and within(h, height) and within(offset, line):
                    copy(b_regs, vec * i, x, int32((n * height + h) * line + offset))
            k = int32(k + BK)
            dy_offset = int32(dy_offset + dy_step)
            n, p, q = advance_pixel(n, p, q, y_rows, y_columns)

            # Multiply the current k-tile.
            if k_tile >= 0:
                multiply_k_tile(tiles, a_read, A_STRIDE, b_read, B_STRIDE, sums)
            # Store the loaded k-tile in the other buffer.
            for i in range(a_loads):
                copy(tiles, a_store + step * i, a_regs, vec * i)
            for i in range(b_loads):
                copy(tiles, b_store + step * i, b_regs, vec * i)
            # Wait for the other threads.
            cuda.syncthreads()
            # Swap buffers.
            a_store, b_store = int32(a_store ^ BUFFER_STRIDE), int32(b_store ^ BUFFER_STRIDE)
            a_read, b_read = int32(a_read ^ BUFFER_STRIDE), int32(b_read ^ BUFFER_STRIDE)
            k_tile = int32(k_tile + 1)

        first = (split * filters + group * filters_per_group) * depth
        row, column = first_filter + row, first_value + column
        store_tile(sums, partial, row, filters_per_group, depth, column, depth, first)

    kernel.__name__ = kernel.__qualname__ = name
    return cuda.jit(kernel)


tiled_filter_vectorized_kernel = make_filter_gradient("tiled_filter_vectorized_kernel", 4)
tiled_filter_scalar_kernel = make_filter_gradient("tiled_filter_scalar_kernel", 1)


# --- launch


def choose_split_k(pixels, tiles, bk=BK):
    """(splits, output pixels of a split) for `tiles` blocks in each split.

    `bk`: output pixels of a k-tile; a split is a multiple of it.
    """
    splits = max(1, min(BLOCKS // tiles, pixels // MIN_SPLIT, MOST_SPLITS))
    split_k = -(-pixels // (splits * bk)) * bk
    return -(-pixels // split_k), split_k


def tiled_filter_gradient(x, dy, dw, stride, before, groups, buffer):
    """dw (K, R, S, C / groups) from x and dy; `buffer` is a layer's."""
    check_sizes(x, dy)
    _, height, width, channels = x.shape
    _, rows, columns, filters = dy.shape
    size = dw.shape[1]
    vectorized = can_vectorize(groups, channels, filters, x, dy)
    kernel = tiled_filter_vectorized_kernel if vectorized else tiled_filter_scalar_kernel
    tiles = -(-filters // groups // BM) * -(-dw[0].size // BN)
    splits, split_k = choose_split_k(dy.size // filters, tiles * groups)
    partial = buffer("partial sums of dw", (splits, dw.size))
    kernel[grid_of((tiles, groups, splits), THREADS)](
        *(x.reshape(-1), dy.reshape(-1), partial.reshape(-1), height, width, channels),
        *(rows, columns, filters, size, stride, before, groups, split_k),
    )
    sum_parts(partial, dw.reshape(-1))
