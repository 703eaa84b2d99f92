"""Tiled convolution: implicit GEMM with tiles in shared memory and in registers. float32.

The formulas, shapes and names are those of `layers/conv.py`.

    y[m, n] = b[n] + Σ_k a[m, k] · w[n, k]      k = (r, s, c), for each group

    M   output pixels (image, p, q)             BM = 128 rows of a block's tile of y
    N   filters of the group                    BN = 64 columns of it
    K   R · S · C / groups                      BK = 8 values of k in a k-tile
                                                TM = TN = 8: a thread's tile of y, in registers

Row m of A holds the pixels under one window. On the host `im2col` writes A to memory; here it is
implicit: a thread that needs a[m, k] computes its offset in x. The direct kernel loads two numbers
for each multiply-add. This kernel reuses them:

* a block of 128 threads computes BM × BN outputs. For each k-tile it loads 128 × 8 numbers of A and
  64 × 8 of B into shared memory: 1,536 numbers from global memory for 65,536 multiply-adds;
* a thread keeps 8 × 8 sums in registers. For each k it reads 8 + 8 numbers from shared memory, four
  by one instruction (`ptx.py`), for 64 multiply-adds;
* k-tiles are double-buffered: while one is multiplied, the next is loaded into registers, and then
  stored in the other buffer. So one barrier for each k-tile is enough.

There is no division in the loop: a thread computes once where its windows begin.

The *vectorized* kernel loads float4: four consecutive channels by one instruction. Channels and
filters of a group must be multiples of 4. The *scalar* kernel takes any number. Both have one
source, `make_forward`. Pixels outside of the image are not read; their zeros are multiplied like
any number. The order of all sums is fixed, so results are bitwise reproducible. `tile.py` holds
what the filter gradient shares, `tiled_gradients.py` the gradients.
"""

from numba import float32, int32

from layers.device import cuda, grid_of
from layers.fast.conv.ptx import copy_scalar, copy_vec4
from layers.fast.conv.tile import (
    BK,
    BUFFER_STRIDE,
    OUTSIDE,
    SUMS,
    THREADS,
    add_bias,
    advance_k,
    can_vectorize,
    check_sizes,
    multiply_k_tile,
    relu,
    store_tile,
    within,
)

BM, BN = 128, 64

STORE, BIAS, BIAS_RELU = 0, 1, 2
"""Epilogues: store the sums; add the bias first; and take the ReLU."""

# Shared memory is [buffer][A, then B][k][row], with `..._STRIDE` floats from k to k + 1: the 4 put
# what a warp stores into different banks, and keep groups of four together.
A_STRIDE, B_STRIDE = BM + 4, BN + 4
B_OFFSET = BK * A_STRIDE
TILES = BUFFER_STRIDE + B_OFFSET + BK * B_STRIDE


# --- kernels
#
# All arrays are flat. grid (tiles of y, groups); tiles of the same pixels are neighbours, so that
# their k-tiles of x are in the cache. Each y[m, n] is written by the thread that has its sum: no
# races, no atomics. A thread writes 4 × 4 squares, a warp 32 neighbouring filters of 4 pixels at a
# time: coalesced. `t & (THREADS - 1)` is t, and tells the compiler that it is not negative; int32
# keeps in 32 bits what Numba would widen to 64.


def make_forward(name, vec):
    """The kernel called `name`; vec: floats of a load, 4 (vectorized) or 1 (scalar)."""
    lanes = BK // vec  # threads that load one row of a k-tile
    row_step = THREADS // lanes
    a_loads, b_loads = BM // row_step, BN // row_step
    a_values, b_values = a_loads * vec, b_loads * vec
    copy = copy_vec4 if vec == 4 else copy_scalar

    def kernel(
        x, w, b, y, height, width, channels, rows, columns, filters, size, stride, before, groups,
        epilogue,
    ):  # fmt: skip
        tiles = cuda.shared.array(TILES, float32, alignment=16)
        sums = cuda.local.array(SUMS, float32)
        a_regs = cuda.local.array(a_values, float32)
        b_regs = cuda.local.array(b_values, float32)
        base = cuda.local.array(a_loads, int32)
        top = cuda.local.array(a_loads, int32)
        left = cuda.local.array(a_loads, int32)
        t = cuda.threadIdx.x & (THREADS - 1)
        group = cuda.blockIdx.y
        filters_per_group = filters // groups
        channels_per_group = channels // groups
        tiles_n = (filters_per_group + BN - 1) // BN
        first_pixel = cuda.blockIdx.x // tiles_n * BM
        first_filter = cuda.blockIdx.x % tiles_n * BN
        pixels = y.size // filters
        depth = int32(size * size * channels_per_group)
        run = int32(channels_per_group if groups > 1 else size * channels)
        num_runs = int32(size if groups > 1 else 1)
        line = int32(width * channels)
        image_height = int32(height)

        # Thread t loads values k .. k + vec - 1 of each k-tile, of rows t // lanes, + row_step, ...
        # of A and of B.
        load_row = t // lanes
        k = int32(t % lanes * vec)
        first_channel = group * channels_per_group
        for i in range(a_loads):
            m = first_pixel + load_row + row_step * i
            n, h, column = m // (rows * columns), m // columns % rows, m % columns
            h, column = h * stride - before, column * stride - before
            top[i] = h if m < pixels else OUTSIDE
            left[i] = column * channels + first_channel
            base[i] = ((n * height + h) * width + column) * channels + first_channel
        filters_left = filters_per_group - first_filter - load_row
        loads_left = int32((filters_left + row_step - 1) // row_step)
        w_offset = int32((group * filters_per_group + first_filter + load_row) * depth + k)
        w_step = int32(row_step * depth)
        r, s, c = advance_k(int32(0), int32(0), int32(0), k, run, num_runs, size)
        a_store = int32(k * A_STRIDE + load_row)
        b_store = int32(B_OFFSET + k * B_STRIDE + load_row)

        # A warp multiplies 32 pixels by 64 filters (see `add_outer_product`).
        lane = t % 32
        row = t // 32 * 32 + lane // 8 * 4
        column = lane % 8 * 4
        a_read = int32(BUFFER_STRIDE + row)
        b_read = int32(BUFFER_STRIDE + B_OFFSET + column)
        for i in range(SUMS):
            sums[i] = float32(0)

        num_k_tiles = int32((depth + BK - 1) // BK)
        k_tile = int32(-1)  # the first round only loads
        while k_tile < num_k_tiles:
            # Load the next k-tile into registers.
            column_offset = int32(s * channels + c)
            tap_offset = int32(r * line + column_offset)
            for i in range(a_loads):
                h = int32(top[i] + r)
                q = int32(left[i] + column_offset)
                for j in range(vec):
                    a_regs[vec * i + j] = float32(0)
                if within(h, image_height) and within(q, line):
                    copy(a_regs, vec * i, x, int32(base[i] + tap_offset))
            for i in range(b_loads):
                for j in range(vec):
                    b_regs[vec * i + j] = float32(0)
                if r >= 0 and i < loads_left:
                    copy(b_regs, vec * i, w, int32(w_offset + i * w_step))
            w_offset = int32(w_offset + BK)
            r, s, c = advance_k(r, s, c, BK, run, num_runs, size)

            # Multiply the current k-tile.
            if k_tile >= 0:
                multiply_k_tile(tiles, a_read, A_STRIDE, b_read, B_STRIDE, sums)
            # Store the loaded k-tile in the other buffer.
            for j in range(vec):
                for i in range(a_loads):
                    copy_scalar(tiles, a_store + j * A_STRIDE + row_step * i, a_regs, vec * i + j)
                for i in range(b_loads):
                    copy_scalar(tiles, b_store + j * B_STRIDE + row_step * i, b_regs, vec * i + j)
            # Wait for the other threads.
            cuda.syncthreads()
            # Swap buffers.
            a_store, b_store = int32(a_store ^ BUFFER_STRIDE), int32(b_store ^ BUFFER_STRIDE)
            a_read, b_read = int32(a_read ^ BUFFER_STRIDE), int32(b_read ^ BUFFER_STRIDE)
            k_tile = int32(k_tile + 1)

        first = group * filters_per_group
        column = first_filter + column
        if epilogue != STORE:
            add_bias(sums, b, column, filters_per_group, first)
        if epilogue == BIAS_RELU:
            relu(sums)
        store_tile(sums, y, first_pixel + row, pixels, filters, column, filters_per_group, first)

    kernel.__name__ = kernel.__qualname__ = name
    return cuda.jit(kernel)


tiled_forward_vectorized_kernel = make_forward("tiled_forward_vectorized_kernel", 4)
tiled_forward_scalar_kernel = make_forward("tiled_forward_scalar_kernel", 1)


# --- launch


def tiled_forward(x, w, b, y, stride, before, groups, relu=False):
    """y = conv(x) + b, or its ReLU; b None: without a bias. x, w, y as in `layers/conv.py`.

    y begins at a multiple of 16 bytes, as every buffer does. ValueError for too large arrays.
    """
    check_sizes(x, y)
    _, height, width, channels = x.shape
    _, rows, columns, filters = y.shape
    epilogue = STORE if b is None else BIAS_RELU if relu else BIAS
    vectorized = can_vectorize(groups, channels, filters, x, w)
    kernel = tiled_forward_vectorized_kernel if vectorized else tiled_forward_scalar_kernel
    tiles = -(-y.size // filters // BM) * -(-filters // groups // BN)
    kernel[grid_of((tiles, groups), THREADS)](
        *(x.reshape(-1), w.reshape(-1), w.reshape(-1) if b is None else b, y.reshape(-1)),
        *(height, width, channels, rows, columns, filters, w.shape[1], stride, before, groups),
        epilogue,
    )
