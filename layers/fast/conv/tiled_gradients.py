"""Convolution, rung 2, backward: the gradients as the same kind of product. float32.

The formulas and shapes are those of `layers/conv.py`, tiles and threads those of
`tiled.py`; here is what differs.

**dL/dx**, for stride 1, is itself a convolution: with h' = H-index of dy, every window row r of
dL/dx[n, h, w, c] = Σ_{r, s, k} dL/dy[n, h + before − r, w + before − s, k] · w[k, r, s, c] is met
in rising order of h' if r runs backwards. So the filters are turned around and their two channel
axes exchanged, turned[c, r, s, k] = w[k, R − 1 − r, S − 1 − s, c] within a group, once for a step;
then the forward kernel does the rest, with R − 1 − before rows of padding. With another stride only
every stride-th (r, s) meets an output, which would break up the runs: such layers stay on rung 1.

**dL/dw** is a product whose sum runs over all windows m = (n, p, q):

    dw[k, d] = Σ_m dy[m, k] · a[m, d]           d = (r, s, c), for each group; a as in `tiled.py`

The matrix is small and the sum long (conv1 has 34,848 weights, and 387,200 windows at batch 128),
so the sum is cut into parts: a block has 64 filters × 128 values of d of *one part*, and writes its
sums into a workspace (parts, size of dw). A second kernel adds the parts in order. How many parts
there are follows from the shapes alone, and so do the bits of the result.

Both slices are read along their rows here, so they go into shared memory as they come.
"""

from numba import float32, int32

from layers.device import cuda, grid_for, grid_of
from layers.fast.conv.ptx import copy1, copy4
from layers.fast.conv.tile import (
    COPY,
    DEPTH,
    NOWHERE,
    THREADS,
    check_sizes,
    multiply,
    takes_wide,
    write,
)
from layers.fast.conv.tiled import tiled_forward
from layers.fast.reductions import sum_parts

FILTERS, VALUES = 64, 128
"""Rows and columns of a block's tile of dw."""

# Shared memory is [copy][dy, then a][m][column]; the 16 put the rows that the halves of a warp
# store into different banks.
A_STRIDE, B_STRIDE = 80, 144
B_FIRST = 640
TILES = 3840

BLOCKS = 1024
"""About how many blocks a launch should have: some for each multiprocessor of a large GPU."""

FEWEST_WINDOWS = 256
"""Of a part: writing its sums down should cost little beside making them."""


# --- dL/dx
#
# One thread for each element of `turned`, k fastest: coalesced writes. It reads elements R · S · C
# / groups apart, each from a sector of its own; filters are small beside images.


@cuda.jit
def turn_filters_kernel(w, turned, groups):
    index = cuda.grid(1)
    if index >= turned.size:
        return
    k = index % turned.shape[3]
    s = index // turned.shape[3] % turned.shape[2]
    r = index // (turned.shape[3] * turned.shape[2]) % turned.shape[1]
    c = index // (turned.shape[3] * turned.shape[2] * turned.shape[1])
    filters = w.shape[0] // groups
    group = c // w.shape[3]
    from_r, from_s = turned.shape[1] - 1 - r, turned.shape[2] - 1 - s
    turned[c, r, s, k] = w[group * filters + k, from_r, from_s, c % w.shape[3]]


def tiled_input_gradient(dy, w, dx, before, groups, buffer):
    """dx (N, H, W, C) from dy (N, P, Q, K), for stride 1; `buffer` is a layer's."""
    filters, size, _, mine = w.shape
    turned = buffer("turned filters", (mine * groups, size, size, filters // groups))
    turn_filters_kernel[grid_for(turned.size)](w, turned, groups)
    tiled_forward(dy, turned, None, dx, 1, size - 1 - before, groups)


# --- dL/dw
#
# All arrays are flat. grid (tiles of dw, groups, parts). `length`: windows of a part, a multiple
# of DEPTH.


@cuda.jit(device=True, inline="always")
def next_window(n, p, q, rows, columns):
    q = int32(q + DEPTH)
    while q >= columns:
        q = int32(q - columns)
        p = int32(p + 1)
        if p == rows:
            p = int32(0)
            n = int32(n + 1)
    return n, p, q


@cuda.jit
def tiled_filter_wide_kernel(
    x, dy, partial, height, width, channels, rows, columns, filters, size, stride, before, groups,
    length,
):  # fmt: skip
    tiles = cuda.shared.array(TILES, float32, alignment=16)
    sums = cuda.local.array(64, float32)
    fetched_dy = cuda.local.array(4, float32)
    fetched_x = cuda.local.array(8, float32)
    down = cuda.local.array(2, int32)
    right = cuda.local.array(2, int32)
    ahead = cuda.local.array(2, int32)
    for i in range(64):
        sums[i] = float32(0)
    t = cuda.threadIdx.x & (THREADS - 1)
    group, part = cuda.blockIdx.y, cuda.blockIdx.z
    mine, channels_mine = filters // groups, channels // groups
    depth = size * size * channels_mine
    across = (depth + VALUES - 1) // VALUES
    first_filter = cuda.blockIdx.x // across * FILTERS
    first_value = cuda.blockIdx.x % across * VALUES
    windows = dy.size // filters

    # Thread t fetches window t // 16 of each eight: filters 4 · (t % 16) .. + 3, and values of d
    # likewise, and those 64 further on. Where in the window a value of d lies never changes.
    fetch_m = t // 16
    fetch_k = t % 16 * 4
    for i in range(2):
        d = first_value + fetch_k + 64 * i
        r, s, c = d // (size * channels_mine), d // channels_mine % size, d % channels_mine
        down[i] = r if d < depth else NOWHERE
        right[i] = s
        ahead[i] = (r * width + s) * channels + group * channels_mine + c
    m = int32(part * length + fetch_m)
    end = int32(min((part + 1) * length, windows))
    n, p, q = int32(m // (rows * columns)), int32(m // columns % rows), int32(m % columns)
    dy_end = int32(0)
    if int32(first_filter + fetch_k) < int32(mine):
        dy_end = end
    dy_at = int32(m * filters + group * mine + first_filter + fetch_k)
    dy_step = int32(DEPTH * filters)
    high, broad, pixel = int32(height), int32(width), int32(channels)
    image_rows, image_columns, step, pad = int32(rows), int32(columns), int32(stride), int32(before)

    a_to = int32(fetch_m * A_STRIDE + fetch_k)
    b_to = int32(B_FIRST + fetch_m * B_STRIDE + fetch_k)
    lane = t % 32
    row = t // 64 * 32 + lane // 8 * 4
    column = t // 32 % 2 * 64 + lane % 8 * 4
    a_from = int32(COPY + row)
    b_from = int32(COPY + B_FIRST + column)
    turns = int32(length // DEPTH + 1)
    turn = int32(0)
    while turn < turns:
        h = int32(p * step - pad)
        left = int32(q * step - pad)
        corner = int32(((n * high + h) * broad + left) * pixel)
        for i in range(2):
            at_h = int32(h + down[i])
            at_w = int32(left + right[i])
            if m < end and at_h >= 0 and at_h < high and at_w >= 0 and at_w < broad:
                copy4(fetched_x, 4 * i, x, int32(corner + ahead[i]))
            else:
                for j in range(4):
                    fetched_x[4 * i + j] = float32(0)
        if m < dy_end:
            copy4(fetched_dy, 0, dy, dy_at)
        else:
            for j in range(4):
                fetched_dy[j] = float32(0)
        m = int32(m + DEPTH)
        dy_at = int32(dy_at + dy_step)
        n, p, q = next_window(n, p, q, image_rows, image_columns)

        if turn > 0:
            multiply(tiles, a_from, A_STRIDE, b_from, B_STRIDE, sums)
        copy4(tiles, a_to, fetched_dy, 0)
        for i in range(2):
            copy4(tiles, b_to + 64 * i, fetched_x, 4 * i)
        cuda.syncthreads()
        a_to, b_to = int32(a_to ^ COPY), int32(b_to ^ COPY)
        a_from, b_from = int32(a_from ^ COPY), int32(b_from ^ COPY)
        turn = int32(turn + 1)

    first = (part * filters + group * mine) * depth
    row, column = first_filter + row, first_value + column
    write(sums, partial, row, mine, depth, column, depth, first)


@cuda.jit
def tiled_filter_narrow_kernel(
    x, dy, partial, height, width, channels, rows, columns, filters, size, stride, before, groups,
    length,
):  # fmt: skip
    tiles = cuda.shared.array(TILES, float32, alignment=16)
    sums = cuda.local.array(64, float32)
    fetched_dy = cuda.local.array(4, float32)
    fetched_x = cuda.local.array(8, float32)
    down = cuda.local.array(8, int32)
    right = cuda.local.array(8, int32)
    for i in range(64):
        sums[i] = float32(0)
    t = cuda.threadIdx.x & (THREADS - 1)
    group, part = cuda.blockIdx.y, cuda.blockIdx.z
    mine, channels_mine = filters // groups, channels // groups
    depth = size * size * channels_mine
    across = (depth + VALUES - 1) // VALUES
    first_filter = cuda.blockIdx.x // across * FILTERS
    first_value = cuda.blockIdx.x % across * VALUES
    windows = dy.size // filters

    # Thread t fetches window t // 16 of each eight: filters t % 16, + 16, ... and values of d
    # likewise. `right` counts floats, as a row of pixels is one run of them.
    fetch_m = t // 16
    fetch_k = t % 16
    for i in range(8):
        d = first_value + fetch_k + 16 * i
        r, s, c = d // (size * channels_mine), d // channels_mine % size, d % channels_mine
        down[i] = r if d < depth else NOWHERE
        right[i] = s * channels + group * channels_mine + c
    m = int32(part * length + fetch_m)
    end = int32(min((part + 1) * length, windows))
    n, p, q = int32(m // (rows * columns)), int32(m // columns % rows), int32(m % columns)
    there = int32((mine - first_filter - fetch_k + 15) // 16)
    dy_at = int32(m * filters + group * mine + first_filter + fetch_k)
    dy_step = int32(DEPTH * filters)
    high, line, image_rows = int32(height), int32(width * channels), int32(rows)
    image_columns, step, pad, pixel = int32(columns), int32(stride), int32(before), int32(channels)

    a_to = int32(fetch_m * A_STRIDE + fetch_k)
    b_to = int32(B_FIRST + fetch_m * B_STRIDE + fetch_k)
    lane = t % 32
    row = t // 64 * 32 + lane // 8 * 4
    column = t // 32 % 2 * 64 + lane % 8 * 4
    a_from = int32(COPY + row)
    b_from = int32(COPY + B_FIRST + column)
    turns = int32(length // DEPTH + 1)
    turn = int32(0)
    while turn < turns:
        h = int32(p * step - pad)
        left = int32((q * step - pad) * pixel)
        image = int32(n * high)
        for i in range(8):
            at_h = int32(h + down[i])
            at = int32(left + right[i])
            fetched_x[i] = float32(0)
            if m < end and at_h >= 0 and at_h < high and at >= 0 and at < line:
                copy1(fetched_x, i, x, int32((image + at_h) * line + at))
        for i in range(4):
            fetched_dy[i] = float32(0)
            if m < end and i < there:
                copy1(fetched_dy, i, dy, int32(dy_at + 16 * i))
        m = int32(m + DEPTH)
        dy_at = int32(dy_at + dy_step)
        n, p, q = next_window(n, p, q, image_rows, image_columns)

        if turn > 0:
            multiply(tiles, a_from, A_STRIDE, b_from, B_STRIDE, sums)
        for i in range(4):
            copy1(tiles, a_to + 16 * i, fetched_dy, i)
        for i in range(8):
            copy1(tiles, b_to + 16 * i, fetched_x, i)
        cuda.syncthreads()
        a_to, b_to = int32(a_to ^ COPY), int32(b_to ^ COPY)
        a_from, b_from = int32(a_from ^ COPY), int32(b_from ^ COPY)
        turn = int32(turn + 1)

    first = (part * filters + group * mine) * depth
    row, column = first_filter + row, first_value + column
    write(sums, partial, row, mine, depth, column, depth, first)


def cut(windows, tiles, depth=DEPTH):
    """(parts, windows of a part) for the sum over `windows`, if a part has `tiles` blocks.

    `depth`: windows of a slice; a part has whole slices.
    """
    parts = max(1, min(BLOCKS // tiles, windows // FEWEST_WINDOWS))
    length = -(-windows // (parts * depth)) * depth
    return -(-windows // length), length


def tiled_filter_gradient(x, dy, dw, stride, before, groups, buffer):
    """dw (K, R, S, C / groups) from x and dy; `buffer` is a layer's."""
    check_sizes(x, dy)
    _, height, width, channels = x.shape
    _, rows, columns, filters = dy.shape
    size = dw.shape[1]
    wide = takes_wide(groups, channels, filters, x, dy)
    kernel = tiled_filter_wide_kernel if wide else tiled_filter_narrow_kernel
    tiles = -(-filters // groups // FILTERS) * -(-dw[0].size // VALUES)
    parts, length = cut(dy.size // filters, tiles * groups)
    partial = buffer("parts of dw", (parts, dw.size))
    kernel[grid_of((tiles, groups, parts), THREADS)](
        *(x.reshape(-1), dy.reshape(-1), partial.reshape(-1), height, width, channels),
        *(rows, columns, filters, size, stride, before, groups, length),
    )
    sum_parts(partial, dw.reshape(-1))
