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

Other layouts of the 363 were counted too. Runs of 33 numbers (a window row), padded to 36, are 396
terms, but do not begin at multiples of 16 bytes in x; an im2col matrix, padded to 368, takes 570 MB
at batch 128, where x_s2d takes 80.

For dL/dx of a layer with a stride, b = stride gives a convolution of stride 1, whose dL/dx is
dx_s2d. Each number of x is in one square, so nothing has to be added: dx, and likewise dw, are
gathered from their space-to-depth form.

For dL/dx the filters are also flipped (rotated by 180°), and their channel axes exchanged (compare
`tiled_gradients.py`), in the same pass:

    flipped[(u, v, c), i, j, k] = w_s2d[k, R' − 1 − i, R' − 1 − j, (u, v, c)]         R' = ⌈R / b⌉
"""

from layers.device import THREADS, cuda, grid_for, grid_of
from layers.fast.bfloat16 import widen
from layers.fast.conv.mma import operand
from layers.fast.conv.tensor_tile import check_sizes, chunk_elements

# --- kernels
#
# One thread owns one element of the output, the last axis fastest: coalesced writes, no races,
# deterministic. Within a row of a square neighbours read neighbours; `flipped_filters_s2d_kernel`
# reads far apart, and filters are small beside images.
#
# Images keep their numbers. Filters are written as operands of the images' type: they are rounded
# here once, and not by every warp that loads them from shared memory.


@cuda.jit
def image_to_s2d_kernel(x, x_s2d, side, before, groups):
    # grid (rows of x_s2d, parts of a row)
    _, height, width, channels = x.shape
    element = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if element >= x_s2d.shape[2] * x_s2d.shape[3]:
        return
    n, i = cuda.blockIdx.x // x_s2d.shape[1], cuda.blockIdx.x % x_s2d.shape[1]
    j, channel = element // x_s2d.shape[3], element % x_s2d.shape[3]
    channels_per_group, padded = channels // groups, x_s2d.shape[3] // groups
    group, place = channel // padded, channel % padded
    u = place // (side * channels_per_group)
    v, c = place // channels_per_group % side, place % channels_per_group
    h, q = i * side + u - before, j * side + v - before
    if u < side and h >= 0 and h < height and q >= 0 and q < width:
        x_s2d[n, i, j, channel] = x[n, h, q, group * channels_per_group + c]
    else:
        x_s2d[n, i, j, channel] = 0


@cuda.jit
def filters_to_s2d_kernel(w, w_s2d, side):
    index = cuda.grid(1)
    if index >= w_s2d.size:
        return
    _, rows, columns, padded = w_s2d.shape
    size, channels_per_group = w.shape[1], w.shape[3]
    place = index % padded
    j = index // padded % columns
    i = index // (padded * columns) % rows
    k = index // (padded * columns * rows)
    u = place // (side * channels_per_group)
    v, c = place // channels_per_group % side, place % channels_per_group
    r, s = i * side + u, j * side + v
    if u < side and r < size and s < size:
        w_s2d[k, i, j, place] = operand(w[k, r, s, c], w_s2d)
    else:
        w_s2d[k, i, j, place] = 0


@cuda.jit
def flipped_filters_s2d_kernel(w, flipped, side, groups):
    index = cuda.grid(1)
    if index >= flipped.size:
        return
    channels, rows, columns, padded = flipped.shape
    filters, size, _, channels_per_group = w.shape
    k = index % padded
    j = index // padded % columns
    i = index // (padded * columns) % rows
    channel = index // (padded * columns * rows)
    group, place = channel // (channels // groups), channel % (channels // groups)
    u = place // (side * channels_per_group)
    v, c = place // channels_per_group % side, place % channels_per_group
    r, s = (rows - 1 - i) * side + u, (columns - 1 - j) * side + v
    if k < filters // groups and u < side and r < size and s < size:
        flipped[channel, i, j, k] = operand(w[group * (filters // groups) + k, r, s, c], flipped)
    else:
        flipped[channel, i, j, k] = 0


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
    parts = -(-shape[2] * shape[3] // THREADS)
    image_to_s2d_kernel[grid_of((shape[0] * shape[1], parts), THREADS)](
        x, x_s2d, side, before, groups
    )
    return x_s2d


def filters_to_s2d(w, side, like, buffer):
    """w (K, R, S, C / groups) as w_s2d (K, R', S', C'), of the type of the array `like`."""
    size = s2d_size(w.shape[1], side)
    shape = w.shape[0], size, size, s2d_channels(w.shape[3], side, chunk_elements(like))
    w_s2d = buffer("w, space-to-depth", shape, like.dtype)
    filters_to_s2d_kernel[grid_for(w_s2d.size)](w, w_s2d, side)
    return w_s2d


def flipped_filters_s2d(w, side, groups, like, buffer):
    """The filters of dL/dx, (groups · C', R', S', K / groups and zeros), of the type of `like`."""
    per_chunk, size = chunk_elements(like), s2d_size(w.shape[1], side)
    filters = s2d_channels(w.shape[0] // groups, 1, per_chunk)
    channels = w.shape[3] if side == 1 else s2d_channels(w.shape[3], side, per_chunk)
    shape = groups * channels, size, size, filters
    flipped = buffer("flipped w, space-to-depth", shape, like.dtype)
    flipped_filters_s2d_kernel[grid_for(flipped.size)](w, flipped, side, groups)
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
