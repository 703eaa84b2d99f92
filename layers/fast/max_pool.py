"""Max pooling of 3×3 windows at stride 2 (paper §3.4): one thread walks along a row.

Replaces the kernels of `layers/max_pool.py` for these windows; formulas, shapes and names are those
of that file. There every output has a thread: of its nine inputs, the window to the right reads
three again, and the window below three. Here a thread has a row of outputs and keeps the column
that two windows share in registers: each input is read 1.5 times instead of 2.25, columns once and
only the shared rows twice.

The winner is its place in the window, r · 3 + s, in one byte instead of four: at 27×27×96 outputs
and batch 128 that is 9 MB instead of 36, written forward and read backward.

Backward a thread has a row of inputs, and a window meets a row in three neighbours: the thread
reads each winner of the one or two rows of windows over it once, where `layers/max_pool.py` has
every pixel read up to four.

Both give the same bits as `layers/max_pool.py`: the first of equals wins, a NaN wins, and sums are
added in the same order.

These kernels take any number of channels, float64 too. For whole groups of four channels there is
`max_pool_vectorized.py`.
"""

from layers.device import cuda, grid_for
from layers.fast import max_pool_vectorized
from layers.fast.bfloat16 import narrow, wide_type, widen
from layers.fast.step import Step

# --- kernels
#
# Forward: one thread per (n, p, c), c fastest, which owns y[n, p, :, c] and winner[n, p, :, c].
# Backward: one thread per (n, h, c), which owns dx[n, h, :, c]. In each iteration a warp reads and
# writes 32 neighbouring channels of one pixel: coalesced. No races, no atomics, deterministic.


def larger(best, place, value, s):
    """The winner so far and its place, after looking at the value in place s."""
    if value > best or value != value:
        return value, s
    return best, place


larger_device = cuda.jit(larger, device=True, inline="always")


@cuda.jit
def max_pool_rows_forward_kernel(x, y, winner):
    index = cuda.grid(1)
    if index >= y.shape[0] * y.shape[1] * y.shape[3]:
        return
    c = index % y.shape[3]
    p = index // y.shape[3] % y.shape[1]
    n = index // (y.shape[3] * y.shape[1])
    h = 2 * p
    # The window's left column, which was the right one of the window before.
    left_0, left_1 = widen(x[n, h, 0, c]), widen(x[n, h + 1, 0, c])
    left_2 = widen(x[n, h + 2, 0, c])
    for q in range(y.shape[2]):
        w = 2 * q + 1
        middle_0, right_0 = widen(x[n, h, w, c]), widen(x[n, h, w + 1, c])
        middle_1, right_1 = widen(x[n, h + 1, w, c]), widen(x[n, h + 1, w + 1, c])
        middle_2, right_2 = widen(x[n, h + 2, w, c]), widen(x[n, h + 2, w + 1, c])
        best, place = larger_device(left_0, 0, middle_0, 1)
        best, place = larger_device(best, place, right_0, 2)
        best, place = larger_device(best, place, left_1, 3)
        best, place = larger_device(best, place, middle_1, 4)
        best, place = larger_device(best, place, right_1, 5)
        best, place = larger_device(best, place, left_2, 6)
        best, place = larger_device(best, place, middle_2, 7)
        best, place = larger_device(best, place, right_2, 8)
        y[n, p, q, c] = narrow(best, y)
        winner[n, p, q, c] = place
        left_0, left_1, left_2 = right_0, right_1, right_2


@cuda.jit
def max_pool_rows_backward_kernel(dy, winner, dx):
    index = cuda.grid(1)
    if index >= dx.shape[0] * dx.shape[1] * dx.shape[3]:
        return
    c = index % dx.shape[3]
    h = index // dx.shape[3] % dx.shape[1]
    n = index // (dx.shape[3] * dx.shape[1])
    zero = wide_type(dx).type(0)
    # The windows in row `lower` have this row of pixels as their first or second, those in row
    # `upper` as their third; `first` is the place that the lower ones call its left pixel.
    lower, upper = h // 2, h // 2 - 1
    first = 3 * (h % 2)
    has_lower, has_upper = lower < dy.shape[1], h % 2 == 0 and h > 0
    right_upper, right_lower = zero, zero  # of the window before: for the column it shares
    for q in range(dy.shape[2]):
        left = zero + right_upper
        middle = zero
        right_upper_next, right_lower_next = zero, zero
        if has_upper:
            place, gradient = winner[n, upper, q, c], widen(dy[n, upper, q, c])
            if place == 6:
                left += gradient
            elif place == 7:
                middle += gradient
            elif place == 8:
                right_upper_next = gradient
        left += right_lower
        if has_lower:
            place, gradient = winner[n, lower, q, c], widen(dy[n, lower, q, c])
            if place == first:
                left += gradient
            elif place == first + 1:
                middle += gradient
            elif place == first + 2:
                right_lower_next = gradient
        dx[n, h, 2 * q, c] = narrow(left, dx)
        dx[n, h, 2 * q + 1, c] = narrow(middle, dx)
        right_upper, right_lower = right_upper_next, right_lower_next
    last = 2 * dy.shape[2]
    dx[n, h, last, c] = narrow(zero + right_upper + right_lower, dx)
    for w in range(last + 1, dx.shape[2]):
        dx[n, h, w, c] = narrow(zero, dx)


# --- step


class MaxPoolRows(Step):
    """A MaxPool2D of 3×3 windows at stride 2, on a GPU; the same bits.

    By the kernels above, or by those of `max_pool_vectorized.py`.
    """

    short = "by rows"
    computed_by = "max_pool_{vectorized,rows}_{forward,backward}_kernel"

    @staticmethod
    def fits(pool):
        """Whether these are the paper's windows, all of them whole."""
        return (pool.kernel_size, pool.stride, pool.ceil) == (3, 2, False)

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, C)."""
        (pool,) = self.layers
        x = self.check_input(x)
        self.x_shape = x.shape
        y = self.output((x.shape[0], *pool.output_shape(x.shape[1:])))
        self.places = self.buffer("places", y.shape, "uint8")
        vectorized = max_pool_vectorized.fits(self.dtype, x)
        self.y_is_rounded = self.rounds_output and vectorized
        if vectorized:
            kernel = max_pool_vectorized.max_pool_vectorized_forward_kernel
            launch = max_pool_vectorized.launch(kernel, y.shape, y.shape[1])
            launch(*_flat(x, y, self.places), *x.shape[1:], *y.shape[1:3], self.rounds_output)
        else:
            threads = y.shape[0] * y.shape[1] * y.shape[3]
            max_pool_rows_forward_kernel[grid_for(threads)](x, y, self.places)
        return y

    def backward(self, dy):
        """dy (N, P, Q, C) -> dx (N, H, W, C)."""
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", self.x_shape, self.storage)
        if max_pool_vectorized.fits(self.dtype, dy):
            kernel = max_pool_vectorized.max_pool_vectorized_backward_kernel
            launch = max_pool_vectorized.launch(kernel, dx.shape, -(-dx.shape[1] // 2))
            launch(*_flat(dy, self.places, dx), *dx.shape[1:], *dy.shape[1:3])
        else:
            threads = dx.shape[0] * dx.shape[1] * dx.shape[3]
            max_pool_rows_backward_kernel[grid_for(threads)](dy, self.places, dx)
        return dx


def _flat(*arrays):
    return (array.reshape(-1) for array in arrays)
