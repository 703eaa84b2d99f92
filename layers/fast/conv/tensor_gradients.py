"""Convolution, rung 3: the gradient of the filters on tensor cores, in TF32 or BF16.

    dw[k, d] = Σ_m dy[m, k] · a[m, d]           m = (n, p, q), d = (r, s, c), for each group

a is the implicit matrix of `tiled.py`, kinds of numbers and tiles are those of `tensor_core.py`,
which holds the other two directions. What differs is that the sum runs over the windows m, along
which neither matrix has neighbours in memory: neighbours are filters, and values of d.

* A block has a tile of dw, 128 filters × 128 values of d with 256 threads (*large*) or 64 × 128
  with 128 (*small*), for one part of the windows (`tiled_gradients.py` tells why there are parts:
  the matrix is small, and the sum long). A warp has 64 × 32 of it, a thread 64 sums.
* A slice has 16 windows (TF32) or 32 (BF16), and goes into shared memory as it comes: a row for
  each window, dy's filters first, then a's values. So a thread copies for one window of each slice,
  always the same filters and values; where they lie in the pixel's surroundings never changes.
* A fragment wants windows along its rows. In BF16 `load_matrices_across` transposes on the way; in
  TF32, for which no such instruction exists, a lane reads its words one by one.

A window of a part's last slice that is beyond the part is a copy of 0 bytes, and so is a place
outside of the image; their zeros are multiplied like any number. The partial sums are float32 and
are added in order by a second kernel. How many parts there are follows from the shapes alone, so
the bits of the result do not depend on the tile.
"""

from numba import float32, int32, uint32

from layers.device import cuda, grid_of
from layers.fast.conv.mma import load_matrices_across, round_tf32_word
from layers.fast.conv.ptx import commit_copies, copy1, copy_async, wait_copies
from layers.fast.conv.space_to_depth import choose_side, filter_from_blocks, image_blocks, in_blocks
from layers.fast.conv.tensor_core import takes
from layers.fast.conv.tensor_tile import (
    CHUNK,
    STAGES,
    check_sizes,
    kind_of,
    next_stage,
    per_chunk,
    products_bf16,
    products_tf32,
    quotient,
    term_word_bf16,
    term_word_tf32,
    within,
)
from layers.fast.conv.tile import NOWHERE
from layers.fast.conv.tile_table import TILES, choose_tile, layer_key
from layers.fast.conv.tiled_gradients import cut
from layers.fast.reductions import sum_parts

VALUES = 128
"""Columns of a block's tile of dw."""


# --- the product of two slices
#
# A warp's 64 filters are four fragments i, its 32 values four fragments j; a thread's four sums of
# both begin at sums[4 (4 i + j)]. Each function below is given the words of a row of dy and of a
# row of a in shared memory, and makes
#
#     first(lane, row, column)         where this lane's words of the fragments of dy, from filter
#                                      `row` of the tile on, and of a, from value `column` on, begin
#     multiply(tiles, dy, a, sums)     sums += dy · a, with two steps of the slices that begin there
#
# A row's chunks are swizzled within each eight of them; `chunks_on` goes from one to another.


@cuda.jit(device=True, inline="always")
def chunks_on(word, count):
    # From a chunk to the one `count` further on in its row, if adding `count` carries no bit.
    return (word ^ count % 8 * CHUNK) + count // 8 * 8 * CHUNK


def multiply_tf32(dy_words, a_words):
    """Word by word: lane (g, t) reads number g of eight, of terms t and t + 4 of eight."""

    @cuda.jit(device=True, inline="always")
    def first(lane, row, column):
        g, t = lane // 4, lane % 4
        return (
            term_word_tf32(t, row // 4 + g // 4, dy_words) + g % 4,
            term_word_tf32(t, column // 4 + g // 4, a_words) + g % 4,
        )

    @cuda.jit(device=True, inline="always")
    def multiply_step(tiles, dy, a, sums, step):
        rows = cuda.local.array(16, uint32)
        columns = cuda.local.array(8, uint32)
        for half in range(2):
            term = 8 * step + 4 * half
            for i in range(8):
                word = chunks_on(dy, 2 * i) + term * dy_words
                copy1(rows, i // 2 * 4 + 2 * half + i % 2, tiles, word)
            for j in range(4):
                word = chunks_on(a, 2 * j) + term * a_words
                copy1(columns, 2 * j + half, tiles, word)
        for i in range(16):
            round_tf32_word(rows, i)
        for j in range(8):
            round_tf32_word(columns, j)
        products_tf32(rows, columns, sums)

    @cuda.jit(device=True, inline="always")
    def multiply(tiles, dy, a, sums):
        multiply_step(tiles, dy, a, sums, 0)
        multiply_step(tiles, dy, a, sums, 1)

    return first, multiply


def multiply_bf16(dy_words, a_words):
    """Four matrices of eight terms and eight numbers at a time, transposed on the way."""

    @cuda.jit(device=True, inline="always")
    def first(lane, row, column):
        return (
            term_word_bf16(lane // 16 * 8 + lane % 8, row // 8 + lane // 8 % 2, dy_words),
            term_word_bf16(lane % 16, column // 8 + lane // 16, a_words),
        )

    @cuda.jit(device=True, inline="always")
    def multiply_step(tiles, dy, a, sums, step):
        rows = cuda.local.array(16, uint32)
        columns = cuda.local.array(8, uint32)
        term = 16 * step
        for i in range(4):
            word = chunks_on(dy, 2 * i) + term * dy_words
            load_matrices_across(rows, 4 * i, tiles, word)
        for j in range(2):
            word = chunks_on(a, 2 * j) + term * a_words
            load_matrices_across(columns, 4 * j, tiles, word)
        products_bf16(rows, columns, sums)

    @cuda.jit(device=True, inline="always")
    def multiply(tiles, dy, a, sums):
        multiply_step(tiles, dy, a, sums, 0)
        multiply_step(tiles, dy, a, sums, 1)

    return first, multiply


# --- kernel
#
# All arrays are flat. grid (tiles of dw, groups, parts); tiles of one part are neighbours, so that
# their slices are in the cache. `length`: windows of a part, a multiple of a slice's; `images_on`,
# `rows_on`, `columns_on`: from a window to the one a slice further on; dy has rows of `dy_filters`,
# of which those beyond `filters` are zeros. A slice's row of x or dy is copied by 4 to 16
# neighbouring lanes, 64 bytes or more at a time: whole sectors. Each element of `partial` is
# written by the thread that has its sum: no races, no atomics; four lanes fill a sector.


def make_filter_gradient(name, tile_filters, threads, per, product):
    """The kernel called `name`, for `per` numbers in a chunk; `product`: a `multiply_...`."""
    terms = 4 * per
    lanes = threads // terms
    dy_words, a_words = (numbers // per * CHUNK for numbers in (tile_filters, VALUES))
    dy_chunks, a_chunks = (numbers // per // lanes for numbers in (tile_filters, VALUES))
    a_first = terms * dy_words
    stage = a_first + terms * a_words
    words = STAGES * stage
    warps_across = VALUES // 32
    term_word = term_word_tf32 if per == 4 else term_word_bf16
    first_words, multiply = product(dy_words, a_words)

    def kernel(
        x, dy, partial, height, width, channels, rows, columns, filters, dy_filters, size, stride,
        before, groups, length, images_on, rows_on, columns_on,
    ):  # fmt: skip
        tiles = cuda.shared.array(words, uint32, alignment=16)
        sums = cuda.local.array(64, float32)
        down = cuda.local.array(a_chunks, int32)
        right = cuda.local.array(a_chunks, int32)
        ahead = cuda.local.array(a_chunks, int32)
        dy_end = cuda.local.array(dy_chunks, int32)
        t = cuda.threadIdx.x & (threads - 1)
        group, part = cuda.blockIdx.y, cuda.blockIdx.z
        run = channels // groups
        mine = filters // groups
        depth = size * size * run
        across = (depth + VALUES - 1) // VALUES
        down_tiles = quotient(cuda.blockIdx.x, across)
        first_filter = down_tiles * tile_filters
        first_value = (cuda.blockIdx.x - down_tiles * across) * VALUES
        begin = part * length
        end = int32(min(begin + length, dy.size // dy_filters))

        # Thread t copies for window t // lanes of each slice: chunks t % lanes, + lanes, ...
        fetch_m, fetch_chunk = t // lanes, t % lanes
        for i in range(a_chunks):
            d = first_value + per * (fetch_chunk + lanes * i)
            pixel = quotient(d, run)
            r = quotient(pixel, size)
            s = pixel - r * size
            down[i] = r if d < depth else NOWHERE
            right[i] = s
            ahead[i] = (r * width + s) * channels + group * run + d - pixel * run
        for i in range(dy_chunks):
            k = first_filter + per * (fetch_chunk + lanes * i)
            dy_end[i] = end if k < mine else 0
        m = int32(begin + fetch_m)
        line = quotient(m, columns)
        n = quotient(line, rows)
        p, q = int32(line - n * rows), int32(m - line * columns)
        dy_at = int32(m * dy_filters + group * (dy_filters // groups) + first_filter)
        dy_at = int32(dy_at + per * fetch_chunk)
        image_rows, image_columns = int32(rows), int32(columns)

        lane, warp = t % 32, t // 32
        row, column = warp // warps_across * 64, warp % warps_across * 32
        dy_to = int32(term_word(fetch_m, fetch_chunk, dy_words))
        a_to = int32(a_first + term_word(fetch_m, fetch_chunk, a_words))
        dy_from, a_from = first_words(lane, row, column)
        dy_from, a_from = int32(dy_from), int32(a_first + a_from)
        for i in range(64):
            sums[i] = float32(0)
        ready = int32(0)
        turns = int32((end - begin + terms - 1) // terms)
        turn = int32(-2)
        while turn < turns:
            if turn >= 0:
                wait_copies(1)
                cuda.syncthreads()
            h, left = int32(p * stride - before), int32(q * stride - before)
            corner = int32(((n * height + h) * width + left) * channels)
            for i in range(a_chunks):
                inside = (m < end) & within(h + down[i], height) & within(left + right[i], width)
                to = chunks_on(a_to, lanes * i)
                copy_async(tiles, to, x, int32(corner + ahead[i]), inside)
            for i in range(dy_chunks):
                to = chunks_on(dy_to, lanes * i)
                copy_async(tiles, to, dy, dy_at + per * lanes * i, m < dy_end[i])
            commit_copies()
            a_to, dy_to = next_stage(a_to, stage), next_stage(dy_to, stage)
            m = int32(m + terms)
            dy_at = int32(dy_at + terms * dy_filters)
            n, p, q = int32(n + images_on), int32(p + rows_on), int32(q + columns_on)
            if q >= image_columns:
                q = int32(q - image_columns)
                p = int32(p + 1)
            if p >= image_rows:
                p = int32(p - image_rows)
                n = int32(n + 1)

            if turn >= 0:
                multiply(tiles, int32(ready + dy_from), int32(ready + a_from), sums)
                ready = next_stage(ready, stage)
            turn = int32(turn + 1)
        wait_copies(0)

        first = (part * filters + group * mine) * depth
        for i in range(8):
            k = first_filter + row + 8 * i + lane // 4
            for j in range(4):
                d = first_value + column + 8 * j + 2 * (lane % 4)
                if k < mine and d < depth:
                    for e in range(2):
                        value = 4 * (4 * (i // 2) + j) + 2 * (i % 2) + e
                        copy1(partial, first + k * depth + d + e, sums, value)

    kernel.__name__ = kernel.__qualname__ = name
    return cuda.jit(kernel)


def _pair(kind, per, product):
    return tuple(
        make_filter_gradient(
            f"tensor_filter_{tile}_{kind}_kernel", filters, 2 * filters, per, product
        )
        for tile, filters in TILES.items()
    )


tensor_filter_large_tf32_kernel, tensor_filter_small_tf32_kernel = _pair("tf32", 4, multiply_tf32)
tensor_filter_large_bf16_kernel, tensor_filter_small_bf16_kernel = _pair("bf16", 8, multiply_bf16)

KERNELS = {
    "tf32": {"large": tensor_filter_large_tf32_kernel, "small": tensor_filter_small_tf32_kernel},
    "bf16": {"large": tensor_filter_large_bf16_kernel, "small": tensor_filter_small_bf16_kernel},
}


# --- launch


def tensor_filter_gradient(x, dy, dw, stride, before, groups, buffer, tile=None, blocks_of_x=None):
    """dw (K, R, S, C / groups), float32, from x (N, H, W, C) and dy (N, P, Q, K).

    x and dy both float32 (TF32) or both uint16 (BF16); `buffer`: the layer's. tile: "large",
    "small", or None for `choose_tile`'s. blocks_of_x: what `tensor_forward` returned for this x, if
    there was one. ValueError for too large arrays.
    """
    key = layer_key("filter gradient", kind_of(x), x.shape, dw.shape, stride, before, groups)
    filters, size, _, channels = dw.shape
    out, side = dw, 1
    if not takes(x, groups):
        side = choose_side(size, stride, channels, per_chunk(x))
        if blocks_of_x is None:
            blocks_of_x = image_blocks("x", x, dy.shape, size, stride, side, before, groups, buffer)
        x = blocks_of_x
        size, stride, before = in_blocks(size, side), stride // side, 0
        out = buffer("blocks of dw", (filters, size, size, x.shape[3] // groups), dw.dtype)
    if not takes(dy, groups):
        dy = image_blocks("dy", dy, dy.shape, 1, 1, 1, 0, groups, buffer)
    check_sizes(x, dy)
    _, height, width, channels = x.shape
    _, rows, columns, dy_filters = dy.shape

    mine, across = filters // groups, -(-out[0].size // VALUES)
    large = -(-mine // TILES["large"]) * across * groups
    terms = 4 * per_chunk(x)
    parts, length = cut(dy.size // dy_filters, large, terms)
    tile = tile or choose_tile(key, mine, large * parts)
    partial = buffer("parts of dw", (parts, out.size), dw.dtype)
    blocks = -(-mine // TILES[tile]) * across, groups, parts
    KERNELS[kind_of(x)][tile][grid_of(blocks, 2 * TILES[tile])](
        *(x.reshape(-1), dy.reshape(-1), partial.reshape(-1), height, width, channels),
        *(rows, columns, filters, dy_filters, size, stride, before, groups, length),
        *(terms // (rows * columns), terms // columns % rows, terms % columns),
    )
    sum_parts(partial, out.reshape(-1))
    if out is not dw:
        filter_from_blocks(out, dw, side)
