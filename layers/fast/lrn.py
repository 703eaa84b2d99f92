"""Local response normalization through shared memory: each value is read from global memory once.

Replaces the kernels of `layers/lrn.py`, which has the formulas, shapes and names. Those read each x
five times forward, and each of dy, y and scale five times backward, mostly from the cache; they
also write the scale s, and read it again backward. Here

* a block copies a run of memory into shared memory, with the `half` elements before and after it,
  and sums its windows there. Channels are last, so a window is a run of neighbours, and the array
  is one group of channels after the other: the kernel only needs their width;
* s is not stored but recomputed. Forward then moves x and y, backward x, dy and dx: five arrays
  instead of eight, and one buffer less.

With s computed again, dL/dx needs no y either:

    dL/da[j] = dL/db[j] · s[j]^−β  −  2 α β a[j] Σ_i dL/db[i] · a[i] · s[i]^−β / s[i]

The paper's β = 0.75 has a power that needs no logarithm: s^−¾ = 1 / (√s · √√s).

These kernels take any window, β and number of channels, float64 too. For the paper's windows and
whole groups of eight channels there is `lrn_vectorized.py`.
"""

import math

from layers.device import THREADS, cuda, grid_of
from layers.fast import lrn_vectorized
from layers.fast.bfloat16 import narrow, wide_type, widen
from layers.fast.conv.ptx import is_aligned
from layers.fast.step import Step

TILE = 4 * THREADS
"""Elements that a block owns: the neighbours it also reads, 2 · half of them, are few beside it."""

MOST_HALF = 16
"""Windows reach no further than this to either side: the shared arrays have a fixed size."""

STAGED_ONE = TILE + 2 * MOST_HALF
STAGED_TWO = TILE + 4 * MOST_HALF

# --- kernels
#
# Both: block b owns elements b · TILE to (b + 1) · TILE of the flat arrays, and its thread t those
# with t, t + THREADS, ... Loads from global memory are coalesced runs, as are the stores. Shared
# arrays: neighbouring threads access neighbouring words, no bank conflicts; a barrier separates
# writing from reading. Every output has one owner: no races, deterministic.
#
# Backward: term[i] = dy · x · s^−β / s is needed `half` elements beyond the block's own on either
# side, and its window as far again: x is staged with twice the margin.


def inverse_power(s, one, beta, three_quarters):
    """s^−beta; `three_quarters` says that beta is 0.75, and `one` is 1 of the type of s."""
    if three_quarters:
        root = math.sqrt(s)
        return one / (root * math.sqrt(root))
    return s**-beta


inverse_power_device = cuda.jit(inverse_power, device=True, inline="always")


@cuda.jit
def lrn_rows_forward_kernel(x, y, width, half, k, alpha, beta, three_quarters):
    staged = cuda.shared.array(STAGED_ONE, wide_type(x))
    first = cuda.blockIdx.x * TILE - half
    for place in range(cuda.threadIdx.x, TILE + 2 * half, THREADS):
        if first + place >= 0 and first + place < x.size:
            staged[place] = widen(x[first + place])
    cuda.syncthreads()
    one = wide_type(x).type(1)
    for place in range(half + cuda.threadIdx.x, half + TILE, THREADS):
        i = first + place
        if i < x.size:
            low = i // width * width
            total = wide_type(x).type(0)
            for j in range(max(low, i - half) - first, min(low + width, i + half + 1) - first):
                near = staged[j]
                total += near * near
            power = inverse_power_device(k + alpha * total, one, beta, three_quarters)
            y[i] = narrow(staged[place] * power, y)


@cuda.jit
def lrn_rows_backward_kernel(
    x, dy, dx, width, half, k, alpha, beta, two_alpha_beta, three_quarters
):  # fmt: skip
    staged = cuda.shared.array(STAGED_TWO, wide_type(x))
    direct = cuda.shared.array(STAGED_ONE, wide_type(x))  # dy · s^−β
    terms = cuda.shared.array(STAGED_ONE, wide_type(x))
    first = cuda.blockIdx.x * TILE - half  # of direct and terms; staged begins `half` before
    for place in range(cuda.threadIdx.x, TILE + 4 * half, THREADS):
        i = first - half + place
        if i >= 0 and i < x.size:
            staged[place] = widen(x[i])
    cuda.syncthreads()
    one = wide_type(x).type(1)
    for place in range(cuda.threadIdx.x, TILE + 2 * half, THREADS):
        i = first + place
        if i >= 0 and i < x.size:
            low = i // width * width
            total = wide_type(x).type(0)
            start = first - half
            for j in range(max(low, i - half) - start, min(low + width, i + half + 1) - start):
                near = staged[j]
                total += near * near
            s = k + alpha * total
            value = widen(dy[i]) * inverse_power_device(s, one, beta, three_quarters)
            direct[place] = value
            terms[place] = value * staged[place + half] / s
    cuda.syncthreads()
    for place in range(half + cuda.threadIdx.x, half + TILE, THREADS):
        j = first + place
        if j < x.size:
            low = j // width * width
            total = wide_type(x).type(0)
            for i in range(max(low, j - half) - first, min(low + width, j + half + 1) - first):
                total += terms[i]
            value = direct[place] - two_alpha_beta * staged[place + half] * total
            dx[j] = narrow(value, dx)


# --- step


class LRNRows(Step):
    """A LocalResponseNorm on a GPU, by the kernels above or those of `lrn_vectorized.py`."""

    short = "vectorized"
    computed_by = "lrn_{vectorized,rows}_{forward,backward}_kernel"

    @staticmethod
    def fits(norm):
        """Whether windows reach no further than the shared arrays."""
        return norm.size // 2 <= MOST_HALF

    def forward(self, x, train=True):
        """x (N, ..., C) -> y of the same shape."""
        self.x = x = self.check_input(x)
        y = self.output(x.shape)
        width, half, (k, alpha, beta), quick = self._arguments(x)
        arrays = x.reshape(-1), y.reshape(-1)
        self.vectorized = lrn_vectorized.fits(*self.layers, width, self.dtype, x)
        if self.vectorized:
            kernel = lrn_vectorized.lrn_vectorized_forward_kernel
            launch, rows = lrn_vectorized.launch(kernel, x.size, width)
            launch(*arrays, rows, k, alpha)
        else:
            launch = lrn_rows_forward_kernel[grid_of(-(-x.size // TILE), THREADS)]
            launch(*arrays, width, half, k, alpha, beta, quick)
        return y

    def backward(self, dy):
        """dy -> dx, both of x's shape."""
        (norm,) = self.layers
        dy = self.check_gradient(dy)
        dx = self.buffer("dx", dy.shape, self.storage)
        width, half, (k, alpha, beta), quick = self._arguments(dy)
        factor = self.dtype.type(2 * norm.alpha * norm.beta)
        arrays = (array.reshape(-1) for array in (self.x, dy, dx))
        if self.vectorized and is_aligned(dy):
            kernel = lrn_vectorized.lrn_vectorized_backward_kernel
            launch, rows = lrn_vectorized.launch(kernel, dy.size, width)
            launch(*arrays, rows, k, alpha, factor)
        else:
            launch = lrn_rows_backward_kernel[grid_of(-(-dy.size // TILE), THREADS)]
            launch(*arrays, width, half, k, alpha, beta, factor, quick)
        return dx

    def _arguments(self, x):
        (norm,) = self.layers
        width, number = x.shape[-1] // norm.groups, self.dtype.type
        half = min(norm.size // 2, width - 1)
        constants = number(norm.k), number(norm.alpha), number(norm.beta)
        return width, half, constants, int(norm.beta == 0.75)
