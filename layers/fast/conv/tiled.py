"""Convolution, rung 2: a matrix product that never sees its matrix, tile by tile. float32.

The formulas, shapes and names are those of `layers/conv.py`.

    y[m, k] = b[k] + Σ_d a[m, d] · w[k, d]      m = (n, p, q), d = (r, s, c), for each group

Row m of the matrix a holds the pixels under one window. On the host `im2col` writes a down; here it
is implicit: whoever needs a[m, d] works out where in x it lies. What rung 1 lacks is *reuse*: it
loads two numbers for each multiply-add. So

* a block of 128 threads computes a tile of y, 128 windows × 64 filters. It walks along d in slices
  of 8, and brings a slice of a (128 × 8) and of w (64 × 8) into shared memory: 1,536 numbers from
  global memory for 65,536 multiply-adds;
* a thread has 8 × 8 sums of the tile in registers. For each d it reads 8 + 8 numbers from shared
  memory, four by one instruction (`ptx.py`), for 64 multiply-adds;
* there are two copies of the slices. While one is multiplied the next is on its way: it is fetched
  into registers before the multiplication, and stored into the other copy after it, so that one
  barrier a slice is enough.

In the loop of each kernel, turn by turn: fetch a slice, multiply the one of the turn before (there
is none at turn 0), store what was fetched (nobody reads it after the last turn), wait for the
others, swap the copies. There is no division in it: a thread works out once where its windows
begin, and then walks on.

Two kernels, alike but for who fetches what: the *wide* one moves four neighbouring channels by one
instruction, and needs channels and filters of a group to be multiples of 4; the *narrow* one takes
any number. A place outside of the image is not read; its 0 is multiplied like any number. The order
of all sums is fixed: the same bits every time. What both kernels share is in `tile.py`, the
gradients are in `tiled_gradients.py`.
"""

from numba import float32, int32

from layers.device import cuda, grid_of
from layers.fast.conv.ptx import copy1, copy4
from layers.fast.conv.tile import (
    COPY,
    DEPTH,
    NOWHERE,
    THREADS,
    add_bias,
    check_sizes,
    multiply,
    next_place,
    relu,
    takes_wide,
    write,
)

WINDOWS, FILTERS = 128, 64
"""Rows and columns of a block's tile of y."""

STORE, BIAS, BIAS_RELU = 0, 1, 2
"""What a kernel does with its sums: store them, add the bias first, and take the ReLU of that."""

# Shared memory is [copy][a, then b][d][row], with `..._STRIDE` floats from d to d + 1: the 4 put
# what a warp stores into different banks, and keep groups of four together.
A_STRIDE, B_STRIDE = 132, 68
B_FIRST = 1056  # DEPTH strides of a
TILES = 3648  # COPY, and once more B_FIRST and DEPTH strides of b


# --- kernels
#
# All arrays are flat. grid (tiles of y, groups); tiles of the same windows are neighbours, so that
# their slices of x are in the cache. Each y[m, k] is written by the thread that has its sum: no
# races, no atomics. A thread writes 4 × 4 squares, a warp 32 neighbouring filters of 4 windows at a
# time: coalesced. Reads are told in the kernels. `t & (THREADS - 1)` is t, but says that it is not
# negative; int32 keeps in 32 bits what Numba would make 64.


@cuda.jit
def tiled_forward_wide_kernel(
    x, w, b, y, height, width, channels, rows, columns, filters, size, stride, before, groups, then
):  # fmt: skip
    tiles = cuda.shared.array(TILES, float32, alignment=16)
    sums = cuda.local.array(64, float32)
    fetched_x = cuda.local.array(8, float32)
    fetched_w = cuda.local.array(4, float32)
    corner = cuda.local.array(2, int32)
    top = cuda.local.array(2, int32)
    left = cuda.local.array(2, int32)
    x_at = cuda.local.array(2, int32)
    t = cuda.threadIdx.x & (THREADS - 1)
    group = cuda.blockIdx.y
    mine = filters // groups
    across = (mine + FILTERS - 1) // FILTERS
    first_window = cuda.blockIdx.x // across * WINDOWS
    first_filter = cuda.blockIdx.x % across * FILTERS
    windows = y.size // filters
    run = channels // groups

    # Thread t fetches channels 4 · (t % 2) .. + 3 of each eight, of windows t // 2 and t // 2 + 64
    # and of filter t // 2: two lanes take the 32 bytes of a sector.
    fetch_row = t // 2
    fetch_c = t % 2 * 4
    for i in range(2):
        m = first_window + fetch_row + 64 * i
        n, h, column = m // (rows * columns), m // columns % rows, m % columns
        h, column = h * stride - before, column * stride - before
        top[i] = h if m < windows else NOWHERE
        left[i] = column
        corner[i] = ((n * height + h) * width + column) * channels + group * run + fetch_c
    w_at = int32((group * mine + first_filter + fetch_row) * size * size * run + fetch_c)
    if first_filter + fetch_row >= mine:
        w_at = int32(NOWHERE)
    a_to = int32(fetch_c * A_STRIDE + fetch_row)
    b_to = int32(B_FIRST + fetch_c * B_STRIDE + fetch_row)
    lane = t % 32
    row = t // 32 * 32 + lane // 8 * 4
    column = lane % 8 * 4
    a_from = int32(COPY + row)
    b_from = int32(COPY + B_FIRST + column)
    for i in range(64):
        sums[i] = float32(0)
    turns = int32(size * size * ((run + DEPTH - 1) // DEPTH) + 1)
    last_c = int32(run - fetch_c)
    high = int32(height)
    wide = int32(width)
    full = int32(run)
    window = int32(size)
    c = int32(run)  # as if a pixel of the window had just ended
    r = int32(0)
    s = int32(-1)
    turn = int32(0)
    while turn < turns:
        if c >= full:
            # On to the next pixel of the windows, which is or is not inside of the image; a group
            # of eight channels may have reached beyond the last one.
            w_at = int32(w_at + full - c)
            c = int32(0)
            s = int32(s + 1)
            if s == window:
                s = int32(0)
                r = int32(r + 1)
                if r == window:
                    w_at = int32(NOWHERE)
            for i in range(2):
                h = int32(top[i] + r)
                q = int32(left[i] + s)
                x_at[i] = corner[i] + (r * width + s) * channels
                if h < 0 or h >= high or q < 0 or q >= wide:
                    x_at[i] = NOWHERE
        inside = c < last_c
        for i in range(2):
            if inside and x_at[i] >= 0:
                copy4(fetched_x, 4 * i, x, x_at[i])
            else:
                for j in range(4):
                    fetched_x[4 * i + j] = float32(0)
            x_at[i] += DEPTH
        if inside and w_at >= 0:
            copy4(fetched_w, 0, w, w_at)
        else:
            for j in range(4):
                fetched_w[j] = float32(0)
        w_at = int32(w_at + DEPTH)
        c = int32(c + DEPTH)

        if turn > 0:
            multiply(tiles, a_from, A_STRIDE, b_from, B_STRIDE, sums)
        for j in range(4):
            for i in range(2):
                copy1(tiles, a_to + j * A_STRIDE + 64 * i, fetched_x, 4 * i + j)
            copy1(tiles, b_to + j * B_STRIDE, fetched_w, j)
        cuda.syncthreads()
        a_to, b_to = int32(a_to ^ COPY), int32(b_to ^ COPY)
        a_from, b_from = int32(a_from ^ COPY), int32(b_from ^ COPY)
        turn = int32(turn + 1)

    if then != STORE:
        add_bias(sums, b, first_filter + column, mine, group * mine)
    if then == BIAS_RELU:
        relu(sums)
    write(sums, y, first_window + row, windows, filters, first_filter + column, mine, group * mine)


@cuda.jit
def tiled_forward_narrow_kernel(
    x, w, b, y, height, width, channels, rows, columns, filters, size, stride, before, groups, then
):  # fmt: skip
    tiles = cuda.shared.array(TILES, float32, alignment=16)
    sums = cuda.local.array(64, float32)
    fetched_x = cuda.local.array(8, float32)
    fetched_w = cuda.local.array(4, float32)
    corner = cuda.local.array(8, int32)
    top = cuda.local.array(8, int32)
    left = cuda.local.array(8, int32)
    t = cuda.threadIdx.x & (THREADS - 1)
    group = cuda.blockIdx.y
    mine = filters // groups
    across = (mine + FILTERS - 1) // FILTERS
    first_window = cuda.blockIdx.x // across * WINDOWS
    first_filter = cuda.blockIdx.x % across * FILTERS
    windows = y.size // filters
    depth = int32(size * size * (channels // groups))
    run = int32(channels // groups if groups > 1 else size * channels)
    runs = int32(size if groups > 1 else 1)
    line = int32(width * channels)
    high = int32(height)

    # Thread t fetches d = t % 8 of windows t // 8, t // 8 + 16, ... and filters likewise.
    fetch_row = t // 8
    d = int32(t % 8)
    first_channel = group * (channels // groups)
    for i in range(8):
        m = first_window + fetch_row + 16 * i
        n, h, column = m // (rows * columns), m // columns % rows, m % columns
        h, column = h * stride - before, column * stride - before
        top[i] = h if m < windows else NOWHERE
        left[i] = column * channels + first_channel
        corner[i] = ((n * height + h) * width + column) * channels + first_channel
    there = int32((mine - first_filter - fetch_row + 15) // 16)
    w_at = int32((group * mine + first_filter + fetch_row) * depth + d)
    w_step = int32(16 * depth)
    r, s, c = next_place(int32(0), int32(0), int32(0), d, run, runs)
    a_to = int32(d * A_STRIDE + fetch_row)
    b_to = int32(B_FIRST + d * B_STRIDE + fetch_row)
    lane = t % 32
    row = t // 32 * 32 + lane // 8 * 4
    column = lane % 8 * 4
    a_from = int32(COPY + row)
    b_from = int32(COPY + B_FIRST + column)
    for i in range(64):
        sums[i] = float32(0)

    turns = int32((depth + DEPTH - 1) // DEPTH + 1)
    turn = int32(0)
    while turn < turns:
        along = int32(s * channels + c)
        ahead = int32(r * line + along)
        for i in range(8):
            h = int32(top[i] + r)
            from_left = int32(left[i] + along)
            fetched_x[i] = float32(0)
            if d < depth and h >= 0 and h < high and from_left >= 0 and from_left < line:
                copy1(fetched_x, i, x, int32(corner[i] + ahead))
        for i in range(4):
            fetched_w[i] = float32(0)
            if d < depth and i < there:
                copy1(fetched_w, i, w, int32(w_at + i * w_step))
        d = int32(d + DEPTH)
        w_at = int32(w_at + DEPTH)
        r, s, c = next_place(r, s, c, DEPTH, run, runs)

        if turn > 0:
            multiply(tiles, a_from, A_STRIDE, b_from, B_STRIDE, sums)
        for i in range(8):
            copy1(tiles, a_to + 16 * i, fetched_x, i)
        for i in range(4):
            copy1(tiles, b_to + 16 * i, fetched_w, i)
        cuda.syncthreads()
        a_to, b_to = int32(a_to ^ COPY), int32(b_to ^ COPY)
        a_from, b_from = int32(a_from ^ COPY), int32(b_from ^ COPY)
        turn = int32(turn + 1)

    if then != STORE:
        add_bias(sums, b, first_filter + column, mine, group * mine)
    if then == BIAS_RELU:
        relu(sums)
    write(sums, y, first_window + row, windows, filters, first_filter + column, mine, group * mine)


# --- launch


def tiled_forward(x, w, b, y, stride, before, groups, relu=False):
    """y = conv(x) + b, or relu of it; b None: without. x, w, y as in `layers/conv.py`.

    y begins at a multiple of 16 bytes, as every buffer does. ValueError for too large arrays.
    """
    check_sizes(x, y)
    _, height, width, channels = x.shape
    _, rows, columns, filters = y.shape
    then = STORE if b is None else BIAS_RELU if relu else BIAS
    wide = takes_wide(groups, channels, filters, x, w)
    kernel = tiled_forward_wide_kernel if wide else tiled_forward_narrow_kernel
    tiles = -(-y.size // filters // WINDOWS) * -(-filters // groups // FILTERS)
    kernel[grid_of((tiles, groups), THREADS)](
        *(x.reshape(-1), w.reshape(-1), w.reshape(-1) if b is None else b, y.reshape(-1)),
        *(height, width, channels, rows, columns, filters, w.shape[1], stride, before, groups),
        then,
    )
