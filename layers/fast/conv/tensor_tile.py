"""What the kernels of rung 3 share: sizes, where chunks lie in shared memory, a slice's product.

A tensor core multiplies small matrices of TF32 or BF16 numbers and adds in float32. Counted in
bytes both kinds are alike, so one kernel source does for both. Its unit is the *chunk*, 16 bytes:
what `copy_async` moves and what `load_matrices` takes for a row. A chunk holds 4 TF32 numbers (a
whole float32 each) or 8 BF16 numbers; one product of fragments takes two chunks of each row.

A block multiplies two *slices* that lie in shared memory, while the next two are on their way:
there are three stages, and all three fit the 48 KB that a kernel may have without asking for more.

Shared memory has 32 banks of one word; lanes of a warp that ask for different words of one bank
wait for each other. Chunks of one column lie a whole number of rows apart, so that several of them
would be in the same banks. The remedy is a *swizzle*: within its row a chunk is put elsewhere, at
its number XOR something of the row's. Whoever reads knows the row, and so where to look. These
functions are plain arithmetic: the kernels call them compiled, and a test calls them for every
lane.
"""

from numba import int32, uint32

from layers.device import cuda
from layers.fast.conv.mma import load_matrices, mma_bf16, mma_tf32, round_tf32_word
from layers.fast.conv.tile import LARGEST, NOWHERE

CHUNK = 4
"""Words of 4 bytes in a chunk of 16."""

ROW = 16
"""Words in a row of a slice whose rows are the sum's terms: four chunks, two products."""

STAGES = 3

WINDOWS = 128
"""Rows of a block's tile of y."""


def per_chunk(array):
    """Numbers of `array` in a chunk: 4 of float32, 8 of bfloat16 (uint16)."""
    return 16 // array.dtype.itemsize


# --- swizzles
#
# Each gives the word at which a chunk begins.


def row_place(row, chunk):
    """Slices of forward: [row][chunk], rows are windows or filters. Four chunks, of terms.

    A row is half of the banks. `load_matrices` reads one chunk of eight rows that follow each
    other, `copy_async` writes all four chunks of two.
    """
    return row * ROW + (chunk ^ (row >> 1 & 3)) * CHUNK


def term_place_tf32(term, chunk, words):
    """Slices of dL/dw in TF32: [term][chunk], `words` in a row, a multiple of 32.

    A fragment is read word by word: lane l has term l % 4 and number l // 4 of eight, which are two
    chunks; an odd chunk follows an even one.
    """
    return term * words + (chunk ^ (term & 3) << 1) * CHUNK


def term_place_bf16(term, chunk, words):
    """The same in BF16. `load_matrices_across` reads one chunk of eight terms.

    The lowest bit of the term becomes the highest, for copies with four lanes to a row: eight lanes
    are four chunks of two terms.
    """
    return term * words + (chunk ^ ((term & 1) << 2 | term >> 1 & 3)) * CHUNK


row_word = cuda.jit(device=True, inline="always")(row_place)
term_word_tf32 = cuda.jit(device=True, inline="always")(term_place_tf32)
term_word_bf16 = cuda.jit(device=True, inline="always")(term_place_bf16)


# --- arithmetic of addresses


@cuda.jit(device=True, inline="always")
def quotient(a, b):
    # Of two numbers that are not negative. In 64 bits a division takes some five times as long.
    return int32(uint32(a) // uint32(b))


@cuda.jit(device=True, inline="always")
def within(a, size):
    # 0 <= a < size, by one comparison: without its sign a negative number is a large one.
    return uint32(int32(a)) < uint32(size)


@cuda.jit(device=True, inline="always")
def next_term(r, s, c, ahead, run, runs, size):
    # As `next_place` in tile.py; behind the last row of the window r is NOWHERE.
    c = int32(c + ahead)
    while c >= run:
        c = int32(c - run)
        s = int32(s + 1)
        if s == runs:
            s = int32(0)
            r = int32(r + 1)
            if r == size:
                r = int32(NOWHERE)
    return r, s, c


@cuda.jit(device=True, inline="always")
def next_stage(at, stage):
    # The same place in the next stage of `stage` words, which is the first after the last.
    return int32(at + stage if at < (STAGES - 1) * stage else at - (STAGES - 1) * stage)


# --- the products of fragments
#
# A warp has 64 rows of a and 32 of b, four fragments of each: sums[4 (4 i + j) ...] are the four of
# a thread for fragments i and j.


def products(mma):
    """The device function that multiplies each of four fragments with each of four, by `mma`."""

    @cuda.jit(device=True, inline="always")
    def multiply_row(a_words, i, b_words, sums):
        for j in range(4):
            mma(a_words, 4 * i, b_words, 2 * j, sums, 4 * (4 * i + j))

    @cuda.jit(device=True, inline="always")
    def multiply_fragments(a_words, b_words, sums):
        # Four calls and no loop: the compiler for sm_120 would not unroll it, and sums with an
        # index that is no constant lie in memory instead of registers.
        multiply_row(a_words, 0, b_words, sums)
        multiply_row(a_words, 1, b_words, sums)
        multiply_row(a_words, 2, b_words, sums)
        multiply_row(a_words, 3, b_words, sums)

    return multiply_fragments


products_tf32, products_bf16 = products(mma_tf32), products(mma_bf16)


# --- the product of two slices of forward
#
# `a` and `b` are where this lane's rows of fragment 0 begin. A multiple of 8 rows ahead is that
# many words ahead; the second half of a row is the first, with a bit flipped.


@cuda.jit(device=True, inline="always")
def load_half(tiles, a, b, a_words, b_words):
    for i in range(4):
        load_matrices(a_words, 4 * i, tiles, a + 16 * ROW * i)
    for j in range(2):
        load_matrices(b_words, 4 * j, tiles, b + 16 * ROW * j)


@cuda.jit(device=True, inline="always")
def multiply_tf32(tiles, a, b, sums):
    half_tf32(tiles, a, b, sums)
    half_tf32(tiles, a ^ 2 * CHUNK, b ^ 2 * CHUNK, sums)


@cuda.jit(device=True, inline="always")
def half_tf32(tiles, a, b, sums):
    a_words = cuda.local.array(16, uint32)
    b_words = cuda.local.array(8, uint32)
    load_half(tiles, a, b, a_words, b_words)
    for i in range(16):  # filters are rounded already
        round_tf32_word(a_words, i)
    products_tf32(a_words, b_words, sums)


@cuda.jit(device=True, inline="always")
def multiply_bf16(tiles, a, b, sums):
    half_bf16(tiles, a, b, sums)
    half_bf16(tiles, a ^ 2 * CHUNK, b ^ 2 * CHUNK, sums)


@cuda.jit(device=True, inline="always")
def half_bf16(tiles, a, b, sums):
    a_words = cuda.local.array(16, uint32)
    b_words = cuda.local.array(8, uint32)
    load_half(tiles, a, b, a_words, b_words)
    products_bf16(a_words, b_words, sums)


# --- on the host


def kind_of(array):
    """ "tf32" for float32, "bf16" for uint16: how `array` is multiplied."""
    return "bf16" if array.dtype.itemsize == 2 else "tf32"


def check_sizes(*arrays):
    """ValueError if one of the arrays has more elements than the kernels can count."""
    for array in arrays:
        if array.size > LARGEST:
            raise ValueError(
                f"algorithm 'tensor' counts {LARGEST:,} elements at most, not those of an array of "
                f"shape {array.shape}; use fewer images, or algorithm 'direct'"
            )
