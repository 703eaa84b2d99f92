"""Convolution as an implicit GEMM with tiles in shared memory, one output per thread.

The formulas, shapes and names are those of `layers/conv.py`. Each pass is a matrix product A · B,
one for each group, of M × K by K × N elements:

                 M: rows of A         N: columns of B      K: terms of each sum
    forward      output pixel n, p, q filter k             r, s, c
    dL/dx        input pixel n, h, w  channel c            r, s, k
    dL/dw        filter k             weight r, s, c       n, p, q

(These M, N, K are the GEMM's; elsewhere N counts images and K filters.) One of A and B is an
array in memory. The other one is *implicit*, it is never stored: a thread that needs one of its
elements computes its index in x or dy, or that it is outside the image and therefore 0.

The direct kernels load two numbers from global memory for each multiply-add. But all outputs of a
row need the same row of A, and all outputs of a column the same column of B. So a block of 16 × 16
threads computes a block tile of 16 × 16 outputs, and walks along K in k-tiles of 16 terms:

    load       one k-tile of A and of B, 2 · 16 · 16 = 512 numbers, from global memory into
               shared memory: each thread loads one number of either
    wait       until the k-tile is complete: the numbers come from other threads
    multiply   each thread adds 16 products to its sum: 16 · 16 · 16 = 4,096 multiply-adds
    wait       until all threads have multiplied, before the k-tile is overwritten

Each number loaded from global memory serves 16 multiply-adds. That makes 512 / 4,096 = 1/8 load for
each multiply-add, where the direct kernels need 2: sixteen times fewer. Two costs remain: each
multiply-add still reads 2 numbers, now from shared memory, and all threads of a block wait while a
k-tile is loaded. `tiled.py` keeps numbers in registers and loads the next k-tile in the meantime.

Where a size is not a multiple of 16 the tile is padded with zeros, which are multiplied like other
numbers. The dtype is that of the arrays, float32 or float64. Each sum has its terms in the order of
the direct kernel: for finite numbers both give the same bits, as a term that is 0 changes none.
"""

from layers.device import cuda, grid_of

TILE = 16
"""Rows and columns of a block tile, and terms of a k-tile."""

PADDED = 18
"""Elements from one row of a transposed tile to the next: see `shared_forward_kernel`."""

# --- kernels
#
# Thread (tx, ty) of a block owns the output in row ty and column tx of the block tile. A warp is
# two rows: 32 threads, ty and ty + 1, 16 tx each. Every output has one owner, which writes it once:
# no races, no atomics, the same bits every time. Of a shared tile each element is written by one
# thread and read by 16 others, hence the two barriers of each k-tile. No thread leaves early, as
# all have to reach the barriers: threads beyond the edge load zeros and write nothing.
#
# Banks (float32): rows of 16 words leave no conflict where a warp accesses [ty, tx] (32
# neighbouring words), [d, tx] (16 neighbouring words, each for two lanes), or [ty, d] or [d, ty]
# (two words, each for 16 lanes, in different banks).


# A thread owns y[n, p, q, k], k along tx: a warp writes 16 neighbouring filters of two pixels.
# In both x and w the terms (r, s, c) are neighbours, so tx runs along them in both loads: a warp
# reads 16 terms of two pixels, and of two filters; coalesced where the channels of a group are a
# multiple of 16. But the product reads a column of filters: w is transposed on its way into shared
# memory. The lanes of a warp store it at [tx, ty], rows apart. With rows of 16 words, these are 4
# banks, for 8 lanes each. With rows of 18, 18 · tx mod 32 are the 16 even numbers, and one filter
# further are the odd ones: 32 lanes, 32 banks. (In float64, where a half-warp is served at a time,
# 18 leaves a 2-way conflict in this store; 17 would leave one in float32.)


@cuda.jit
def shared_forward_kernel(x, w, b, y, stride, before, groups, relu):
    x_tile = cuda.shared.array((TILE, TILE), x.dtype)  # [output pixel, term]
    w_tile = cuda.shared.array((TILE, PADDED), x.dtype)  # [term, filter]
    tx, ty, group = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
    size, channels = w.shape[1], w.shape[3]
    filters_per_group = w.shape[0] // groups
    pixel = cuda.blockIdx.x * TILE + ty
    n = pixel // (y.shape[1] * y.shape[2])
    p = pixel // y.shape[2] % y.shape[1]
    q = pixel % y.shape[2]
    k = cuda.blockIdx.y * TILE + tx
    k_to_load = cuda.blockIdx.y * TILE + ty
    zero = y.dtype.type(0)
    total = b[group * filters_per_group + k] if k < filters_per_group else zero

    r, s, c = 0, 0, tx
    for _ in range(0, size * size * channels, TILE):
        # Load one k-tile of x and w into shared memory: term (r, s, c) of one pixel and one filter.
        while c >= channels:
            c -= channels
            s += 1
            if s == size:
                s = 0
                r += 1
        h, column = p * stride + r - before, q * stride + s - before
        x_value = w_value = zero
        if n < x.shape[0] and r < size and 0 <= h < x.shape[1] and 0 <= column < x.shape[2]:
            x_value = x[n, h, column, group * channels + c]
        if k_to_load < filters_per_group and r < size:
            w_value = w[group * filters_per_group + k_to_load, r, s, c]
        x_tile[ty, tx] = x_value
        w_tile[tx, ty] = w_value
        c += TILE
        # Wait until the k-tile is complete.
        cuda.syncthreads()
        # Multiply.
        for d in range(TILE):
            total += x_tile[ty, d] * w_tile[d, tx]
        # Wait before it is overwritten.
        cuda.syncthreads()

    if relu and total <= zero:  # not "> 0": a NaN stays one
        total = zero
    if n < y.shape[0] and k < filters_per_group:
        y[n, p, q, group * filters_per_group + k] = total


# A thread owns dx[n, h, column, c], c along tx. It gathers from the outputs whose window holds its
# pixel, as in the direct kernel. The direct kernel skips other outputs; here they are terms of 0,
# with a stride of 2 three of four terms. A k-tile is 16 filters of one window position (r, s), so
# that no index is divided in the innermost loop. A warp reads 16 neighbouring filters of two
# outputs of dy, and 16 neighbouring channels of two filters: coalesced.


@cuda.jit
def shared_input_gradient_kernel(dy, w, dx, stride, before, groups):
    dy_tile = cuda.shared.array((TILE, TILE), dx.dtype)  # [input pixel, filter]
    w_tile = cuda.shared.array((TILE, TILE), dx.dtype)  # [filter, channel]
    tx, ty, group = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
    size, channels = w.shape[1], w.shape[3]
    filters_per_group = w.shape[0] // groups
    pixel = cuda.blockIdx.x * TILE + ty
    n = pixel // (dx.shape[1] * dx.shape[2])
    h = pixel // dx.shape[2] % dx.shape[1]
    column = pixel % dx.shape[2]
    c = cuda.blockIdx.y * TILE + tx
    zero = dx.dtype.type(0)
    total = zero

    for r in range(size):
        p_stride = h + before - r
        p = p_stride // stride
        in_rows = p_stride >= 0 and p_stride % stride == 0 and p < dy.shape[1]
        for s in range(size):
            q_stride = column + before - s
            q = q_stride // stride
            in_row = q_stride >= 0 and q_stride % stride == 0 and q < dy.shape[2]
            for k in range(0, filters_per_group, TILE):
                # Load one k-tile of dy and w into shared memory.
                dy_value = w_value = zero
                if n < dy.shape[0] and in_rows and in_row and k + tx < filters_per_group:
                    dy_value = dy[n, p, q, group * filters_per_group + k + tx]
                if k + ty < filters_per_group and c < channels:
                    w_value = w[group * filters_per_group + k + ty, r, s, c]
                dy_tile[ty, tx] = dy_value
                w_tile[ty, tx] = w_value
                # Wait until the k-tile is complete.
                cuda.syncthreads()
                # Multiply.
                for d in range(TILE):
                    total += dy_tile[ty, d] * w_tile[d, tx]
                # Wait before it is overwritten.
                cuda.syncthreads()

    if n < dx.shape[0] and c < channels:
        dx[n, h, column, group * channels + c] = total


# A thread owns dw[k, r, s, c]: k along ty, and (r, s, c) along tx as they are in memory. The sum
# runs over all output pixels, 16 a k-tile. For each of two output pixels a warp reads 16
# neighbouring filters of dy, and the 16 values of x that belong to neighbouring weights: coalesced
# like the loads of the forward pass. No split-K: one block adds up the whole sum, and conv1 has
# only 6 · 23 = 138 blocks, each with 24,200 k-tiles at batch 128. `tiled_gradients.py` divides such
# sums among more blocks.


@cuda.jit
def shared_filter_gradient_kernel(x, dy, dw, stride, before, groups):
    dy_tile = cuda.shared.array((TILE, TILE), dw.dtype)  # [output pixel, filter]
    x_tile = cuda.shared.array((TILE, TILE), dw.dtype)  # [output pixel, weight]
    tx, ty, group = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
    size, channels = dw.shape[1], dw.shape[3]
    filters_per_group = dw.shape[0] // groups
    weight = cuda.blockIdx.x * TILE + tx
    r, s, c = weight // (size * channels), weight // channels % size, weight % channels
    k = cuda.blockIdx.y * TILE + ty
    k_to_load = cuda.blockIdx.y * TILE + tx
    zero = dw.dtype.type(0)
    total = zero

    n, p, q = 0, 0, ty
    for _ in range(0, dy.shape[0] * dy.shape[1] * dy.shape[2], TILE):
        # Load one k-tile of dy and x into shared memory: output pixel (n, p, q).
        while q >= dy.shape[2]:
            q -= dy.shape[2]
            p += 1
            if p == dy.shape[1]:
                p = 0
                n += 1
        h, column = p * stride + r - before, q * stride + s - before
        dy_value = x_value = zero
        if n < dy.shape[0] and k_to_load < filters_per_group:
            dy_value = dy[n, p, q, group * filters_per_group + k_to_load]
        if n < x.shape[0] and r < size and 0 <= h < x.shape[1] and 0 <= column < x.shape[2]:
            x_value = x[n, h, column, group * channels + c]
        dy_tile[ty, tx] = dy_value
        x_tile[ty, tx] = x_value
        q += TILE
        # Wait until the k-tile is complete.
        cuda.syncthreads()
        # Multiply.
        for d in range(TILE):
            total += dy_tile[d, ty] * x_tile[d, tx]
        # Wait before it is overwritten.
        cuda.syncthreads()

    if k < filters_per_group and r < size:
        dw[group * filters_per_group + k, r, s, c] = total


# --- launch


def tiles_grid(rows, columns, groups):
    """The launch of one block for each block tile of rows × columns outputs of each group."""
    return grid_of((-(-rows // TILE), -(-columns // TILE), groups), (TILE, TILE))


def shared_forward(x, w, b, y, stride, before, groups, relu=False):
    """y = conv(x) + b, or relu of it; arrays as in `layers/conv.py`."""
    launch = shared_forward_kernel[tiles_grid(y.size // y.shape[3], y.shape[3] // groups, groups)]
    launch(x, w, b, y, stride, before, groups, relu)


def shared_input_gradient(dy, w, dx, stride, before, groups):
    """dx from dy and w; any stride."""
    launch = shared_input_gradient_kernel[
        tiles_grid(dx.size // dx.shape[3], dx.shape[3] // groups, groups)
    ]
    launch(dy, w, dx, stride, before, groups)


def shared_filter_gradient(x, dy, dw, stride, before, groups):
    """dw from x and dy."""
    launch = shared_filter_gradient_kernel[tiles_grid(dw[0].size, dw.shape[0] // groups, groups)]
    launch(x, dy, dw, stride, before, groups)
