"""Local response normalization with windows of 5 and β = ¾, eight channels a thread.

Replaces the kernels of `lrn.py`, which has the formulas, for the paper's constants where a group's
channels are a multiple of eight. Those spend some 380 instructions on an element forward, most of
them on the place of its window; at five instructions a byte an H200 can issue no more than its
memory moves. Here

* a block is (channels / 8, rows) threads, so that a thread's place in its row is `threadIdx.x` and
  nothing is divided;
* a thread loads its eight channels by 16 bytes at a time, and the two or four before and behind
  them, which its neighbours load as well, out of the cache. Beyond the group's ends they are zeros:
  the same sums, in the same order;
* s^−¾ = r · √r with r = 1 / √s, which a GPU approximates by one instruction each (`conv/ptx.py`).
  1 / s is r · r. This is the only difference from `lrn.py`, of a few units in the last place.
"""

from numba import float32

from layers.device import cuda, grid_of
from layers.fast.conv.ptx import (
    is_aligned,
    load_vec2,
    load_vec4,
    load_vec8,
    root,
    rsqrt,
    store_vec8,
)

PER_THREAD = 8
HALF = 2
BLOCK = 128
"""Threads in a block, at most; and hence channels of a group divided by eight."""

SMALLEST_K = 1e-12
"""s is at least k, and 1 / s must be a normal number."""

# --- kernels
#
# Both: thread (c, r) of block b owns channels 8 c to 8 c + 7 of row b · rows + r; a row is a group
# at one place of an image. Its threads are neighbours in memory: loads and stores are coalesced.
# The thread's first element is counted in 64 bits, once. Every output has one owner, and a thread
# reads nothing that others write: no races, deterministic.


@cuda.jit
def lrn_vectorized_forward_kernel(x, y, rows, k, alpha):
    values = cuda.local.array(12, float32)  # from two channels before the first on
    c, row = cuda.threadIdx.x, cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    if row >= rows:
        return
    at = 8 * (row * cuda.blockDim.x + c)
    zero = float32(0)
    values[0] = values[1] = values[10] = values[11] = zero
    if c > 0:
        load_vec2(values, 0, x, at - 2)
    load_vec8(values, 2, x, at)
    if c < cuda.blockDim.x - 1:
        load_vec2(values, 10, x, at + 8)
    results = cuda.local.array(8, float32)
    for i in range(8):
        total = zero
        for j in range(i, i + 5):
            total += values[j] * values[j]
        r = rsqrt(k + alpha * total)
        results[i] = values[i + 2] * (r * root(r))
    store_vec8(y, at, results, 0)


@cuda.jit
def lrn_vectorized_backward_kernel(x, dy, dx, rows, k, alpha, two_alpha_beta):
    values = cuda.local.array(16, float32)  # x from four channels before the first on
    direct = cuda.local.array(12, float32)  # dy · s^−β, from two channels before it on
    terms = cuda.local.array(12, float32)  # dy · x · s^−β / s
    c, row = cuda.threadIdx.x, cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    if row >= rows:
        return
    at = 8 * (row * cuda.blockDim.x + c)
    zero = float32(0)
    for i in range(4):
        values[i] = values[12 + i] = zero
    direct[0] = direct[1] = direct[10] = direct[11] = zero
    if c > 0:
        load_vec4(values, 0, x, at - 4)
        load_vec2(direct, 0, dy, at - 2)
    load_vec8(values, 4, x, at)
    load_vec8(direct, 2, dy, at)
    if c < cuda.blockDim.x - 1:
        load_vec4(values, 12, x, at + 8)
        load_vec2(direct, 10, dy, at + 8)
    for i in range(12):
        total = zero
        for j in range(i, i + 5):
            total += values[j] * values[j]
        r = rsqrt(k + alpha * total)
        direct[i] *= r * root(r)
        terms[i] = direct[i] * values[i + 2] * (r * r)
    results = cuda.local.array(8, float32)
    for i in range(8):
        total = zero
        for j in range(i, i + 5):
            total += terms[j]
        results[i] = direct[i + 2] - two_alpha_beta * values[i + 4] * total
    store_vec8(dx, at, results, 0)


# --- launches


def fits(norm, width, dtype, *arrays):
    """Whether the kernels compute `norm` of arrays with `width` channels in a group."""
    return (
        norm.size == 2 * HALF + 1
        and norm.beta == 0.75
        and norm.k >= SMALLEST_K
        and dtype == "float32"
        and width % PER_THREAD == 0
        and width <= PER_THREAD * BLOCK
        and all(is_aligned(array) for array in arrays)
    )


def launch(kernel, size, width):
    """The kernel with its grid, for arrays of `size` elements; and their rows."""
    across, rows = width // PER_THREAD, size // width
    together = BLOCK // across
    return kernel[grid_of(-(-rows // together), (across, together))], rows
