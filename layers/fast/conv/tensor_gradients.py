"""Tensor-core convolution: the gradient of the filters, in TF32 or BF16.

    dw[m, n] = Σ_k dy[k, m] · a[k, n]           for each group; a as in `tiled.py`

    M   filters of the group                    BM = 128 or 64
    N   values (r, s, c) of a filter            BN = 128
    K   output pixels (image, p, q)             BK = 64 bytes: 16 in TF32, 32 in BF16

`tensor_core.py` holds the other two directions; types, tiles and the pipeline are the same. A tile
is called after forward's, of which it is the transpose: "128x64" is 64 filters by 128 values. The
difference is that neither operand is contiguous along K: what is contiguous are filters, and values
of a filter.

* A block of 128 threads computes a tile of dw for one split of K (`tiled_gradients.py` explains
  split-K). A warp has 64 × 64 of it, or 64 × 32 of the smaller one.
* Values are taken in the order of `tensor_tile.taps_first`, so that most values of a tile belong to
  other taps of the same channels: as the window moves on, they are read again from the L1 cache.
* k-tiles are stored as they are loaded: a row for each output pixel, filters of dy in the first
  part, values of a in the second. So a thread copies for one pixel of each k-tile, always the same
  filters and values, whose offsets in the window stay the same.
* A fragment has output pixels along its rows. In BF16 `ldmatrix_x4_trans` transposes while it
  loads; TF32 has no such instruction, and lanes read their words one by one.

A pixel past the end of a split is a copy of 0 bytes, and so is one outside of the image; these
zeros are multiplied like any number. Partial sums are float32, and a second kernel adds them in
order. The number of splits depends on the shapes alone, so the bits of the result do not depend on
the tile.
"""

from functools import partial

from numba import float32, int32, uint32

from layers.device import cuda, grid_of
from layers.fast.conv.ptx import (
    copy_scalar,
    cp_async,
    cp_async_commit_group,
    cp_async_l1,
    cp_async_wait_group,
)
from layers.fast.conv.space_to_depth import choose_side, filters_from_s2d, image_to_s2d, s2d_size
from layers.fast.conv.tensor_core import has_whole_chunks
from layers.fast.conv.tensor_gradient_tile import multiply_bf16, multiply_tf32, skip_chunks
from layers.fast.conv.tensor_tile import (
    CHUNK,
    L1,
    STAGES,
    check_sizes,
    chunk_elements,
    k_word_bf16,
    k_word_tf32,
    kernel_kind,
    kind_of,
    next_stage,
    quotient,
    taps_first,
)
from layers.fast.conv.tile import OUTSIDE, within
from layers.fast.conv.tile_table import TILES, ask_for_shared_memory, choose_tile, layer_key
from layers.fast.conv.tiled_gradients import choose_split_k
from layers.fast.reductions import sum_parts

BN = 128

THREADS = 128


# --- values


@cuda.jit(device=True, inline="always")
def tap_of(value, taps, tap_channels):
    """(tap, channel) of a value: all taps of `tap_channels` channels, then those of the next."""
    block = quotient(value, taps * tap_channels)
    rest = int32(value - block * taps * tap_channels)
    tap = quotient(rest, tap_channels)
    return tap, int32(block * tap_channels + rest - tap * tap_channels)


@cuda.jit(device=True, inline="always")
def store_sums(sums, partial, value, sizes):
    """A thread's sums are two neighbours of each eight values, from `value` on, of each eighth
    filter. `first`: where the first filter's row of `partial` begins."""
    first, filters_left, depth, taps, tap_channels = sizes
    channels = quotient(depth, taps)
    for j in range(4):
        tap, channel = tap_of(value + 8 * j, taps, tap_channels)
        at = first + tap * channels + channel
        for i in range(8):
            if 8 * i < filters_left and value + 8 * j < depth:
                for e in range(2):
                    number = 4 * (4 * (i // 2) + j) + 2 * (i % 2) + e
                    copy_scalar(partial, at + 8 * i * depth + e, sums, number)


# --- kernel
#
# All arrays are flat. grid (tiles of dw, groups, splits); tiles of one split are neighbours, so
# that their k-tiles are in the cache. `split_k`: output pixels of a split, a multiple of BK;
# `step_n`, `step_p`, `step_q`: from a pixel to the one BK further on; dy has rows of `dy_filters`,
# of which those beyond `filters` are zeros. A row of x or dy is copied by 4 to 16 neighbouring
# lanes, 64 bytes or more at a time: whole sectors. Each element of `partial` is written by the
# thread that has its sum: no races, no atomics; four lanes fill a sector.


def make_filter_gradient(name, bm, per_chunk, product):
    """The kernel called `name`, for `per_chunk` numbers in a chunk; `product`: a `multiply_...`."""
    bk = 4 * per_chunk
    warp_columns = bm // 2
    threads = THREADS
    lanes = threads // bk
    dy_words, a_words = (numbers // per_chunk * CHUNK for numbers in (bm, BN))
    dy_loads, a_loads = (numbers // per_chunk // lanes for numbers in (bm, BN))
    a_begin = bk * dy_words
    stage = a_begin + bk * a_words
    words = STAGES * stage
    warps_n = BN // warp_columns
    copy = cp_async_l1 if L1 else cp_async
    k_word = k_word_tf32 if per_chunk == 4 else k_word_bf16
    fragments, multiply_k_tile = product(dy_words, a_words, warp_columns)

    def kernel(
        x, dy, partial, height, width, channels, rows, columns, filters, dy_filters, size, stride,
        before, groups, split_k, step_n, step_p, step_q, tap_channels,
    ):  # fmt: skip
        tiles = cuda.shared.array(words, uint32, alignment=16)
        sums = cuda.local.array(64, float32)  # of 32 values
        more_sums = cuda.local.array(64, float32)  # and of the next 32, if a warp has 64
        tap_row = cuda.local.array(a_loads, int32)
        tap_column = cuda.local.array(a_loads, int32)
        tap_offset = cuda.local.array(a_loads, int32)
        dy_end = cuda.local.array(dy_loads, int32)
        t = cuda.threadIdx.x & (threads - 1)
        group, split = cuda.blockIdx.y, cuda.blockIdx.z
        channels_per_group = channels // groups
        filters_per_group = filters // groups
        depth = size * size * channels_per_group
        tiles_n = (depth + BN - 1) // BN
        tile_m = quotient(cuda.blockIdx.x, tiles_n)
        first_filter = tile_m * bm
        first_value = (cuda.blockIdx.x - tile_m * tiles_n) * BN
        begin = split * split_k
        end = int32(min(begin + split_k, dy.size // dy_filters))

        # Thread t copies for pixel t // lanes of each k-tile: chunks t % lanes, + lanes, ...
        load_row, load_chunk = t // lanes, t % lanes
        for i in range(a_loads):
            value = first_value + per_chunk * (load_chunk + lanes * i)
            tap, channel = tap_of(value, size * size, tap_channels)
            r = quotient(tap, size)
            s = tap - r * size
            tap_row[i] = r if value < depth else OUTSIDE
            tap_column[i] = s
            channel += group * channels_per_group
            tap_offset[i] = (r * width + s) * channels + channel
        for i in range(dy_loads):
            m = first_filter + per_chunk * (load_chunk + lanes * i)
            dy_end[i] = end if m < filters_per_group else 0
        k = int32(begin + load_row)
        line = quotient(k, columns)
        n = quotient(line, rows)
        p, q = int32(line - n * rows), int32(k - line * columns)
        dy_offset = int32(k * dy_filters + group * (dy_filters // groups) + first_filter)
        dy_offset = int32(dy_offset + per_chunk * load_chunk)
        y_rows, y_columns = int32(rows), int32(columns)
        dy_store = int32(k_word(load_row, load_chunk, dy_words))
        a_store = int32(a_begin + k_word(load_row, load_chunk, a_words))

        # Where the fragments of this warp begin.
        lane, warp = t % 32, t // 32
        row, column = warp // warps_n * 64, warp % warps_n * warp_columns
        dy_read, a_read = fragments(lane, row, column)
        dy_read, a_read = int32(dy_read), int32(a_begin + a_read)
        for i in range(64):
            sums[i] = more_sums[i] = float32(0)
        read = int32(0)
        num_k_tiles = int32((end - begin + bk - 1) // bk)
        k_tile = int32(-2)  # the first two rounds only fill the pipeline
        while k_tile < num_k_tiles:
            # Wait for the current k-tile's stage.
            if k_tile >= 0:
                cp_async_wait_group(1)
                cuda.syncthreads()
            # Issue cp.async for the k-tile two ahead.
            top, left = int32(p * stride - before), int32(q * stride - before)
            base = int32(((n * height + top) * width + left) * channels)
            for i in range(a_loads):
                h, column_ = top + tap_row[i], left + tap_column[i]
                inside = (k < end) & within(h, height) & within(column_, width)
                word = skip_chunks(a_store, lanes * i)
                copy(tiles, word, x, int32(base + tap_offset[i]), inside)
            for i in range(dy_loads):
                word = skip_chunks(dy_store, lanes * i)
                cp_async(tiles, word, dy, dy_offset + per_chunk * lanes * i, k < dy_end[i])
            cp_async_commit_group()
            # Advance to the next k-tile.
            a_store, dy_store = next_stage(a_store, stage), next_stage(dy_store, stage)
            k = int32(k + bk)
            dy_offset = int32(dy_offset + bk * dy_filters)
            n, p, q = int32(n + step_n), int32(p + step_p), int32(q + step_q)
            if q >= y_columns:
                q = int32(q - y_columns)
                p = int32(p + 1)
            if p >= y_rows:
                p = int32(p - y_rows)
                n = int32(n + 1)

            # Multiply the current k-tile.
            if k_tile >= 0:
                multiply_k_tile(tiles, int32(read + dy_read), int32(read + a_read), sums, more_sums)
                read = next_stage(read, stage)
            k_tile = int32(k_tile + 1)
        cp_async_wait_group(0)

        # Store the partial sums.
        m = first_filter + row + lane // 4
        first = (split * filters + group * filters_per_group + m) * depth
        sizes = first, filters_per_group - m, depth, size * size, tap_channels
        value = first_value + column + 2 * (lane % 4)
        store_sums(sums, partial, value, sizes)
        if warp_columns == 64:
            store_sums(more_sums, partial, value + 32, sizes)

    kernel.__name__ = kernel.__qualname__ = name
    return cuda.jit(kernel)


PRODUCTS = {
    "tf32": (4, multiply_tf32),
    "tf32_rounded": (4, partial(multiply_tf32, rounds=False)),
    "bf16": (8, multiply_bf16),
}
"""By the kind of operands: numbers in a chunk, and the product of a k-tile."""

KERNELS = {
    (kind, tile): make_filter_gradient(f"tensor_filter_{tile}_{kind}_kernel", bm, *product)
    for kind, product in PRODUCTS.items()
    for tile, bm in TILES.items()
}
# By name as well, like every other kernel.
globals().update({kernel.__name__: kernel for kernel in KERNELS.values()})


# --- launch


def tensor_filter_gradient(
    x, dy, dw, stride, before, groups, buffer, tile=None, x_s2d=None, rounded=(False, False),
    x_shape=None,
):  # fmt: skip
    """dw (K, R, S, C / groups), float32, from x (N, H, W, C) and dy (N, P, Q, K).

    x and dy both float32 (TF32) or both uint16 (BF16); `buffer`: the layer's. tile: "128x128",
    "128x64", or None for `choose_tile`'s. x_s2d: what `tensor_forward` returned for this x, if it
    ran. rounded: x and dy are, to TF32. x_shape: (N, H, W, C) where x is x_s2d. ValueError for too
    large arrays.
    """
    x_shape = x_shape or x.shape
    key = layer_key("filter gradient", kind_of(x), x_shape, dw.shape, stride, before, groups)
    filters, size, _, channels = dw.shape
    out, side = dw, 1
    x_is_rounded, dy_is_rounded = rounded
    if x.shape != x_shape or not has_whole_chunks(x, groups):
        side = choose_side(size, stride, channels, chunk_elements(x))
        if x_s2d is None:
            x_s2d = image_to_s2d("x", x, dy.shape, size, stride, side, before, groups, buffer)
        x, x_is_rounded = x_s2d, True
        size, stride, before = s2d_size(size, side), stride // side, 0
        shape = filters, size, size, x.shape[3] // groups
        out = buffer("dw, space-to-depth", shape, dw.dtype)
    if not has_whole_chunks(dy, groups):
        dy = image_to_s2d("dy", dy, dy.shape, 1, 1, 1, 0, groups, buffer)
        dy_is_rounded = True
    check_sizes(x, dy)
    _, height, width, channels = x.shape
    _, rows, columns, dy_filters = dy.shape

    filters_per_group, tiles_n = filters // groups, -(-out[0].size // BN)
    large = -(-filters_per_group // TILES["128x128"]) * tiles_n * groups
    bk = 4 * chunk_elements(x)
    splits, split_k = choose_split_k(dy.size // dy_filters, large, bk)
    tile = tile or choose_tile(key, filters_per_group, tiles_n * groups * splits)
    sums = buffer("partial sums of dw", (splits, out.size), dw.dtype)
    grid = -(-filters_per_group // TILES[tile]) * tiles_n, groups, splits
    kind = kernel_kind(x, x_is_rounded and dy_is_rounded)
    kernel = KERNELS[kind, tile]
    ask_for_shared_memory(kernel, tile)
    kernel[grid_of(grid, THREADS)](
        *(x.reshape(-1), dy.reshape(-1), sums.reshape(-1), height, width, channels),
        *(rows, columns, filters, dy_filters, size, stride, before, groups, split_k),
        *(bk // (rows * columns), bk // columns % rows, bk % columns),
        taps_first(x, groups, size) or channels // groups,
    )
    sum_parts(sums, out.reshape(-1))
    if out is not dw:
        filters_from_s2d(out, dw, side)
