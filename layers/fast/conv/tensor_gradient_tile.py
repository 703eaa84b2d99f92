"""The product of a k-tile of dL/dw on tensor cores, in TF32 or BF16 (`tensor_gradients.py`).

A fragment has output pixels along its rows, and k-tiles are stored as they are loaded, a row for
each pixel: so fragments are transposed as they are loaded from shared memory.
"""

from numba import uint32

from layers.device import cuda
from layers.fast.conv.mma import cvt_rna_tf32, ldmatrix_x4_trans
from layers.fast.conv.ptx import copy_scalar
from layers.fast.conv.tensor_tile import (
    CHUNK,
    k_word_bf16,
    k_word_tf32,
    multiply_fragments_bf16,
    multiply_fragments_tf32,
)

# A warp's 64 filters are four fragments i, 32 of its values four fragments j; a thread's four sums
# of both begin at sums[4 (4 i + j)]. `multiply_tf32` and `multiply_bf16` take the words of a row of
# dy and of a row of a in shared memory, and return
#
#     fragments(lane, row, column)     where this lane's words of the fragments of dy, from filter
#                                      `row` of the tile on, and of a, from value `column` on, begin
#     multiply(tiles, dy, a, sums, more_sums)
#                                      sums += dy · a, in two steps, for k-tiles that begin there;
#                                      more_sums: of the next 32 values, if a warp has `columns` 64
#
# Chunks are swizzled within each eight of a row; `skip_chunks` goes from one to another.


@cuda.jit(device=True, inline="always")
def skip_chunks(word, count):
    """The chunk `count` further on in its row, if adding `count` carries no bit."""
    return (word ^ count % 8 * CHUNK) + count // 8 * 8 * CHUNK


def in_columns(load_a, multiply_fragments, columns):
    """The device function sums += dy · a for a warp's `columns` values, 32 at a time.

    load_a(a_regs, tiles, a, step): four fragments of a.
    """

    @cuda.jit(device=True, inline="always")
    def multiply_32(dy_regs, tiles, a, sums, step):
        # Four fragments of dy by four of a, which begins at `a`.
        a_regs = cuda.local.array(8, uint32)
        load_a(a_regs, tiles, a, step)
        multiply_fragments(dy_regs, a_regs, sums)

    @cuda.jit(device=True, inline="always")
    def multiply_columns(dy_regs, tiles, a, next_a, sums, more_sums, step):
        # All values of the warp; `next_a`: where its last 32 begin.
        multiply_32(dy_regs, tiles, a, sums, step)
        if columns == 64:
            multiply_32(dy_regs, tiles, next_a, more_sums, step)

    return multiply_columns


def multiply_tf32(dy_words, a_words, columns, rounds=True):
    """Word by word: lane (g, t) reads number g of eight, of rows t and t + 4 of eight.

    rounds: to TF32.
    """

    @cuda.jit(device=True, inline="always")
    def fragments(lane, row, column):
        g, t = lane // 4, lane % 4
        return (
            k_word_tf32(t, row // 4 + g // 4, dy_words) + g % 4,
            k_word_tf32(t, column // 4 + g // 4, a_words) + g % 4,
        )

    @cuda.jit(device=True, inline="always")
    def load_a(a_regs, tiles, a, step):
        # Two words of each of four fragments.
        for half in range(2):
            for j in range(4):
                word = skip_chunks(a, 2 * j) + (8 * step + 4 * half) * a_words
                copy_scalar(a_regs, 2 * j + half, tiles, word)
        if rounds:
            for j in range(8):
                cvt_rna_tf32(a_regs, j)

    multiply_columns = in_columns(load_a, multiply_fragments_tf32, columns)

    @cuda.jit(device=True, inline="always")
    def multiply_step(tiles, dy, a, sums, more_sums, step):
        # Half of the rows of the k-tile.
        dy_regs = cuda.local.array(16, uint32)
        for half in range(2):
            for i in range(8):
                word = skip_chunks(dy, 2 * i) + (8 * step + 4 * half) * dy_words
                copy_scalar(dy_regs, i // 2 * 4 + 2 * half + i % 2, tiles, word)
        if rounds:
            for i in range(16):
                cvt_rna_tf32(dy_regs, i)
        multiply_columns(dy_regs, tiles, a, skip_chunks(a, 8), sums, more_sums, step)

    @cuda.jit(device=True, inline="always")
    def multiply(tiles, dy, a, sums, more_sums):
        multiply_step(tiles, dy, a, sums, more_sums, 0)
        multiply_step(tiles, dy, a, sums, more_sums, 1)

    return fragments, multiply


def multiply_bf16(dy_words, a_words, columns):
    """Four matrices of eight rows and eight numbers at a time, transposed by the load."""

    @cuda.jit(device=True, inline="always")
    def fragments(lane, row, column):
        return (
            k_word_bf16(lane // 16 * 8 + lane % 8, row // 8 + lane // 8 % 2, dy_words),
            k_word_bf16(lane % 16, column // 8 + lane // 16, a_words),
        )

    @cuda.jit(device=True, inline="always")
    def load_a(a_regs, tiles, a, step):
        # Four fragments, two in each load.
        for j in range(2):
            word = skip_chunks(a, 2 * j) + 16 * step * a_words
            ldmatrix_x4_trans(a_regs, 4 * j, tiles, word)

    multiply_columns = in_columns(load_a, multiply_fragments_bf16, columns)

    @cuda.jit(device=True, inline="always")
    def multiply_step(tiles, dy, a, sums, more_sums, step):
        # Half of the rows of the k-tile.
        dy_regs = cuda.local.array(16, uint32)
        for i in range(4):
            word = skip_chunks(dy, 2 * i) + 16 * step * dy_words
            ldmatrix_x4_trans(dy_regs, 4 * i, tiles, word)
        multiply_columns(dy_regs, tiles, a, skip_chunks(a, 4), sums, more_sums, step)

    @cuda.jit(device=True, inline="always")
    def multiply(tiles, dy, a, sums, more_sums):
        multiply_step(tiles, dy, a, sums, more_sums, 0)
        multiply_step(tiles, dy, a, sums, more_sums, 1)

    return fragments, multiply
