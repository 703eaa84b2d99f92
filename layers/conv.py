"""Two-dimensional convolution (paper §3.5; the five convolutional layers of AlexNet).

    y[n, p, q, k] = b[k] + Σ_{r, s, c} x[n, h, w, c] · w[k, r, s, c]

        with  h = p·stride + r − before   and   w = q·stride + s − before

    dL/dw[k, r, s, c] = Σ_{n, p, q} dL/dy[n, p, q, k] · x[n, h, w, c]         h, w as above
    dL/dx[n, h, w, c] = Σ_{k, r, s} dL/dy[n, p, q, k] · w[k, r, s, c]         p, q such that
                                                                              h, w are as above
    dL/db[k]          = Σ_{n, p, q} dL/dy[n, p, q, k]

(No filter is turned around, so strictly this is a correlation, as everywhere in the field.)

Shapes: x (N, H, W, C), w (K, R, S, C / groups) with R = S, b (K), y (N, P, Q, K);
P = (H + before + after − R) // stride + 1, Q likewise. Outside the image x is 0: `before` rows
and columns of zeros above and to the left, `after` of them below and to the right.

With `groups` > 1 both channels and filters are cut into that many equal parts, and a filter sees
only its own part: the two GPUs of the paper (§3.5) talk in some layers only.

One operation, several ways to compute it; `algorithm` names one:

    host.py     "host"    im2col and BLAS; what the CPU runs
    direct.py   "direct"  rung 1 on a GPU: one thread per output; float32 and float64
    tiled.py    "tiled"   rung 2 on a GPU: a product of tiles in shared memory; float32. dL/dx of a
                          layer with a stride is still rung 1's
    tensor_core.py "tensor"  rung 3 on a GPU: the tiles' products by tensor cores; for precision
                          tf32 and bf16 (`layers/fast/precision.py`), which the others do not know

"auto" takes the fastest that fits: "host" on the CPU; on a GPU "tensor" for tf32 and bf16, "tiled"
for float32 and "direct" for float64, and in the simulator "direct" for both, where a whole tile
costs the same for an image of one pixel. The host emulates tf32 and bf16 with rounded copies of x,
w and dy.
"""

from numbers import Integral

import numpy as np

from layers.device import Device, cuda, grid_for, grid_of
from layers.fast.bfloat16 import widen
from layers.fast.bias_relu import bias_gradient
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile import LARGEST
from layers.fast.conv.tiled import tiled_forward
from layers.fast.conv.tiled_gradients import tiled_filter_gradient, tiled_input_gradient
from layers.fast.host.im2col import conv_backward_host, conv_forward_host
from layers.fast.precision import settle
from layers.layer import Layer, Parameter

# --- kernels

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


ALGORITHMS = "auto", "host", "direct", "tiled", "tensor"


class Conv2D(Layer):
    """Convolution with square filters (paper §3.5).

    in_channels C, out_channels K, kernel_size R = S, stride in pixels; padding in pixels, an int
    or (before, after); groups must divide both channel counts; algorithm "auto", "host", "direct",
    "tiled" or "tensor". Attributes `weight` (K, R, S, C / groups) and `bias` (K) are Parameters,
    zero until `tinyconv.initialize` draws them. ValueError names what does not fit.
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
                f"Conv2D: {groups} groups divide not both {in_channels} input and "
                f"{out_channels} output channels"
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

    def to(self, device, dtype=None, precision=None):
        """Move the layer; ValueError if its algorithm cannot run there, or in that dtype."""
        device, dtype = Device(device), np.dtype(self.dtype if dtype is None else dtype)
        precision = settle(self.precision if precision is None else precision, device, dtype)
        self._check_algorithm(device, dtype, precision)
        return super().to(device, dtype, precision)

    def _check_algorithm(self, device, dtype, precision):
        homes = ("direct", "tiled", "tensor") if device.is_cuda else ("host",)
        if self.algorithm not in ("auto", *homes):
            raise ValueError(
                f"{self.name}: algorithm {self.algorithm!r} does not run on {device.name}; "
                f"use 'auto' or {homes[0]!r}"
            )
        if self.algorithm == "tensor" and precision == "fp32":
            raise ValueError(
                f"{self.name}: algorithm 'tensor' rounds what it multiplies; choose how, with "
                "precision 'tf32' or 'bf16'"
            )
        if self.algorithm in ("direct", "tiled") and precision != "fp32":
            raise ValueError(
                f"{self.name}: algorithm {self.algorithm!r} computes in precision 'fp32', not "
                f"{precision!r}; use 'auto' or 'tensor'"
            )
        if self.algorithm == "tiled" and dtype != np.float32:
            raise ValueError(
                f"{self.name}: algorithm 'tiled' computes in float32, not {dtype}; "
                "use 'auto' or 'direct'"
            )

    @property
    def on_tensor_cores(self):
        """Whether rung 3 computes this layer."""
        return self.device.is_cuda and self.precision != "fp32"

    def chosen(self, *arrays):
        """What "auto" comes down to, for a launch whose largest arrays are `arrays`."""
        if self.algorithm != "auto":
            return self.algorithm
        if not self.device.is_cuda:
            return "host"
        if self.on_tensor_cores:
            return "tensor"
        fits = self.dtype == np.float32 and max(array.size for array in arrays) <= LARGEST
        return "tiled" if fits and not self.device.is_simulated else "direct"

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
        return self.compute(x)

    def compute(self, x, relu=False):
        """The same; relu=True, of rungs 2 and 3: y = max(y, 0), on the way out (`fused/`)."""
        self._check_algorithm(self.device, self.dtype, self.precision)
        self.x = x = self.check_input(x)
        shape = x.shape[0], *self.output_shape(x.shape[1:])
        self.y = y = self.buffer("y", shape, self.storage)
        w, b = self.weight.value, self.bias.value
        geometry = self.stride, self.before, self.groups
        algorithm = self.chosen(x, y)
        if algorithm == "tensor":
            self.x_s2d = tensor_forward(x, w, b, y, *geometry, self.buffer, relu)
        elif algorithm == "tiled":
            tiled_forward(x, w, b, y, *geometry, relu)
        elif algorithm == "direct":
            conv_forward_kernel[grid_for(y.size)](x, w, b, y, *geometry)
        else:
            x, w = self.operand(x, "x for products"), self.operand(w, "w for products")
            conv_forward_host(x, w, b, y, *geometry, self.buffer)
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        dy = self.check_gradient(dy)
        dx = self.gradients(dy)
        if self.device.is_cuda:
            db = self.bias.grad
            conv_bias_gradient_kernel[grid_of(db.size, SUM_THREADS)](dy.reshape(-1, db.size), db)
        return dx

    def gradients(self, dy, mask=None):
        """The same without dL/db on a GPU, where `layers/fast/conv_relu.py` has it already.

        mask, of rung 3 alone: an array like x; dx = 0 where it is not above 0.
        """
        x, w = self.x, self.weight.value
        dx = self.buffer("dx", x.shape, self.storage) if self.input_gradient else None
        dw, db = self.weight.grad, self.bias.grad
        geometry = self.stride, self.before, self.groups
        algorithm = self.chosen(x, dy)
        if algorithm == "host":
            x, w = self.operand(x, "x for products"), self.operand(w, "w for products")
            rounded = self.operand(dy, "dy for products")
            conv_backward_host(x, w, rounded, dx, dw, db, *geometry, self.buffer)
            if rounded is not dy:
                bias_gradient(self.device, dy.reshape(-1, db.size), db, self.buffer)
            return dx
        if algorithm == "tensor":
            if dx is not None:
                tensor_input_gradient(dy, w, dx, *geometry, self.buffer, mask)
            x_s2d = self.x_s2d
            tensor_filter_gradient(x, dy, dw, *geometry, self.buffer, x_s2d=x_s2d)
            return dx
        if dx is not None:
            if algorithm == "tiled" and self.stride == 1:
                tiled_input_gradient(dy, w, dx, self.before, self.groups, self.buffer)
            else:
                conv_input_gradient_kernel[grid_for(dx.size)](dy, w, dx, *geometry)
        if algorithm == "tiled":
            tiled_filter_gradient(x, dy, dw, *geometry, self.buffer)
        else:
            conv_filter_gradient_kernel[grid_for(dw.size)](x, dy, dw, *geometry)
        return dx
