"""Convolution, rung 1: one thread per output, straight from the formula, any dtype.

The formulas, shapes and names are those of `layers/conv/__init__.py`; put the two side by side.
These kernels are for reading and stepping through, and the yardstick for every faster rung. Each
multiply-add waits for two loads from global memory (or the cache), and nothing is kept in
registers but the sum.

All of them: filters w (K, R, S, C / groups) with R = S = w.shape[1]; `before` is the padding above
and to the left; padded places are skipped, never stored. Index arithmetic is written out, c (or k)
fastest. Threads write only what they own: no races, no atomics, the same bits every time.
"""

from layers.bfloat16 import widen
from layers.device import cuda

# One thread per output y[n, p, q, k], k fastest. The threads of a warp share the pixel
# x[n, h, column, c] (one load, broadcast) and read 32 filters R·S·C/groups elements apart: w is
# not coalesced, and the cache has to make up for it.


@cuda.jit
def conv_forward_kernel(x, w, b, y, stride, before, groups):
    index = cuda.grid(1)
    if index >= y.size:
        return
    k = index % y.shape[3]
    q = index // y.shape[3] % y.shape[2]
    p = index // (y.shape[3] * y.shape[2]) % y.shape[1]
    n = index // (y.shape[3] * y.shape[2] * y.shape[1])
    first = k // (w.shape[0] // groups) * w.shape[3]
    total = b[k]
    for r in range(w.shape[1]):
        h = p * stride + r - before
        if h < 0 or h >= x.shape[1]:
            continue
        for s in range(w.shape[2]):
            column = q * stride + s - before
            if column < 0 or column >= x.shape[2]:
                continue
            for c in range(w.shape[3]):
                total += x[n, h, column, first + c] * w[k, r, s, c]
    y[n, p, q, k] = total


# One thread per dx[n, h, w, c], c fastest. It visits the outputs whose window holds (h, w): for
# window row r that is p = (h + before − r) / stride, if that is a whole number inside the output.
# The threads of a warp share dy[n, p, q, k] (broadcast) and read neighbours of w (coalesced).


@cuda.jit
def conv_input_gradient_kernel(dy, w, dx, stride, before, groups):
    index = cuda.grid(1)
    if index >= dx.size:
        return
    c = index % dx.shape[3]
    column = index // dx.shape[3] % dx.shape[2]
    h = index // (dx.shape[3] * dx.shape[2]) % dx.shape[1]
    n = index // (dx.shape[3] * dx.shape[2] * dx.shape[1])
    group = c // w.shape[3]
    filters = w.shape[0] // groups
    total = dx.dtype.type(0)
    for r in range(w.shape[1]):
        p_stride = h + before - r
        p = p_stride // stride
        if p_stride < 0 or p_stride % stride != 0 or p >= dy.shape[1]:
            continue
        for s in range(w.shape[2]):
            q_stride = column + before - s
            q = q_stride // stride
            if q_stride < 0 or q_stride % stride != 0 or q >= dy.shape[2]:
                continue
            for k in range(group * filters, (group + 1) * filters):
                total += dy[n, p, q, k] * w[k, r, s, c - group * w.shape[3]]
    dx[n, h, column, c] = total


# One thread per filter weight dw[k, r, s, c], c fastest. It walks over all images and outputs: a
# long sum for few threads (conv1 has 34,848 of them), which is why the next rung splits it.
# Neighbouring threads read neighbouring channels of x (coalesced) and share dy (broadcast).


@cuda.jit
def conv_filter_gradient_kernel(x, dy, dw, stride, before, groups):
    index = cuda.grid(1)
    if index >= dw.size:
        return
    c = index % dw.shape[3]
    s = index // dw.shape[3] % dw.shape[2]
    r = index // (dw.shape[3] * dw.shape[2]) % dw.shape[1]
    k = index // (dw.shape[3] * dw.shape[2] * dw.shape[1])
    channel = k // (dw.shape[0] // groups) * dw.shape[3] + c
    total = dw.dtype.type(0)
    for n in range(x.shape[0]):
        for p in range(dy.shape[1]):
            h = p * stride + r - before
            if h < 0 or h >= x.shape[1]:
                continue
            for q in range(dy.shape[2]):
                column = q * stride + s - before
                if column < 0 or column >= x.shape[2]:
                    continue
                total += dy[n, p, q, k] * x[n, h, column, channel]
    dw[k, r, s, c] = total


# One block per output channel k: db[k] = Σ dy[row, k] over all rows (n, p, q). Thread t adds rows
# t, t + 128, t + 256, ... in order; then the 128 partial sums are added pairwise in shared memory,
# halving the number of threads each round. The barrier after each round makes sure that a sum is
# complete before it is read. The order of additions is fixed: deterministic. Neighbouring threads
# read elements K apart (not coalesced): rung 1 keeps to the formula.

SUM_THREADS = 128


@cuda.jit
def conv_bias_gradient_kernel(dy, db):
    partial = cuda.shared.array(SUM_THREADS, db.dtype)
    k = cuda.blockIdx.x
    t = cuda.threadIdx.x
    total = db.dtype.type(0)
    for row in range(t, dy.shape[0], SUM_THREADS):
        total += widen(dy[row, k])
    partial[t] = total
    cuda.syncthreads()
    active = SUM_THREADS // 2
    while active > 0:
        if t < active:
            partial[t] += partial[t + active]
        cuda.syncthreads()
        active //= 2
    if t == 0:
        db[k] = partial[0]
