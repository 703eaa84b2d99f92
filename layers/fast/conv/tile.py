"""What the tiled kernels share: the product of two k-tiles, and what happens to the sums.

A block of THREADS threads computes a BM × BN tile of the output, each thread a TM × TN tile of it,
in registers. BM and BN are constants of the kernels (`tiled.py` describes them). All device
functions are inlined (`inline="always"`): sums and operands stay in registers only if every index
into them is a constant once loops are unrolled.
"""

from numba import float32, int32, uint32

from layers.device import cuda
from layers.fast.conv.ptx import add_outer, copy_scalar, copy_vec4, is_aligned

THREADS = 128

BK = 8
"""K values of a k-tile."""

TM, TN = 8, 8
"""Rows and columns of a thread's tile."""

SUMS = TM * TN

BUFFER_STRIDE = 2048
"""Floats in shared memory from one buffer of k-tiles to the other: a power of two, so that buffers
are swapped by flipping a bit of an offset."""

OUTSIDE = -(1 << 30)
"""A row of the image, or an offset, that is never inside."""

LARGEST = 2_000_000_000
"""Elements of an array: offsets are computed in 32 bits, which takes half the registers."""


@cuda.jit(device=True, inline="always")
def add_outer_product(tiles, a, b, a_regs, b_regs, sums):
    """A thread's tile is four 4 × 4 squares: rows a .. a + 3 and a + 16 .. a + 19, columns b ..
    b + 3 and b + 32 .. b + 35. So a warp, 4 × 8 lanes, reads 16 consecutive words of A and 32 of
    B at a time: no bank conflicts."""
    copy_vec4(a_regs, 0, tiles, a)
    copy_vec4(a_regs, 4, tiles, a + 16)
    copy_vec4(b_regs, 0, tiles, b)
    copy_vec4(b_regs, 4, tiles, b + 32)
    add_outer(a_regs, b_regs, sums)


@cuda.jit(device=True, inline="always")
def multiply_k_tile(tiles, a, a_stride, b, b_stride, sums):
    """Unrolled by hand, as the compiler does not unroll that far; the strides are constants."""
    a_regs = cuda.local.array(TM, float32)
    b_regs = cuda.local.array(TN, float32)
    add_outer_product(tiles, a, b, a_regs, b_regs, sums)
    add_outer_product(tiles, a + a_stride, b + b_stride, a_regs, b_regs, sums)
    add_outer_product(tiles, a + 2 * a_stride, b + 2 * b_stride, a_regs, b_regs, sums)
    add_outer_product(tiles, a + 3 * a_stride, b + 3 * b_stride, a_regs, b_regs, sums)
    add_outer_product(tiles, a + 4 * a_stride, b + 4 * b_stride, a_regs, b_regs, sums)
    add_outer_product(tiles, a + 5 * a_stride, b + 5 * b_stride, a_regs, b_regs, sums)
    add_outer_product(tiles, a + 6 * a_stride, b + 6 * b_stride, a_regs, b_regs, sums)
    add_outer_product(tiles, a + 7 * a_stride, b + 7 * b_stride, a_regs, b_regs, sums)


@cuda.jit(device=True, inline="always")
def within(a, size):
    """0 <= a < size in one comparison: as an unsigned number, a negative one is a large one."""
    return uint32(int32(a)) < uint32(size)


@cuda.jit(device=True, inline="always")
def advance_k(r, s, c, step, run, num_runs, size):
    """`step` values further along K. A filter row is `num_runs` runs of `run` values that are
    contiguous in x: with one group a single run of S · C, otherwise S runs, each the group's
    channels of one pixel. After the last of `size` rows, r is OUTSIDE."""
    c = int32(c + step)
    while c >= run:
        c = int32(c - run)
        s = int32(s + 1)
        if s == num_runs:
            s = int32(0)
            r = int32(r + 1)
            if r == size:
                r = int32(OUTSIDE)
    return r, s, c


@cuda.jit(device=True, inline="always")
def advance_tap(r, s, c, step, run, size):
    """The next tap of the same channels; after the last of `size` · `size`, the first of the next
    `step` channels. After the last of `run` channels, r is OUTSIDE."""
    s = int32(s + 1)
    if s == size:
        s = int32(0)
        r = int32(r + 1)
        if r == size:
            r = int32(0)
            c = int32(c + step)
            if c >= run:
                r = int32(OUTSIDE)
    return r, s, c


@cuda.jit(device=True, inline="always")
def add_bias(sums, b, column, columns, first):
    """The thread's columns are filters, from `first` on in b; past the last one the bias is 0."""
    bias = cuda.local.array(TN, float32)
    for j in range(TN):
        k = column + 32 * (j // 4) + j % 4
        bias[j] = b[first + k] if k < columns else float32(0)
    for i in range(SUMS):
        sums[i] += bias[i % TN]


@cuda.jit(device=True, inline="always")
def relu(sums):
    """ReLU of a thread's tile, in place."""
    for i in range(SUMS):
        if sums[i] <= float32(0):  # not "> 0": a NaN stays one
            sums[i] = float32(0)


@cuda.jit(device=True, inline="always")
def store_tile(sums, y, row, rows, row_stride, column, columns, first):
    """Write the four squares of `add_outer_product`, as far as they are in the output."""
    for i in range(TM):
        m = row + 16 * (i // 4) + i % 4
        if m < rows:
            for half in range(2):
                n = column + 32 * half
                offset = m * row_stride + first + n
                if columns % 4 == 0:
                    if n < columns:
                        copy_vec4(y, offset, sums, TN * i + 4 * half)
                else:
                    for j in range(4):
                        if n + j < columns:
                            copy_scalar(y, offset + j, sums, TN * i + 4 * half + j)


# --- on the host


def can_vectorize(groups, channels, filters, *arrays):
    """Whether the vectorized kernels fit: a group's channels and filters are multiples of 4, and
    the arrays begin at multiples of 16 bytes."""
    fours = channels // groups % 4 == 0 and filters // groups % 4 == 0
    return fours and all(map(is_aligned, arrays))


def check_sizes(x, y):
    """ValueError if x or y, or their gradients, have more elements than the kernels can count."""
    if max(x.size, y.size) > LARGEST:
        raise ValueError(
            f"algorithm 'tiled' counts {LARGEST:,} elements at most, not those of x {x.shape} and "
            f"y {y.shape}; use fewer images, or algorithm 'direct'"
        )
