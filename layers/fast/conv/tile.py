"""What the kernels of rung 2 share: the product of two slices, and what becomes of the sums.

A block of THREADS threads owns a tile of the result; a thread has 8 × 8 of its sums in registers,
four squares of 4 × 4. `tiled.py` tells how such a kernel goes. The device functions here are
written into each kernel by the compiler (`inline="always"`), so that what is constant there is
constant here: `sums` and its like stay in registers only if every index is a constant in the end.
"""

from numba import float32, int32

from layers.device import cuda
from layers.fast.conv.ptx import add_outer, copy1, copy4, is_aligned

THREADS = 128
DEPTH = 8
"""How many terms of each sum make a slice."""

COPY = 2048
"""Floats in shared memory from one copy of the slices to the other: a power of two, so that
flipping a bit leads there and back."""

NOWHERE = -(1 << 30)
"""An offset that no array has: nothing is to be read."""

LARGEST = 2_000_000_000
"""Elements of an array: the kernels count them in 32 bits, which takes half the registers."""


@cuda.jit(device=True, inline="always")
def add_product(tiles, a, b, rows, columns, sums):
    # 8 × 8 sums of a thread, four 4 × 4 squares: its rows are a .. a + 3 and a + 16 .. a + 19, its
    # columns b .. b + 3 and b + 32 .. b + 35. So the lanes of a warp, 4 × 8 of them, read 16
    # neighbours of a row of a and 32 of b at a time: no two words in one bank.
    copy4(rows, 0, tiles, a)
    copy4(rows, 4, tiles, a + 16)
    copy4(columns, 0, tiles, b)
    copy4(columns, 4, tiles, b + 32)
    add_outer(rows, columns, sums)


@cuda.jit(device=True, inline="always")
def multiply(tiles, a, a_step, b, b_step, sums):
    # Written out, as the compiler would not unroll that far: the steps are then constants.
    rows = cuda.local.array(8, float32)
    columns = cuda.local.array(8, float32)
    add_product(tiles, a, b, rows, columns, sums)
    add_product(tiles, a + a_step, b + b_step, rows, columns, sums)
    add_product(tiles, a + 2 * a_step, b + 2 * b_step, rows, columns, sums)
    add_product(tiles, a + 3 * a_step, b + 3 * b_step, rows, columns, sums)
    add_product(tiles, a + 4 * a_step, b + 4 * b_step, rows, columns, sums)
    add_product(tiles, a + 5 * a_step, b + 5 * b_step, rows, columns, sums)
    add_product(tiles, a + 6 * a_step, b + 6 * b_step, rows, columns, sums)
    add_product(tiles, a + 7 * a_step, b + 7 * b_step, rows, columns, sums)


@cuda.jit(device=True, inline="always")
def next_place(r, s, c, ahead, run, runs):
    # A window row is made of `runs` runs of `run` floats that are neighbours in x: with one group
    # the whole row, S · C floats; else S of them, each the group's channels of one pixel.
    c = int32(c + ahead)
    while c >= run:
        c = int32(c - run)
        s = int32(s + 1)
        if s == runs:
            s = int32(0)
            r = int32(r + 1)
    return r, s, c


@cuda.jit(device=True, inline="always")
def add_bias(sums, b, column, columns, first):
    bias = cuda.local.array(8, float32)
    for j in range(8):
        k = column + 32 * (j // 4) + j % 4
        bias[j] = b[first + k] if k < columns else float32(0)
    for i in range(64):
        sums[i] += bias[i % 8]


@cuda.jit(device=True, inline="always")
def relu(sums):
    for i in range(64):
        if sums[i] <= float32(0):  # not "> 0": a NaN stays one
            sums[i] = float32(0)


@cuda.jit(device=True, inline="always")
def write(sums, y, row, rows, row_stride, column, columns, first):
    # The sums of a thread, as in `add_product`; rows and columns beyond the matrix are left out.
    for i in range(8):
        at = row + 16 * (i // 4) + i % 4
        if at < rows:
            for half in range(2):
                k = column + 32 * half
                to = at * row_stride + first + k
                if columns % 4 == 0:
                    if k < columns:
                        copy4(y, to, sums, 8 * i + 4 * half)
                else:
                    for j in range(4):
                        if k + j < columns:
                            copy1(y, to + j, sums, 8 * i + 4 * half + j)


# --- on the host


def takes_wide(groups, channels, filters, *arrays):
    """Whether the wide kernels fit: groups of four channels, which begin at 16 bytes."""
    fours = channels // groups % 4 == 0 and filters // groups % 4 == 0
    return fours and all(map(is_aligned, arrays))


def check_sizes(x, y):
    """ValueError if x or y, or their gradients, have more elements than the kernels can count."""
    if max(x.size, y.size) > LARGEST:
        raise ValueError(
            f"algorithm 'tiled' counts {LARGEST:,} elements at most, not those of x {x.shape} and "
            f"y {y.shape}; use fewer images, or algorithm 'direct'"
        )
