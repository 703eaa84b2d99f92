"""Convolution, rung 3: rearrangements that turn any layer into one that its kernels take.

The tensor-core kernels move chunks of 16 bytes, 4 numbers of float32 or 8 of bfloat16, and want the
channels of a group to be whole chunks. conv1 has three. So the image is cut into squares of b × b
pixels, and all numbers of a square become the channels of one pixel ("space to depth"):

    blocks[n, i, j, (u, v, c)] = x[n, i·b + u − before, j·b + v − before, c]     0 outside of x
    filters[k, i, j, (u, v, c)] = w[k, i·b + u, j·b + v, c]                      0 outside of w

for each group, and zeros fill the last chunk. With b = 1, or b = stride, the convolution of these
is the same one: its window is ⌈R / b⌉, its stride is stride / b, and its padding is 0, as it is in
the blocks already. b = 1 only adds channels of zeros. Which b leads to fewer terms depends on the
layer, `choose_side` counts. For conv1 (R 11, C 3, stride 4; 363 terms):

    b = 4, float32 or bfloat16     3 · 3 windows · 48 numbers         432 terms
    b = 1, float32                 11 · 11 · 4                        484
    b = 1, bfloat16                11 · 11 · 8                        968

Other ways to lay out the 363 were counted too. Runs of 33 numbers (a window row), padded to 36, are
396 terms, but do not begin at multiples of 16 bytes in x; a matrix of all windows, padded to 368,
takes 570 MB at batch 128, where the blocks take 80.

For dL/dx of a layer with a stride, b = stride gives a convolution of stride 1, whose dL/dx is that
of the blocks; and each number of x is in one block, so that nothing has to be added: dx, and dw
likewise, are read out of their blocks.

For dL/dx the filters are turned around as well, and their channel axes exchanged (compare
`tiled_gradients.py`), in one go with the blocks:

    turned[(u, v, c), i, j, k] = filters[k, R' − 1 − i, R' − 1 − j, (u, v, c)]        R' = ⌈R / b⌉
"""

from layers.device import THREADS, cuda, grid_for, grid_of
from layers.fast.bfloat16 import widen
from layers.fast.conv.mma import operand
from layers.fast.conv.tensor_tile import check_sizes, per_chunk

# --- kernels
#
# One thread owns one element of what is written, the last axis fastest: coalesced writes, no races,
# deterministic. Where a block row has no more than its line of x, neighbours read neighbours;
# `turned_blocks_kernel` reads far apart, and filters are small beside images.
#
# Images keep their numbers. Filters go out as operands, in the kind of the images: they are rounded
# here once, and not by every warp that takes them out of shared memory.


@cuda.jit
def image_blocks_kernel(x, blocks, side, before, groups):
    # grid (rows of blocks, parts of a row)
    _, height, width, channels = x.shape
    element = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if element >= blocks.shape[2] * blocks.shape[3]:
        return
    n, i = cuda.blockIdx.x // blocks.shape[1], cuda.blockIdx.x % blocks.shape[1]
    j, channel = element // blocks.shape[3], element % blocks.shape[3]
    mine, padded = channels // groups, blocks.shape[3] // groups
    group, place = channel // padded, channel % padded
    u, v, c = place // (side * mine), place // mine % side, place % mine
    h, q = i * side + u - before, j * side + v - before
    if u < side and h >= 0 and h < height and q >= 0 and q < width:
        blocks[n, i, j, channel] = x[n, h, q, group * mine + c]
    else:
        blocks[n, i, j, channel] = 0


@cuda.jit
def filter_blocks_kernel(w, filters, side):
    index = cuda.grid(1)
    if index >= filters.size:
        return
    _, rows, columns, padded = filters.shape
    size, mine = w.shape[1], w.shape[3]
    place = index % padded
    j = index // padded % columns
    i = index // (padded * columns) % rows
    k = index // (padded * columns * rows)
    u, v, c = place // (side * mine), place // mine % side, place % mine
    r, s = i * side + u, j * side + v
    if u < side and r < size and s < size:
        filters[k, i, j, place] = operand(w[k, r, s, c], filters)
    else:
        filters[k, i, j, place] = 0


@cuda.jit
def turned_blocks_kernel(w, turned, side, groups):
    index = cuda.grid(1)
    if index >= turned.size:
        return
    channels, rows, columns, padded = turned.shape
    filters, size, _, mine = w.shape
    k = index % padded
    j = index // padded % columns
    i = index // (padded * columns) % rows
    channel = index // (padded * columns * rows)
    group, place = channel // (channels // groups), channel % (channels // groups)
    u, v, c = place // (side * mine), place // mine % side, place % mine
    r, s = (rows - 1 - i) * side + u, (columns - 1 - j) * side + v
    if k < filters // groups and u < side and r < size and s < size:
        turned[channel, i, j, k] = operand(w[group * (filters // groups) + k, r, s, c], turned)
    else:
        turned[channel, i, j, k] = 0


@cuda.jit
def image_from_blocks_kernel(blocks, mask, x, side, before, groups, masked):
    # grid (rows of x, parts of a row)
    _, height, width, channels = x.shape
    element = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if element >= width * channels:
        return
    n, h = cuda.blockIdx.x // height, cuda.blockIdx.x % height
    q, channel = element // channels, element % channels
    mine, padded = channels // groups, blocks.shape[3] // groups
    group, c = channel // mine, channel % mine
    i, u = (h + before) // side, (h + before) % side
    j, v = (q + before) // side, (q + before) % side
    # Beyond the last block is what no window reaches.
    there = i < blocks.shape[1] and j < blocks.shape[2]
    if there and masked and widen(mask[n, h, q, channel]) <= 0:
        there = False
    if there:
        x[n, h, q, channel] = blocks[n, i, j, group * padded + (u * side + v) * mine + c]
    else:
        x[n, h, q, channel] = 0


@cuda.jit
def filter_from_blocks_kernel(filters, w, side):
    index = cuda.grid(1)
    if index >= w.size:
        return
    _, size, _, mine = w.shape
    c = index % mine
    s = index // mine % size
    r = index // (mine * size) % size
    k = index // (mine * size * size)
    w[k, r, s, c] = filters[k, r // side, s // side, (r % side * side + s % side) * mine + c]


# --- on the host


def in_blocks(size, side):
    """Blocks of `side` in a row of a window of `size`."""
    return -(-size // side)


def block_channels(channels, side, per):
    """Channels of a group in blocks of `side`, if it has `channels` in the image."""
    return -(-side * side * channels // per) * per


def choose_side(size, stride, channels, per):
    """The side of blocks, 1 or the stride, with the fewest terms for a sum; 1 if they tie.

    channels: of a group; per: numbers in a chunk.
    """

    def terms(side):
        return in_blocks(size, side) ** 2 * block_channels(channels, side, per)

    return min((1, stride), key=terms)


def blocks_shape(x_shape, y_shape, size, stride, side, groups, per):
    """(N, H', W', C') of the blocks of x: as many as the windows of y reach."""
    across = in_blocks(size, side)
    rows, columns = ((outputs - 1) * (stride // side) + across for outputs in y_shape[1:3])
    return x_shape[0], rows, columns, groups * block_channels(x_shape[3] // groups, side, per)


def image_blocks(name, x, y_shape, size, stride, side, before, groups, buffer):
    """x (N, H, W, C) as blocks (N, H', W', C'), in the buffer "blocks of `name`"."""
    shape = blocks_shape(x.shape, y_shape, size, stride, side, groups, per_chunk(x))
    blocks = buffer(f"blocks of {name}", shape, x.dtype)
    check_sizes(blocks)
    parts = -(-shape[2] * shape[3] // THREADS)
    image_blocks_kernel[grid_of((shape[0] * shape[1], parts), THREADS)](
        x, blocks, side, before, groups
    )
    return blocks


def filter_blocks(w, side, like, buffer):
    """w (K, R, S, C / groups) as blocks (K, R', S', C'), of the kind of the array `like`."""
    across = in_blocks(w.shape[1], side)
    shape = w.shape[0], across, across, block_channels(w.shape[3], side, per_chunk(like))
    filters = buffer("blocks of w", shape, like.dtype)
    filter_blocks_kernel[grid_for(filters.size)](w, filters, side)
    return filters


def turned_blocks(w, side, groups, like, buffer):
    """The filters of dL/dx, (groups · C', R', S', K / groups and zeros), of the kind of `like`."""
    per, across = per_chunk(like), in_blocks(w.shape[1], side)
    filters = block_channels(w.shape[0] // groups, 1, per)
    channels = w.shape[3] if side == 1 else block_channels(w.shape[3], side, per)
    turned = buffer("turned blocks", (groups * channels, across, across, filters), like.dtype)
    turned_blocks_kernel[grid_for(turned.size)](w, turned, side, groups)
    return turned


def image_from_blocks(blocks, x, side, before, groups, mask=None):
    """x (N, H, W, C) out of its blocks; 0 where no block is, and where `mask`, like x, is <= 0."""
    images, height, width, channels = x.shape
    parts = -(-width * channels // THREADS)
    image_from_blocks_kernel[grid_of((images * height, parts), THREADS)](
        blocks, x if mask is None else mask, x, side, before, groups, mask is not None
    )


def filter_from_blocks(filters, w, side):
    """w (K, R, S, C / groups) out of its blocks; both float32."""
    filter_from_blocks_kernel[grid_for(w.size)](filters, w, side)
