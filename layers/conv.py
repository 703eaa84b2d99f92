"""Two-dimensional convolution (paper §3.5; the five convolutional layers of AlexNet).

    y[n, p, q, k] = b[k] + Σ_{r, s, c} x[n, h, w, c] · w[k, r, s, c]

        with  h = p·stride + r − before   and   w = q·stride + s − before

    dL/dw[k, r, s, c] = Σ_{n, p, q} dL/dy[n, p, q, k] · x[n, h, w, c]         h, w as above
    dL/dx[n, h, w, c] = Σ_{k, r, s} dL/dy[n, p, q, k] · w[k, r, s, c]         p, q such that
                                                                              h, w are as above
    dL/db[k]          = Σ_{n, p, q} dL/dy[n, p, q, k]

Filters are not flipped; strictly speaking this is cross-correlation, as everywhere in the field.

Shapes: x (N, H, W, C), w (K, R, S, C / groups) with R = S, b (K), y (N, P, Q, K);
P = (H + before + after − R) // stride + 1, Q likewise. float32 or float64. Outside the image x is
0: `before` rows and columns of zeros above and to the left, `after` of them below and to the right.

With `groups` > 1 channels and filters are split into that many equal parts, and a filter sees only
its own part: the two GPUs of the paper (§3.5) talk in some layers only.

This file is the formula: seven nested loops on the host, one thread per output on a GPU. The faster
ways to compute the same are in `layers/fast/conv/` and `layers/fast/host/`.
"""

from numbers import Integral

from numba import njit, prange

from layers.device import cuda, grid_for, grid_of
from layers.layer import Layer, Parameter

# --- host
#
# The seven loops of the formula: image n, output p, q, filter k, window r, s, channel c. Padding is
# skipped, never stored. `first` is the first channel of the filter's group.


@njit(parallel=True, cache=True)
def conv_forward_host(x, w, b, y, stride, before, groups):
    for n in prange(y.shape[0]):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                for k in range(y.shape[3]):
                    first = k // (w.shape[0] // groups) * w.shape[3]
                    total = b[k]
                    for r in range(w.shape[1]):
                        h = p * stride + r - before
                        for s in range(w.shape[2]):
                            column = q * stride + s - before
                            if 0 <= h < x.shape[1] and 0 <= column < x.shape[2]:
                                for c in range(w.shape[3]):
                                    total += x[n, h, column, first + c] * w[k, r, s, c]
                    y[n, p, q, k] = total


@njit(parallel=True, cache=True)
def conv_input_gradient_host(dy, w, dx, stride, before, groups):
    # Scatters: each dy adds to the pixels of its window. One thread owns image n.
    for n in prange(dx.shape[0]):
        dx[n] = 0
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                for k in range(dy.shape[3]):
                    first = k // (w.shape[0] // groups) * w.shape[3]
                    for r in range(w.shape[1]):
                        h = p * stride + r - before
                        for s in range(w.shape[2]):
                            column = q * stride + s - before
                            if 0 <= h < dx.shape[1] and 0 <= column < dx.shape[2]:
                                for c in range(w.shape[3]):
                                    dx[n, h, column, first + c] += dy[n, p, q, k] * w[k, r, s, c]


@njit(parallel=True, cache=True)
def conv_filter_gradient_host(x, dy, dw, db, stride, before, groups):
    # One thread owns filter k.
    for k in prange(dw.shape[0]):
        first = k // (dw.shape[0] // groups) * dw.shape[3]
        dw[k] = 0
        db[k] = 0
        for n in range(dy.shape[0]):
            for p in range(dy.shape[1]):
                for q in range(dy.shape[2]):
                    db[k] += dy[n, p, q, k]
                    for r in range(dw.shape[1]):
                        h = p * stride + r - before
                        for s in range(dw.shape[2]):
                            column = q * stride + s - before
                            if 0 <= h < x.shape[1] and 0 <= column < x.shape[2]:
                                for c in range(dw.shape[3]):
                                    dw[k, r, s, c] += dy[n, p, q, k] * x[n, h, column, first + c]


# --- kernels
#
# One thread per output, straight from the formula. Index arithmetic is written out, c (or k)
# fastest. A thread writes only what it owns: no races, no atomics, the same bits every time. Each
# multiply-add waits for two loads from global memory (or the cache), and nothing is kept in
# registers but the sum.
#
# Forward: thread owns y[n, p, q, k]. The threads of a warp share the pixel x[n, h, column, c] (one
# load, broadcast) and read 32 filters that lie R·S·C/groups elements apart: w is not coalesced.


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


# dL/dx: thread owns dx[n, h, w, c]. It gathers from the outputs whose window holds (h, w): for
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


# dL/dw: thread owns dw[k, r, s, c] and sums over all images and outputs: a long sum for few threads
# (conv1 has 34,848 weights). Neighbouring threads read neighbouring channels of x (coalesced) and
# share dy (broadcast).


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


# dL/db: block owns db[k] = Σ dy[row, k] over all rows (n, p, q). Thread t adds rows t, t + 128, ...
# in order; then the 128 partial sums are added pairwise in shared memory, with half as many threads
# each round. The barrier after each round makes sure that a sum is complete before it is read.
# Neighbouring threads read elements K apart: not coalesced.

SUM_THREADS = 128


@cuda.jit
def conv_bias_gradient_kernel(dy, db):
    partial = cuda.shared.array(SUM_THREADS, db.dtype)
    k = cuda.blockIdx.x
    t = cuda.threadIdx.x
    total = db.dtype.type(0)
    for row in range(t, dy.shape[0], SUM_THREADS):
        total += dy[row, k]
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


# --- layer

ALGORITHMS = "auto", "direct", "host", "shared", "tiled", "tensor"


class Conv2D(Layer):
    """Convolution with square filters (paper §3.5).

    in_channels C, out_channels K, kernel_size R = S, stride in pixels; padding in pixels, an int
    or (before, after); groups must divide both channel counts. Attributes `weight`
    (K, R, S, C / groups) and `bias` (K) are Parameters, zero until `tinyconv.initialize` draws
    them. ValueError names what does not fit.

    algorithm is a hint for `layers/fast/plan.py`: "auto", "direct" (this file), "host", "shared",
    "tiled" or "tensor". The layer itself ignores it.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1,
        algorithm="auto",
    ):  # fmt: skip
        super().__init__()
        before, after = (padding, padding) if isinstance(padding, Integral) else padding
        sizes = in_channels, out_channels, kernel_size, stride, groups
        if min(sizes) < 1 or min(before, after) < 0:
            raise ValueError(
                "Conv2D: channels, kernel_size, stride and groups must be at least 1, padding at "
                f"least 0; got {', '.join(map(str, sizes))} and {padding}"
            )
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2D: groups={groups} must divide both in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        if algorithm not in ALGORITHMS:
            known = ", ".join(map(repr, ALGORITHMS))
            raise ValueError(f"Conv2D: algorithm {algorithm!r}, not one of {known}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = kernel_size, stride
        self.before, self.after, self.groups = before, after, groups
        self.algorithm = algorithm
        shape = (out_channels, kernel_size, kernel_size, in_channels // groups)
        self.weight = Parameter("weight", shape)
        self.bias = Parameter("bias", (out_channels,))

    def parameters(self):
        """weight, bias."""
        return [self.weight, self.bias]

    def output_shape(self, input_shape):
        """(H, W, C) -> (P, Q, K)."""
        if len(input_shape) != 3 or input_shape[2] != self.in_channels:
            raise ValueError(
                f"{self.name}: an image of shape {input_shape} does not fit filters of shape "
                f"{self.weight.value.shape} in {self.groups} group(s); expected "
                f"(H, W, {self.in_channels})"
            )
        padded = [side + self.before + self.after for side in input_shape[:2]]
        if min(padded) < self.kernel_size:
            raise ValueError(
                f"{self.name}: an image of shape {input_shape}, padded to {padded[0]}x{padded[1]}, "
                f"is smaller than the {self.kernel_size}x{self.kernel_size} window"
            )
        rows, columns = ((side - self.kernel_size) // self.stride + 1 for side in padded)
        return rows, columns, self.out_channels

    def multiply_adds(self, input_shape):
        """P · Q · K · R · S · C / groups."""
        rows, columns, _ = self.output_shape(input_shape)
        return rows * columns * self.weight.value.size

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        self.x = x = self.check_input(x)
        self.y = y = self.buffer("y", (x.shape[0], *self.output_shape(x.shape[1:])))
        arguments = (
            *(x, self.weight.value, self.bias.value, y),
            *(self.stride, self.before, self.groups),
        )
        if self.device.is_cuda:
            conv_forward_kernel[grid_for(y.size)](*arguments)
        else:
            conv_forward_host(*arguments)
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        dy, x, w = self.check_gradient(dy), self.x, self.weight.value
        dx = self.buffer("dx", x.shape) if self.input_gradient else None
        dw, db = self.weight.grad, self.bias.grad
        geometry = self.stride, self.before, self.groups
        if self.device.is_cuda:
            if dx is not None:
                conv_input_gradient_kernel[grid_for(dx.size)](dy, w, dx, *geometry)
            conv_filter_gradient_kernel[grid_for(dw.size)](x, dy, dw, *geometry)
            conv_bias_gradient_kernel[grid_of(db.size, SUM_THREADS)](dy.reshape(-1, db.size), db)
        else:
            if dx is not None:
                conv_input_gradient_host(dy, w, dx, *geometry)
            conv_filter_gradient_host(x, dy, dw, db, *geometry)
        return dx
