"""Tensor-core convolution: implicit GEMM by mma instructions, in TF32 or BF16, added in float32.

Formulas, shapes and names are those of `layers/conv.py`; M, N and K those of `tiled.py`:

    y[m, n] = b[n] + Σ_k a[m, k] · w[n, k]      k = (r, s, c), for each group

    BM = 128 output pixels; BN = 128 or 64 filters of the group; BK = 64 bytes, 16 values of k in
    TF32 and 32 in BF16

The tiled kernel multiplies one number by another. Here one instruction of a warp multiplies a
fragment of 16 pixels by one of 8 filters, over 8 (TF32) or 16 (BF16) values of k (`mma.py`), so the
rest of the loop has to be as cheap:

* a block computes a 128x128 tile of y (128 threads) or a 128x64 tile (64 threads); a warp has
  64 × 64 of it, four by eight fragments of 16 × 8, and a thread 128 sums. Of the bytes that a warp
  reads from shared memory for a product, a 64 × 32 tile takes three where this takes two;
* k-tiles go from global to shared memory past the registers (`cp_async`), in a pipeline of three
  stages: one is multiplied while the next two are loaded;
* `ldmatrix_x4` loads four matrices of 8 rows at a time for the fragments. `tensor_tile.py`
  describes the layout of shared memory.

A pixel outside of the image is a copy of 0 bytes, which writes zeros. Only whole chunks of 16 bytes
are copied: other layers are rearranged by `space_to_depth.py` first.

K goes through the taps (r, s) of BK channels, then through those of the next BK, if a group's
channels are whole k-tiles: neighbouring taps find their lines in the L1 cache. The filters are
stored in that order. Otherwise all channels of a tap come first.

float32 arrays are multiplied as TF32. Where every element was rounded as it was written
(`steps.py`), the "rounded" kernels multiply it as it is; the others round elements as they leave
shared memory, which is a third of their instructions. uint16 arrays are bfloat16. Parameters are
float32; `space_to_depth.py` rounds the filters, once a step. The order of all sums is fixed, and
does not depend on the tile: results are bitwise reproducible.

dL/dx is a convolution of stride 1 with flipped filters. For a layer with a stride this holds once
it is in space-to-depth form.
"""

from numba import float32, int32, uint32

from layers.device import cuda, grid_of
from layers.fast.conv.ptx import (
    cp_async,
    cp_async_commit_group,
    cp_async_l1,
    cp_async_wait_group,
    is_aligned,
)
from layers.fast.conv.space_to_depth import (
    choose_side,
    filters_to_s2d,
    flipped_filters_s2d,
    image_from_s2d,
    image_to_s2d,
    s2d_shape,
)
from layers.fast.conv.tensor_epilogue import BIAS, MASK, RELU, ROUND, store_sums
from layers.fast.conv.tensor_tile import (
    BM,
    L1,
    ROW,
    STAGES,
    check_sizes,
    chunk_elements,
    kernel_kind,
    kind_of,
    make_multiply_k_tile,
    multiply_fragments_bf16,
    multiply_fragments_tf32,
    next_stage,
    quotient,
    row_word,
    taps_first,
)
from layers.fast.conv.tile import OUTSIDE, advance_k, advance_tap, within
from layers.fast.conv.tile_table import TILES, ask_for_shared_memory, choose_tile, layer_key

# --- kernel
#
# All arrays are flat. grid (tiles of y, groups); tiles of the same pixels are neighbours, so that
# their k-tiles of x are in the cache. Thread t copies chunk t % 4 of rows t // 4, + row_step, ...
# of A and of B: four lanes copy 64 bytes of a row, two whole sectors. Each y[m, n] is written by
# the thread that has its sum: no races, no atomics. Filters are permuted within the k-tile so that
# a thread's sums of one pixel are eight neighbouring filters: it stores them by one or two
# instructions, and four lanes store 64 or 128 bytes.


def make_forward(name, bn, per_chunk, multiply_k_tile):
    """The kernel called `name`; per_chunk: numbers in a chunk; multiply_k_tile: of its type."""
    threads = bn  # a warp for each 64 × 64 of its 128 × BN sums
    row_step = threads // 4
    a_loads, b_loads = BM // row_step, bn // row_step
    stage = (BM + bn) * ROW
    words = STAGES * stage
    bk = 4 * per_chunk
    warps_n = bn // 64
    copy = cp_async_l1 if L1 else cp_async

    def kernel(
        x, w, b, y, mask, height, width, channels, rows, columns, filters, size, stride, before,
        groups, epilogue, taps_first,
    ):  # fmt: skip
        tiles = cuda.shared.array(words, uint32, alignment=16)
        sums = cuda.local.array(64, float32)  # of 32 filters
        more_sums = cuda.local.array(64, float32)  # and of the next 32
        base = cuda.local.array(a_loads, int32)
        top = cuda.local.array(a_loads, int32)
        left = cuda.local.array(a_loads, int32)
        w_offset = cuda.local.array(b_loads, int32)
        t = int32(cuda.threadIdx.x & (threads - 1))
        group = int32(cuda.blockIdx.y)
        filters_per_group, run = quotient(filters, groups), quotient(channels, groups)
        tiles_n = quotient(filters_per_group + bn - 1, bn)
        tile_m = quotient(cuda.blockIdx.x, tiles_n)
        first_filter = int32((cuda.blockIdx.x - tile_m * tiles_n) * bn)
        first_pixel = int32(tile_m * BM)
        pixels = quotient(y.size, filters)
        depth = int32(size * size * run)
        first_channel = int32(group * run)
        num_runs = int32(size)
        if groups == 1 and not taps_first:
            run, num_runs = int32(size * run), int32(1)
        line = int32(width * channels)

        # Where the windows of this thread's rows of A begin.
        load_row, load_chunk = int32(t // 4), int32(t % 4)
        for i in range(a_loads):
            m = int32(first_pixel + load_row + row_step * i)
            n_p = quotient(m, columns)
            n = quotient(n_p, rows)
            h = int32((n_p - n * rows) * stride - before)
            left[i] = ((m - n_p * columns) * stride - before) * channels + first_channel
            base[i] = (n * height + h) * line + left[i]
            top[i] = h if m < pixels else OUTSIDE
        # Row 8 j + i of each 32 rows of B holds filter 4 i + j. Rows past the last filter read it
        # again; their products are discarded.
        k = int32(load_chunk * per_chunk)
        for i in range(b_loads):
            row = int32(load_row + row_step * i)
            filter_ = int32(row // 32 * 32 + row % 8 * 4 + row % 32 // 8)
            n = min(first_filter + filter_, filters_per_group - 1)
            w_offset[i] = (group * filters_per_group + n) * depth + k
        r, s, c = int32(0), int32(0), k
        if not taps_first:
            r, s, c = advance_k(r, s, int32(0), k, run, num_runs, size)
        store = int32(row_word(load_row, load_chunk))

        # Where the fragments of this warp begin.
        lane, warp = int32(t % 32), int32(t // 32)
        warp_row, warp_column = warp // warps_n * 64, warp % warps_n * 64
        a_read = int32(row_word(warp_row + lane % 16, lane // 16))
        b_row = BM + warp_column + lane // 16 * 8 + lane % 8
        b_read = int32(row_word(b_row, lane // 8 % 2))
        zero = float32(0)
        for i in range(64):
            sums[i] = more_sums[i] = zero

        num_k_tiles = int32((depth + bk - 1) // bk)
        k_tile = int32(-2)  # the first two rounds only fill the pipeline
        while k_tile < num_k_tiles:
            # Wait for the current k-tile's stage.
            if k_tile >= 0:
                cp_async_wait_group(1)
                cuda.syncthreads()
            # Issue cp.async for the k-tile two ahead.
            column_offset = int32(s * channels + c)
            tap_offset = int32(r * line + column_offset)
            for i in range(a_loads):
                inside = within(top[i] + r, height) and within(left[i] + column_offset, line)
                a_store = store + row_step * ROW * i
                copy(tiles, a_store, x, int32(base[i] + tap_offset), inside)
            for i in range(b_loads):
                b_store = store + (BM + row_step * i) * ROW
                copy(tiles, b_store, w, w_offset[i], k < depth)
                w_offset[i] += bk
            cp_async_commit_group()
            # Advance to the next k-tile.
            store = next_stage(store, stage)
            k = int32(k + bk)
            if taps_first:
                r, s, c = advance_tap(r, s, c, bk, run, size)
            else:
                r, s, c = advance_k(r, s, c, bk, run, num_runs, size)

            # Multiply the current k-tile.
            if k_tile >= 0:
                multiply_k_tile(tiles, a_read, b_read, sums, more_sums)
                a_read, b_read = next_stage(a_read, stage), next_stage(b_read, stage)
            k_tile = int32(k_tile + 1)
        cp_async_wait_group(0)

        row = int32(first_pixel + warp_row + lane // 4)
        column = int32(first_filter + warp_column + lane % 4 * 8)
        first = int32(group * filters_per_group)
        sizes = pixels, filters_per_group, filters, first, epilogue
        store_sums(sums, b, mask, y, row, column, sizes)
        store_sums(more_sums, b, mask, y, row, int32(column + 32), sizes)

    kernel.__name__ = kernel.__qualname__ = name
    return cuda.jit(kernel)


PRODUCTS = {
    "tf32": (4, make_multiply_k_tile(multiply_fragments_tf32, rounds=True)),
    "tf32_rounded": (4, make_multiply_k_tile(multiply_fragments_tf32)),
    "bf16": (8, make_multiply_k_tile(multiply_fragments_bf16)),
}
"""By the kind of operands: numbers in a chunk, and the product of a k-tile."""

KERNELS = {
    (kind, tile): make_forward(f"tensor_forward_{tile}_{kind}_kernel", bn, *product)
    for kind, product in PRODUCTS.items()
    for tile, bn in TILES.items()
}
# By name as well, like every other kernel.
globals().update({kernel.__name__: kernel for kernel in KERNELS.values()})


# --- launches


def launch_forward(x, w, b, y, stride, before, groups, epilogue, mask, key, tile, rounded):
    """One launch: x in whole chunks, w of its kind and in the order of `taps_first`; b is float32,
    for `epilogue` & BIAS. rounded: x is.
    """
    check_sizes(x, y)
    _, height, width, channels = x.shape
    _, rows, columns, filters = y.shape
    tiles_m = -(-y.size // filters // BM)
    filters_per_group = filters // groups
    tile = tile or choose_tile(key, filters_per_group, tiles_m * groups)
    grid = tiles_m * -(-filters_per_group // TILES[tile]), groups
    flat_mask = (y if mask is None else mask).reshape(-1)
    kernel = KERNELS[kernel_kind(x, rounded), tile]
    ask_for_shared_memory(kernel, tile)
    kernel[grid_of(grid, TILES[tile])](
        *(x.reshape(-1), w.reshape(-1), b, y.reshape(-1), flat_mask),
        *(height, width, channels, rows, columns, filters, w.shape[1], stride, before, groups),
        *(epilogue + (0 if mask is None else MASK), taps_first(x, groups, w.shape[1]) > 0),
    )


def has_whole_chunks(array, groups):
    """Whether a group's part of the last axis is whole chunks, which begin at 16 bytes."""
    return array.shape[-1] // groups % chunk_elements(array) == 0 and is_aligned(array)


def tensor_forward(
    x, w, b, y, stride, before, groups, buffer, relu=False, mask=None, tile=None, rounded=False,
    round_y=False, x_shape=None,
):  # fmt: skip
    """y = conv(x) + b, or its ReLU, and 0 where `mask` is <= 0.

    x (N, H, W, C), y (N, P, Q, K) and mask, which is like y, all float32 (TF32) or all uint16
    (BF16); w and b float32; b None: without a bias; `buffer`: the layer's. tile: "128x128",
    "128x64", or None for `choose_tile`'s. rounded: x is, to TF32; round_y: round y as well.
    x_shape: (N, H, W, C) where x is x_s2d already. y and mask begin at multiples of 16 bytes, as
    every buffer does. Returns x as it was multiplied, x itself or its space-to-depth form, for
    `tensor_filter_gradient`. ValueError for too large arrays.
    """
    x_shape = x_shape or x.shape
    key = layer_key("forward", kind_of(x), x_shape, w.shape, stride, before, groups)
    epilogue = (0 if b is None else BIAS) + (RELU if relu else 0) + (ROUND if round_y else 0)
    b = w.reshape(-1) if b is None else b
    side = 1
    if x.shape != x_shape or not has_whole_chunks(x, groups):
        size, channels = w.shape[1], w.shape[3]
        side = choose_side(size, stride, channels, chunk_elements(x))
        if x.shape == x_shape:
            x = image_to_s2d("x", x, y.shape, size, stride, side, before, groups, buffer)
        stride, before, rounded = stride // side, 0, True
    filters = filters_to_s2d(w, side, x, buffer)
    launch_forward(x, filters, b, y, stride, before, groups, epilogue, mask, key, tile, rounded)
    return x


def tensor_input_gradient(
    dy, w, dx, stride, before, groups, buffer, mask=None, tile=None, rounded=False, round_dx=False
):
    """dx (N, H, W, C) from dy (N, P, Q, K), and 0 where `mask`, which is like dx, is <= 0.

    dy, dx and mask all float32 or all uint16; w float32. rounded: dy is, to TF32; round_dx: round
    dx as well, for stride 1. The rest as in `tensor_forward`.
    """
    key = layer_key("input gradient", kind_of(dy), dx.shape, w.shape, stride, before, groups)
    flipped = flipped_filters_s2d(w, stride, groups, dy, buffer)
    size = flipped.shape[1]
    if stride == 1:
        out, out_mask, padding = dx, mask, size - 1 - before
    else:
        geometry = w.shape[1], stride, stride, groups, chunk_elements(dx)
        out = buffer("dx, space-to-depth", s2d_shape(dx.shape, dy.shape, *geometry), dx.dtype)
        out_mask, padding = None, size - 1
    if not has_whole_chunks(dy, groups):
        dy = image_to_s2d("dy", dy, out.shape, size, 1, 1, padding, groups, buffer)
        padding, rounded = 0, True
    epilogue = ROUND if round_dx else 0
    b = w.reshape(-1)  # not read
    launch_forward(dy, flipped, b, out, 1, padding, groups, epilogue, out_mask, key, tile, rounded)
    if stride > 1:
        image_from_s2d(out, dx, stride, before, groups, mask)
