"""Average pooling (in the 2012 code's nets for CIFAR-10; AlexNet has none).

    y[n, p, q, c] = mean over r, s < K of x[n, p·stride + r, q·stride + s, c]

    dL/dx[n, h, w, c] = Σ over the windows (p, q) that contain (h, w) of dL/dy[n, p, q, c] / size

Shapes: x, dx (N, H, W, C); y, dy (N, P, Q, C), as in `max_pool.py`, also with `ceil`. `size` is the
number of pixels of the window that are inside the image. float32 or float64.
"""

from numba import njit, prange

from layers.device import cuda, grid_for
from layers.max_pool import Pool2D

# --- host


@njit(parallel=True, cache=True)
def avg_pool_forward_host(x, y, size, stride):
    for n in prange(y.shape[0]):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                window = x[n, p * stride : p * stride + size, q * stride : q * stride + size]
                for c in range(y.shape[3]):
                    y[n, p, q, c] = window[:, :, c].mean()


@njit(parallel=True, cache=True)
def avg_pool_backward_host(dy, dx, size, stride):
    for n in prange(dx.shape[0]):
        dx[n] = 0
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                window = dx[n, p * stride : p * stride + size, q * stride : q * stride + size]
                for c in range(dy.shape[3]):
                    window[:, :, c] += dy[n, p, q, c] / window[:, :, c].size


# --- kernels
#
# One thread per element of y, or of dx, c fastest: coalesced. Backward gathers from the windows
# that contain the thread's pixel, in a fixed order: no races and no atomics, deterministic.


@cuda.jit
def avg_pool_forward_kernel(x, y, size, stride):
    index = cuda.grid(1)
    if index >= y.size:
        return
    c = index % y.shape[3]
    q = index // y.shape[3] % y.shape[2]
    p = index // (y.shape[3] * y.shape[2]) % y.shape[1]
    n = index // (y.shape[3] * y.shape[2] * y.shape[1])
    bottom, right = min(p * stride + size, x.shape[1]), min(q * stride + size, x.shape[2])
    total = y.dtype.type(0)
    for h in range(p * stride, bottom):
        for w in range(q * stride, right):
            total += x[n, h, w, c]
    y[n, p, q, c] = total / y.dtype.type((bottom - p * stride) * (right - q * stride))


@cuda.jit
def avg_pool_backward_kernel(dy, dx, size, stride):
    index = cuda.grid(1)
    if index >= dx.size:
        return
    c = index % dx.shape[3]
    w = index // dx.shape[3] % dx.shape[2]
    h = index // (dx.shape[3] * dx.shape[2]) % dx.shape[1]
    n = index // (dx.shape[3] * dx.shape[2] * dx.shape[1])
    total = dx.dtype.type(0)
    for p in range(max(0, (h - size) // stride + 1), min(dy.shape[1], h // stride + 1)):
        rows = min(size, dx.shape[1] - p * stride)
        for q in range(max(0, (w - size) // stride + 1), min(dy.shape[2], w // stride + 1)):
            columns = min(size, dx.shape[2] - q * stride)
            total += dy[n, p, q, c] / dx.dtype.type(rows * columns)
    dx[n, h, w, c] = total


# --- layer


class AvgPool2D(Pool2D):
    """Mean over windows of kernel_size × kernel_size, `stride` apart."""

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, C)."""
        x = self.check_input(x)
        self.x_shape = x.shape
        self.y = y = self.buffer("y", (x.shape[0], *self.output_shape(x.shape[1:])))
        arguments = x, y, self.kernel_size, self.stride
        if self.device.is_cuda:
            avg_pool_forward_kernel[grid_for(y.size)](*arguments)
        else:
            avg_pool_forward_host(*arguments)
        return y

    def backward(self, dy):
        """dy (N, P, Q, C) -> dx (N, H, W, C)."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", self.x_shape)
        arguments = dy, dx, self.kernel_size, self.stride
        if self.device.is_cuda:
            avg_pool_backward_kernel[grid_for(dx.size)](*arguments)
        else:
            avg_pool_backward_host(*arguments)
        return dx
