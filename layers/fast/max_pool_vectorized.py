"""Max pooling of 3×3 windows at stride 2, four channels a thread.

Replaces the kernels of `max_pool.py` in float32 and bfloat16 where channels are a multiple of four.
Formulas, shapes, winners and all bits are the same. There a thread has one channel and spends
two thirds of its instructions on places of elements. Here

* a block is (channels / 4, rows) threads of one image, so nothing is divided; the image's first
  element is counted in 64 bits, all others from there on;
* four channels are loaded, and their winners stored, by one instruction;
* backward a thread has two rows of pixels, 2 i and 2 i + 1. Row i of windows is over both, row
  i − 1 over the first: each winner is read twice instead of three times.
"""

from numba import float32, int32

from layers.device import cuda, grid_of
from layers.fast.bfloat16 import nearest_tf32
from layers.fast.conv.ptx import (
    is_aligned,
    load_bytes,
    load_vec4,
    store_bytes,
    store_vec4,
)

PER_THREAD = 4
BLOCK = 128
"""Threads in a block, at most."""

# --- kernels
#
# All arrays are flat. Forward: grid (images, rows of blocks, channels of blocks); a thread owns
# y[n, p, :, c : c + 4] and the winners; rounded: y to TF32, for tensor cores. Backward: the same
# with dx and pairs of rows. A warp reads and writes 128 neighbouring channels of one pixel, or all
# of several rows: coalesced. No races, no atomics, deterministic.


@cuda.jit(device=True, inline="always")
def keep_larger(best, places, values, first, place):
    """The winners so far, after looking at four values in `place` of their windows. A NaN wins."""
    for i in range(4):
        value = values[first + i]
        if value > best[i] or value != value:
            best[i] = value
            places[i] = place


@cuda.jit
def max_pool_vectorized_forward_kernel(
    x, y, winner, height, width, channels, rows, columns, rounded
):
    best = cuda.local.array(4, float32)
    places = cuda.local.array(4, int32)
    left = cuda.local.array(12, float32)  # of three rows
    middle = cuda.local.array(12, float32)
    right = cuda.local.array(12, float32)
    c = 4 * (cuda.blockIdx.z * cuda.blockDim.x + cuda.threadIdx.x)
    p = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    if c >= channels or p >= rows:
        return
    n, line = cuda.blockIdx.x, width * channels
    at = (n * height + 2 * p) * line + c
    out = (n * rows + p) * columns * channels + c
    # The window's left column, which was the right one of the window before.
    for r in range(3):
        load_vec4(left, 4 * r, x, at + r * line)
    for _ in range(columns):
        for r in range(3):
            load_vec4(middle, 4 * r, x, at + r * line + channels)
            load_vec4(right, 4 * r, x, at + r * line + 2 * channels)
        for i in range(4):
            best[i] = left[i]
            places[i] = 0
        keep_larger(best, places, middle, 0, 1)
        keep_larger(best, places, right, 0, 2)
        keep_larger(best, places, left, 4, 3)
        keep_larger(best, places, middle, 4, 4)
        keep_larger(best, places, right, 4, 5)
        keep_larger(best, places, left, 8, 6)
        keep_larger(best, places, middle, 8, 7)
        keep_larger(best, places, right, 8, 8)
        if rounded:
            for i in range(4):
                best[i] = nearest_tf32(best[i])
        store_vec4(y, out, best, 0)
        store_bytes(winner, out, places, 0)
        for i in range(12):
            left[i] = right[i]
        at += 2 * channels
        out += channels


@cuda.jit(device=True, inline="always")
def add_window(left, middle, right, places, gradients, first):
    """Add the gradients of four windows whose left pixel in this row is place `first`.

    To the left pixels and the middle ones; those of the right pixels are for the next windows.
    """
    for i in range(4):
        gradient = gradients[i]
        place = places[i] - first
        if place == 0:
            left[i] += gradient
        if place == 1:
            middle[i] += gradient
        right[i] = gradient if place == 2 else float32(0)


@cuda.jit
def max_pool_vectorized_backward_kernel(dy, winner, dx, height, width, channels, rows, columns):
    places = cuda.local.array(4, int32)
    gradients = cuda.local.array(4, float32)
    left = cuda.local.array(4, float32)
    middle = cuda.local.array(4, float32)
    odd_left = cuda.local.array(4, float32)
    odd_middle = cuda.local.array(4, float32)
    # For the column that a window shares with the next: from the windows above, and from those
    # below in the even and in the odd row.
    upper = cuda.local.array(4, float32)
    lower = cuda.local.array(4, float32)
    odd = cuda.local.array(4, float32)
    zeros = cuda.local.array(4, float32)
    c = 4 * (cuda.blockIdx.z * cuda.blockDim.x + cuda.threadIdx.x)
    p = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    if c >= channels or 2 * p >= height:
        return
    n, line = cuda.blockIdx.x, width * channels
    has_upper, has_lower, has_odd = p > 0, p < rows, 2 * p + 1 < height
    at = (n * rows + p) * columns * channels + c
    above = at - columns * channels
    out = (n * height + 2 * p) * line + c
    zero = float32(0)
    for i in range(4):
        upper[i] = lower[i] = odd[i] = zeros[i] = zero
    for _ in range(columns):
        for i in range(4):
            left[i] = zero + upper[i]
            odd_left[i] = zero + odd[i]
            middle[i] = odd_middle[i] = zero
        if has_upper:
            load_bytes(places, 0, winner, above)
            load_vec4(gradients, 0, dy, above)
            add_window(left, middle, upper, places, gradients, 6)
        for i in range(4):
            left[i] += lower[i]
        if has_lower:
            load_bytes(places, 0, winner, at)
            load_vec4(gradients, 0, dy, at)
            add_window(left, middle, lower, places, gradients, 0)
            add_window(odd_left, odd_middle, odd, places, gradients, 3)
        store_vec4(dx, out, left, 0)
        store_vec4(dx, out + channels, middle, 0)
        if has_odd:
            store_vec4(dx, out + line, odd_left, 0)
            store_vec4(dx, out + line + channels, odd_middle, 0)
        at += channels
        above += channels
        out += 2 * channels
    for i in range(4):
        left[i] = zero + upper[i] + lower[i]
        odd_left[i] = zero + odd[i]
    store_vec4(dx, out, left, 0)
    if has_odd:
        store_vec4(dx, out + line, odd_left, 0)
    for _ in range(2 * columns + 1, width):
        out += channels
        store_vec4(dx, out, zeros, 0)
        if has_odd:
            store_vec4(dx, out + line, zeros, 0)


# --- launches


def fits(dtype, *arrays):
    """Whether the kernels take these arrays (N, H, W, C) of a step that computes in `dtype`."""
    return dtype == "float32" and all(
        array.shape[-1] % PER_THREAD == 0 and is_aligned(array) for array in arrays
    )


def launch(kernel, shape, rows):
    """The kernel with its grid, for images of `shape` (N, H, W, C) and `rows` of threads."""
    images, _, _, channels = shape
    across = min(channels // PER_THREAD, BLOCK)
    together = min(BLOCK // across, rows)
    grid = images, -(-rows // together), -(-channels // (PER_THREAD * across))
    return kernel[grid_of(grid, (across, together))]
