"""What the kernels of rung 3 share: sizes, where a chunk lies in shared memory, and what is refused.

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

from layers.conv.tile import LARGEST
from layers.device import cuda

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


# --- on the host


def check_sizes(*arrays):
    """ValueError if one of the arrays has more elements than the kernels can count."""
    for array in arrays:
        if array.size > LARGEST:
            raise ValueError(
                f"algorithm 'tensor' counts {LARGEST:,} elements at most, not those of an array of "
                f"shape {array.shape}; use fewer images, or algorithm 'direct'"
            )
