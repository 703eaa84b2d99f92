"""Space-to-depth: rearranges any convolution into one that the tensor-core kernels take.

The tensor-core kernels copy chunks of 16 bytes, 4 numbers of float32 or 8 of bfloat16, so a group's
channels must be whole chunks. conv1 has three. So the image is divided into squares of b × b
pixels, and all numbers of a square become the channels of one pixel:

    x_s2d[n, i, j, (u, v, c)] = x[n, i·b + u − before, j·b + v − before, c]     0 outside of x
    w_s2d[k, i, j, (u, v, c)] = w[k, i·b + u, j·b + v, c]                       0 outside of w

for each group, with zeros that fill the last chunk. With b = 1, or b = stride, the convolution of
these is the same one: its window is ⌈R / b⌉, its stride stride / b, and its padding 0, as x_s2d
contains the padding. b = 1 only adds channels of zeros. Which b makes the shorter sums depends on
the layer: `choose_side` counts. For conv1 (R 11, C 3, stride 4; 363 terms):

    b = 4, float32 or bfloat16     3 · 3 windows · 48 numbers         432 terms
    b = 1, float32                 11 · 11 · 4                        484
    b = 1, bfloat16                11 · 11 · 8                        968

Other layouts of the 363 were counted too. Runs of 33 numbers (a window row), padded to 36 in the
filters alone, are 396 terms, and in float32 begin at multiples of 16 bytes in AlexNet's x (48 q, in
rows of 2,688 bytes): no copy of x. By `benchmarks/gpu_model.py` that saves an H200 0.7 % of a step;
but zeros of the filters would meet three numbers of the next pixel, and an Inf or NaN there would
spread. An im2col matrix, padded to 368, takes 570 MB at batch 128, where x_s2d takes 80.

For dL/dx of a layer with a stride, b = stride gives a convolution of stride 1, whose dL/dx is
dx_s2d. Each number of x is in one square, so nothing has to be added: dx, and likewise dw, are
gathered from their space-to-depth form.

For dL/dx the filters are also flipped (rotated by 180°), and their channel axes exchanged (compare
`tiled_gradients.py`), in the same pass:

    flipped[(u, v, c), i, j, k] = w_s2d[k, R' − 1 − i, R' − 1 − j, (u, v, c)]         R' = ⌈R / b⌉

The photos that conv1 takes are written as x_s2d at once (`S2dImage`, `tinyconv/data/augment.py`).
"""

from typing import Any, NamedTuple

from numba import float32, int32

from layers.device import THREADS, cuda, grid_for, grid_of
from layers.fast.bfloat16 import nearest_tf32, widen
from layers.fast.conv.mma import operand
from layers.fast.conv.ptx import element, store_vec4
from layers.fast.conv.tensor_tile import check_sizes, chunk_elements, quotient, taps_first
from layers.fast.conv.tile import OUTSIDE, within

# --- kernels
#
# One thread owns one element of the output, or four neighbouring ones of an image, the last axis
# fastest: coalesced writes, no races, deterministic. Within a row of a square neighbours read
# neighbours; `flipped_filters_s2d_kernel` reads far apart, and filters are small beside images.
# Places are divided in 32 bits, and an image's four elements share the divisions.
#
# Images and filters are written as operands, rounded to TF32 or bfloat16 here once, and not by
# every warp that loads them from shared memory.

PER_THREAD = 4


@cuda.jit
def image_to_s2d_kernel(
    x, x_s2d, height, width, channels, rows, columns, padded, side, before, groups
):
    # grid (rows of x_s2d, parts of a pixel), block (fours of a pixel, pixels); padded: channels of
    # x_s2d. A thread owns the same four channels of several pixels of a row.
    values = cuda.local.array(PER_THREAD, float32)
    offset = cuda.local.array(PER_THREAD, int32)  # in x, from the square's first pixel
    first = cuda.local.array(PER_THREAD, int32)  # column of x, from the square's; or OUTSIDE
    at = int32(PER_THREAD * (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x))
    if at >= padded:
        return
    n = quotient(cuda.blockIdx.x, rows)
    top = int32((cuda.blockIdx.x - n * rows) * side - before)
    channels_per_group, padded_per_group = quotient(channels, groups), quotient(padded, groups)
    run = int32(side * channels_per_group)
    group = quotient(at, padded_per_group)
    place = int32(at - group * padded_per_group)
    u = quotient(place, run)
    v = quotient(place - u * run, channels_per_group)
    c = int32(place - u * run - v * channels_per_group)
    for k in range(PER_THREAD):
        inside = u < side and within(top + u, height)
        first[k] = v if inside else OUTSIDE
        offset[k] = (u * width + v) * channels + group * channels_per_group + c
        c = int32(c + 1)
        if c == channels_per_group:
            c, v = int32(0), int32(v + 1)
        if v == side:
            v, u = int32(0), int32(u + 1)
    line = (n * height + top) * width  # of x, in 64 bits
    j = int32(cuda.threadIdx.y)
    while j < columns:
        left = int32(j * side - before)
        for k in range(PER_THREAD):
            values[k] = float32(0)
            if within(left + first[k], width):
                value = widen(element(x, (line + left) * channels + offset[k]))
                values[k] = nearest_tf32(value)
        store_vec4(x_s2d, (cuda.blockIdx.x * columns + j) * padded + at, values, 0)
        j = int32(j + cuda.blockDim.y)


@cuda.jit(device=True, inline="always")
def split(index, rows, columns, padded):
    """(k, i, j, place) of an element of (K, rows, columns, padded)."""
    k_i_j = quotient(index, padded)
    k_i = quotient(k_i_j, columns)
    k = quotient(k_i, rows)
    return k, int32(k_i - k * rows), int32(k_i_j - k_i * columns), int32(index - k_i_j * padded)


@cuda.jit(device=True, inline="always")
def in_order(k, i, j, place, rows, columns, padded, bk):
    """Where that element is stored: there, or by taps of `bk` channels first."""
    tap, taps = int32(i * columns + j), int32(rows * columns)
    if bk == 0:
        return int32((k * taps + tap) * padded + place)
    chunk = quotient(place, bk)
    return int32(k * taps * padded + (chunk * taps + tap) * bk + place - chunk * bk)


@cuda.jit
def filters_to_s2d_kernel(w, w_s2d, rows, columns, padded, side, bk):
    index = int32(cuda.grid(1))
    if index >= w_s2d.size:
        return
    size, channels_per_group = int32(w.shape[1]), int32(w.shape[3])
    k, i, j, place = split(index, rows, columns, padded)
    at = in_order(k, i, j, place, rows, columns, padded, bk)
    pixel = quotient(place, channels_per_group)
    u = quotient(pixel, side)
    r, s = int32(i * side + u), int32(j * side + pixel - u * side)
    if u < side and r < size and s < size:
        c = int32(place - pixel * channels_per_group)
        w_s2d[at] = operand(w[k, r, s, c], w_s2d)
    else:
        w_s2d[at] = 0


@cuda.jit
def flipped_filters_s2d_kernel(w, flipped, all_channels, rows, columns, padded, side, groups, bk):
    index = int32(cuda.grid(1))
    if index >= flipped.size:
        return
    size, channels_per_group = int32(w.shape[1]), int32(w.shape[3])
    filters_per_group = quotient(w.shape[0], groups)
    channel, i, j, k = split(index, rows, columns, padded)
    at = in_order(channel, i, j, k, rows, columns, padded, bk)
    of_group = quotient(all_channels, groups)
    group = quotient(channel, of_group)
    place = int32(channel - group * of_group)
    pixel = quotient(place, channels_per_group)
    u = quotient(pixel, side)
    r = int32((rows - 1 - i) * side + u)
    s = int32((columns - 1 - j) * side + pixel - u * side)
    if k < filters_per_group and u < side and r < size and s < size:
        c = int32(place - pixel * channels_per_group)
        value = w[group * filters_per_group + k, r, s, c]
        flipped[at] = operand(value, flipped)
    else:
        flipped[at] = 0


@cuda.jit
def image_from_s2d_kernel(x_s2d, mask, x, side, before, groups, masked):
    # grid (rows of x, parts of a row)
    _, height, width, channels = x.shape
    element = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if element >= width * channels:
        return
    n, h = cuda.blockIdx.x // height, cuda.blockIdx.x % height
    q, channel = element // channels, element % channels
    channels_per_group, padded = channels // groups, x_s2d.shape[3] // groups
    group, c = channel // channels_per_group, channel % channels_per_group
    i, u = (h + before) // side, (h + before) % side
    j, v = (q + before) // side, (q + before) % side
    # No window reaches a pixel beyond the last square.
    inside = i < x_s2d.shape[1] and j < x_s2d.shape[2]
    if inside and masked and widen(mask[n, h, q, channel]) <= 0:
        inside = False
    if inside:
        place = group * padded + (u * side + v) * channels_per_group + c
        x[n, h, q, channel] = x_s2d[n, i, j, place]
    else:
        x[n, h, q, channel] = 0


@cuda.jit
def filters_from_s2d_kernel(w_s2d, w, side):
    index = cuda.grid(1)
    if index >= w.size:
        return
    _, size, _, channels = w.shape
    c = index % channels
    s = index // channels % size
    r = index // (channels * size) % size
    k = index // (channels * size * size)
    w[k, r, s, c] = w_s2d[k, r // side, s // side, (r % side * side + s % side) * channels + c]


# --- on the host


class S2dImage(NamedTuple):
    """What another kernel has to know to write images as a convolution multiplies them."""

    image: tuple[int, int, int]
    """(H, W, C)."""
    shape: tuple[int, int, int]
    """(H', W', C') of x_s2d."""
    before: int
    dtype: Any
    """uint16 for bfloat16, or float32, which is rounded to TF32."""


def s2d_size(size, side):
    """Squares of `side` in a row of a window of `size`."""
    return -(-size // side)


def s2d_channels(channels, side, per_chunk):
    """Channels of a group in squares of `side`, if it has `channels` in the image."""
    return -(-side * side * channels // per_chunk) * per_chunk


def choose_side(size, stride, channels, per_chunk):
    """The side of squares, 1 or the stride, with the fewest terms for a sum; 1 if they tie.

    channels: of a group; per_chunk: numbers in a chunk.
    """

    def terms(side):
        return s2d_size(size, side) ** 2 * s2d_channels(channels, side, per_chunk)

    return min((1, stride), key=terms)


def s2d_shape(x_shape, y_shape, size, stride, side, groups, per_chunk):
    """(N, H', W', C') of x_s2d: as many squares as the windows of y reach."""
    window = s2d_size(size, side)
    rows, columns = ((outputs - 1) * (stride // side) + window for outputs in y_shape[1:3])
    return x_shape[0], rows, columns, groups * s2d_channels(x_shape[3] // groups, side, per_chunk)


def image_to_s2d(name, x, y_shape, size, stride, side, before, groups, buffer):
    """x (N, H, W, C) as x_s2d (N, H', W', C'), in the buffer "`name`, space-to-depth"."""
    shape = s2d_shape(x.shape, y_shape, size, stride, side, groups, chunk_elements(x))
    x_s2d = buffer(f"{name}, space-to-depth", shape, x.dtype)
    check_sizes(x_s2d)
    across = min(shape[3] // PER_THREAD, THREADS)
    grid = shape[0] * shape[1], -(-shape[3] // (PER_THREAD * across))
    image_to_s2d_kernel[grid_of(grid, (across, min(THREADS // across, shape[2])))](
        *(x.reshape(-1), x_s2d.reshape(-1), *x.shape[1:], *shape[1:]),
        *(side, before, groups),
    )
    return x_s2d


def filters_to_s2d(w, side, like, buffer):
    """w (K, R, S, C / groups) as w_s2d (K, R', S', C'), of the type of the array `like`.

    In memory the numbers of a filter are in the order of `tensor_tile.taps_first`.
    """
    size = s2d_size(w.shape[1], side)
    shape = w.shape[0], size, size, s2d_channels(w.shape[3], side, chunk_elements(like))
    w_s2d = buffer("w, space-to-depth", shape, like.dtype)
    filters_to_s2d_kernel[grid_for(w_s2d.size)](
        *(w, w_s2d.reshape(-1), *shape[1:], side, taps_first(w_s2d, 1, size))
    )
    return w_s2d


def flipped_filters_s2d(w, side, groups, like, buffer):
    """The filters of dL/dx, (groups · C', R', S', K / groups and zeros), of the type of `like`.

    In memory they are in the order of `filters_to_s2d`.
    """
    per_chunk, size = chunk_elements(like), s2d_size(w.shape[1], side)
    filters = s2d_channels(w.shape[0] // groups, 1, per_chunk)
    channels = w.shape[3] if side == 1 else s2d_channels(w.shape[3], side, per_chunk)
    shape = groups * channels, size, size, filters
    flipped = buffer("flipped w, space-to-depth", shape, like.dtype)
    bk = taps_first(flipped, 1, size)
    flipped_filters_s2d_kernel[grid_for(flipped.size)](
        w, flipped.reshape(-1), *shape, side, groups, bk
    )
    return flipped


def image_from_s2d(x_s2d, x, side, before, groups, mask=None):
    """x (N, H, W, C) from x_s2d; 0 beyond its squares, and where `mask`, like x, is <= 0."""
    images, height, width, channels = x.shape
    parts = -(-width * channels // THREADS)
    image_from_s2d_kernel[grid_of((images * height, parts), THREADS)](
        x_s2d, x if mask is None else mask, x, side, before, groups, mask is not None
    )


def filters_from_s2d(w_s2d, w, side):
    """w (K, R, S, C / groups) from w_s2d; both float32."""
    filters_from_s2d_kernel[grid_for(w.size)](w_s2d, w, side)
