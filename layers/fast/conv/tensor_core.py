"""Convolution, rung 3: the products on tensor cores, in TF32 or BF16, added in float32.

Formulas, shapes and names are those of `layers/conv.py`; the matrices, which are never
written down, those of `tiled.py`:

    y[m, k] = b[k] + Σ_d a[m, d] · w[k, d]      m = (n, p, q), d = (r, s, c), for each group

What rung 2 lacks are the instructions. A warp multiplies a fragment of 16 windows with one of 8
filters, over 8 (TF32) or 16 (BF16) values of d, by a single one (`mma.py`), and nothing else in the
loop may then take long:

* a block computes a tile of y, 128 windows × 128 filters (the *large* one, 256 threads), or 64
  (*small*, 128 threads). A warp has 64 × 32 of it, a thread 64 sums: four of each 16 × 8;
* slices go from global to shared memory without passing through registers (`copy_async`). Three
  stages: one is multiplied, the next two are on their way;
* `load_matrices` takes four fragments' parts out of shared memory at a time. `tensor_tile.py` tells
  how slices lie there.

A place outside of the image is a copy of 0 bytes, which leaves zeros. Only whole chunks of 16 bytes
are copied: layers whose channels do not fit go through `blocks.py` first.

float32 arrays are multiplied as TF32, rounded as they come out of shared memory; uint16 arrays are
bfloat16, and are written as such. Parameters are float32; `blocks.py` rounds the filters, once for
a step. The order of all sums is fixed, and does not depend on the tile: the same bits every time.

dL/dx is a convolution of stride 1 with filters that are turned around, and so is that of a layer
with a stride, once it is in blocks.
"""

from numba import float32, int32, uint32

from layers.device import cuda, grid_of
from layers.fast.bfloat16 import widen
from layers.fast.conv.ptx import (
    commit_copies,
    copy_async,
    is_aligned,
    load8,
    store1,
    store8,
    wait_copies,
)
from layers.fast.conv.space_to_depth import (
    blocks_shape,
    choose_side,
    filter_blocks,
    image_blocks,
    image_from_blocks,
    turned_blocks,
)
from layers.fast.conv.tensor_tile import (
    ROW,
    STAGES,
    WINDOWS,
    check_sizes,
    kind_of,
    multiply_bf16,
    multiply_tf32,
    next_stage,
    next_term,
    per_chunk,
    quotient,
    row_word,
    within,
)
from layers.fast.conv.tile import NOWHERE
from layers.fast.conv.tile_table import TILES, choose_tile, layer_key

THREADS_PER_FILTER = 2
"""Of a block, for each filter of its tile."""

BIAS, RELU, MASK = 1, 2, 4
"""What a kernel does with its sums before it stores them, as a sum of these."""


# --- kernel
#
# All arrays are flat. grid (tiles of y, groups); tiles of the same windows are neighbours, so that
# their slices of x are in the cache. Thread t copies chunk t % 4 of rows t // 4 + ... of both
# slices: four lanes take 64 bytes of a window or filter, two whole sectors. Each y[m, k] is written
# by the thread that has its sum: no races, no atomics. Filters lie in the slice in such an order
# that a thread's sums of one window are those of eight neighbouring filters: it stores them by one
# or two instructions, and four lanes store 64 or 128 bytes.


def make_forward(name, tile_filters, per, multiply):
    """The kernel called `name`; per: numbers in a chunk; multiply: one of the device functions."""
    threads = THREADS_PER_FILTER * tile_filters
    apart = threads // 4
    stage = (WINDOWS + tile_filters) * ROW
    words = STAGES * stage
    slice_depth = 4 * per
    own_windows, own_filters = WINDOWS // apart, tile_filters // apart
    warps_across = tile_filters // 32

    def kernel(
        x, w, b, y, mask, height, width, channels, rows, columns, filters, size, stride, before,
        groups, then,
    ):  # fmt: skip
        tiles = cuda.shared.array(words, uint32, alignment=16)
        sums = cuda.local.array(64, float32)
        corner = cuda.local.array(own_windows, int32)
        top = cuda.local.array(own_windows, int32)
        left = cuda.local.array(own_windows, int32)
        w_at = cuda.local.array(own_filters, int32)
        t = int32(cuda.threadIdx.x & (threads - 1))
        group = int32(cuda.blockIdx.y)
        mine, run = quotient(filters, groups), quotient(channels, groups)
        across = quotient(mine + tile_filters - 1, tile_filters)
        first_window = quotient(cuda.blockIdx.x, across)
        first_filter = int32((cuda.blockIdx.x - first_window * across) * tile_filters)
        first_window = int32(first_window * WINDOWS)
        windows = quotient(y.size, filters)
        depth = int32(size * size * run)
        first_channel = int32(group * run)
        runs = int32(size)
        if groups == 1:
            run, runs = int32(size * run), int32(1)
        line = int32(width * channels)

        fetch_row, fetch_chunk = int32(t // 4), int32(t % 4)
        for i in range(own_windows):
            m = int32(first_window + fetch_row + apart * i)
            n_p = quotient(m, columns)
            n = quotient(n_p, rows)
            h = int32((n_p - n * rows) * stride - before)
            left[i] = ((m - n_p * columns) * stride - before) * channels + first_channel
            corner[i] = (n * height + h) * line + left[i]
            top[i] = h if m < windows else NOWHERE
        # Row 8 j + i of each 32 holds filter 4 i + j; beyond the last filter it is that one again,
        # as nobody asks for its products.
        filter_ = int32(fetch_row // 32 * 32 + fetch_row % 8 * 4 + fetch_row % 32 // 8)
        d = int32(fetch_chunk * per)
        for i in range(own_filters):
            k = min(first_filter + filter_ + apart * i, mine - 1)
            w_at[i] = (group * mine + k) * depth + d
        r, s, c = next_term(int32(0), int32(0), int32(0), d, run, runs, size)

        lane, warp = int32(t % 32), int32(t // 32)
        warp_row, warp_column = warp // warps_across * 64, warp % warps_across * 32
        to = int32(row_word(fetch_row, fetch_chunk))
        a_from = int32(row_word(warp_row + lane % 16, lane // 16))
        b_row = WINDOWS + warp_column + lane // 16 * 8 + lane % 8
        b_from = int32(row_word(b_row, lane // 8 % 2))
        zero = float32(0)
        for i in range(64):
            sums[i] = zero
        turns = int32((depth + slice_depth - 1) // slice_depth)
        turn = int32(-2)
        while turn < turns:
            if turn >= 0:
                wait_copies(1)
                cuda.syncthreads()
            along = int32(s * channels + c)
            ahead = int32(r * line + along)
            for i in range(own_windows):
                inside = within(top[i] + r, height) and within(left[i] + along, line)
                copy_async(tiles, to + apart * ROW * i, x, int32(corner[i] + ahead), inside)
            for i in range(own_filters):
                to_filter = to + (WINDOWS + apart * i) * ROW
                copy_async(tiles, to_filter, w, w_at[i], d < depth)
                w_at[i] += slice_depth
            commit_copies()
            to = next_stage(to, stage)
            d = int32(d + slice_depth)
            r, s, c = next_term(r, s, c, slice_depth, run, runs, size)

            if turn >= 0:
                multiply(tiles, a_from, b_from, sums)
                a_from, b_from = next_stage(a_from, stage), next_stage(b_from, stage)
            turn = int32(turn + 1)
        wait_copies(0)

        column = int32(first_filter + warp_column + lane % 4 * 8)
        finish(sums, b, mask, y, first_window + warp_row + lane // 4, windows, column, mine,
               filters, group * mine, then)  # fmt: skip

    kernel.__name__ = kernel.__qualname__ = name
    return cuda.jit(kernel)


@cuda.jit(device=True, inline="always")
def finish(sums, b, mask, y, row, rows, column, columns, row_stride, first, then):
    # A thread's sums are eight neighbouring filters, from `column` on, of the windows row, row + 8,
    # ..., row + 56. Two windows at a time; then the others' sums move up, as the compiler would not
    # unroll a loop of this length, and an index that is no constant costs the registers.
    bias = cuda.local.array(8, float32)
    for j in range(8):
        bias[j] = b[first + column + j] if then & BIAS and column + j < columns else float32(0)
    there = int32(columns - column)
    whole = there >= 8 and row_stride % 8 == 0 and first % 8 == 0
    at = int32(row * row_stride + first + column)
    ahead = int32(8 * row_stride)
    left = int32(min(rows - row, 64))
    while left > 0:
        finish_row(sums, 0, bias, mask, y, at, there, whole, then)
        finish_row(sums, 2, bias, mask, y, at + ahead, there if left > 8 else 0, whole, then)
        at, left = int32(at + 2 * ahead), int32(left - 16)
        for i in range(48):
            sums[i] = sums[i + 16]


@cuda.jit(device=True, inline="always")
def finish_row(sums, first_sum, bias, mask, y, at, there, whole, then):
    # Of the eight, `there` are to be stored.
    values = cuda.local.array(8, float32)
    signs = cuda.local.array(8, float32)
    zero = float32(0)
    if there > 0:
        for j in range(8):
            values[j] = sums[first_sum + j % 4 * 4 + j // 4] + bias[j]
            if then & RELU and values[j] <= zero:  # not "> 0": a NaN stays one
                values[j] = zero
        if whole:
            if then & MASK:
                load8(signs, 0, mask, at)
                for j in range(8):
                    if signs[j] <= zero:
                        values[j] = zero
            store8(y, at, values, 0)
        else:
            for j in range(8):
                if j < there:
                    if then & MASK and widen(mask[at + j]) <= zero:
                        values[j] = zero
                    store1(y, at + j, values, j)


tensor_forward_large_tf32_kernel, tensor_forward_small_tf32_kernel = (
    make_forward(f"tensor_forward_{tile}_tf32_kernel", filters, 4, multiply_tf32)
    for tile, filters in TILES.items()
)
tensor_forward_large_bf16_kernel, tensor_forward_small_bf16_kernel = (
    make_forward(f"tensor_forward_{tile}_bf16_kernel", filters, 8, multiply_bf16)
    for tile, filters in TILES.items()
)
KERNELS = {
    "tf32": {"large": tensor_forward_large_tf32_kernel, "small": tensor_forward_small_tf32_kernel},
    "bf16": {"large": tensor_forward_large_bf16_kernel, "small": tensor_forward_small_bf16_kernel},
}


# --- launches


def multiply_all(x, w, b, y, stride, before, groups, then, mask, key, tile):
    """One launch: x in whole chunks, w operands of its kind; b is float32, for `then` & BIAS."""
    check_sizes(x, y)
    _, height, width, channels = x.shape
    _, rows, columns, filters = y.shape
    down = -(-y.size // filters // WINDOWS)
    mine = filters // groups
    tile = tile or choose_tile(key, mine, down * -(-mine // TILES["large"]) * groups)
    blocks = down * -(-mine // TILES[tile]), groups
    flat_mask = (y if mask is None else mask).reshape(-1)
    KERNELS[kind_of(x)][tile][grid_of(blocks, THREADS_PER_FILTER * TILES[tile])](
        *(x.reshape(-1), w.reshape(-1), b, y.reshape(-1), flat_mask),
        *(height, width, channels, rows, columns, filters, w.shape[1], stride, before, groups),
        then + (0 if mask is None else MASK),
    )


def takes(array, groups):
    """Whether a group's part of the last axis is whole chunks, which begin at 16 bytes."""
    return array.shape[-1] // groups % per_chunk(array) == 0 and is_aligned(array)


def tensor_forward(x, w, b, y, stride, before, groups, buffer, relu=False, mask=None, tile=None):
    """y = conv(x) + b, or relu of it, and 0 where `mask` is <= 0.

    x (N, H, W, C), y (N, P, Q, K) and mask, which is like y, all float32 (TF32) or all uint16
    (BF16); w and b float32; b None: without; `buffer`: the layer's. tile: "large", "small", or None
    for `choose_tile`'s. y and mask begin at multiples of 16 bytes, as every buffer does. Returns x
    as it was multiplied, x itself or its blocks, for `tensor_filter_gradient`. ValueError for too
    large arrays.
    """
    key = layer_key("forward", kind_of(x), x.shape, w.shape, stride, before, groups)
    then = (0 if b is None else BIAS) + (RELU if relu else 0)
    b = w.reshape(-1) if b is None else b
    side = 1
    if not takes(x, groups):
        size, channels = w.shape[1], x.shape[3] // groups
        side = choose_side(size, stride, channels, per_chunk(x))
        x = image_blocks("x", x, y.shape, size, stride, side, before, groups, buffer)
        stride, before = stride // side, 0
    filters = filter_blocks(w, side, x, buffer)
    multiply_all(x, filters, b, y, stride, before, groups, then, mask, key, tile)
    return x


def tensor_input_gradient(dy, w, dx, stride, before, groups, buffer, mask=None, tile=None):
    """dx (N, H, W, C) from dy (N, P, Q, K), and 0 where `mask`, which is like dx, is <= 0.

    dy, dx and mask all float32 or all uint16; w float32; the rest as in `tensor_forward`.
    """
    key = layer_key("input gradient", kind_of(dy), dx.shape, w.shape, stride, before, groups)
    turned = turned_blocks(w, stride, groups, dy, buffer)
    across = turned.shape[1]
    if stride == 1:
        out, out_mask, padding = dx, mask, across - 1 - before
    else:
        geometry = w.shape[1], stride, stride, groups, per_chunk(dx)
        out = buffer("blocks of dx", blocks_shape(dx.shape, dy.shape, *geometry), dx.dtype)
        out_mask, padding = None, across - 1
    if not takes(dy, groups):
        dy = image_blocks("dy", dy, out.shape, across, 1, 1, padding, groups, buffer)
        padding = 0
    multiply_all(dy, turned, w.reshape(-1), out, 1, padding, groups, 0, out_mask, key, tile)
    if stride > 1:
        image_from_blocks(out, dx, stride, before, groups, mask)
