"""What the tensor-core kernels share: sizes, the layout of shared memory, the product of a k-tile.

Counted in bytes TF32 and BF16 are alike, so one kernel source serves both. The unit is the *chunk*
of 16 bytes: one `cp_async`, one row of an `ldmatrix_x4` matrix. A chunk holds 4 TF32 numbers (whole
float32) or 8 BF16 numbers; one mma takes two chunks of each row.

The pipeline has three stages: one k-tile is multiplied while the next two are loaded. All three fit
into the 48 KB of shared memory that a kernel has without asking for more.

Shared memory has 32 banks of one word; lanes of a warp that access different words of one bank are
served one after the other. Chunks of one column are a whole number of rows apart, so several of
them would share banks. Hence the *swizzle*: within its row, a chunk is stored at its number XOR a
function of the row. The swizzles are plain arithmetic: kernels call them compiled, and a test calls
them for every lane.
"""

from numba import int32, uint32

from layers.device import cuda
from layers.fast.conv.mma import cvt_rna_tf32, ldmatrix_x4, mma_bf16, mma_tf32
from layers.fast.conv.tile import LARGEST

CHUNK = 4
"""Words of 4 bytes in a chunk of 16."""

ROW = 16
"""Words in a row of forward's k-tiles: four chunks, two mma deep."""

STAGES = 3

L1 = True
"""Whether k-tiles of the forward kernels, and those of x in dL/dw, come through the L1 cache. On
sm_90 shared memory leaves 64 KB of it and more idle; replayed (`benchmarks/gpu_model.py`), its
lines save a third to three quarters of what is loaded from L2, a k-tile's narrowest limit. For a
GPU to decide: False goes past it."""

TAPS_FIRST = True
"""Whether K, and N in dL/dw, goes through the taps (r, s) of BK channels before the next channels,
where a group's channels are whole k-tiles. Neighbouring taps read the same lines, which are then
still in L1. For a GPU to decide: False goes through all channels of a tap first."""

BM = 128
"""Rows of a block's tile of y, and columns of its tile of dw."""


def chunk_elements(array):
    """Elements of `array` in a chunk: 4 of float32, 8 of bfloat16 (uint16)."""
    return 16 // array.dtype.itemsize


# --- swizzles
#
# Each gives the word at which a chunk begins.


def swizzle_row(row, chunk):
    """k-tiles of forward: [row][chunk], rows are output pixels or filters, four chunks along K.

    A row covers half of the banks. `ldmatrix_x4` reads one chunk of eight consecutive rows,
    `cp_async` writes all four chunks of two rows.
    """
    return row * ROW + (chunk ^ (row >> 1 & 3)) * CHUNK


def swizzle_k_tf32(k, chunk, words):
    """k-tiles of dL/dw in TF32: [k][chunk], `words` in a row, a multiple of 32.

    A fragment is read word by word: lane l reads row l % 4 and number l // 4 of eight, which are
    two chunks, an even one and the next.
    """
    return k * words + (chunk ^ (k & 3) << 1) * CHUNK


def swizzle_k_bf16(k, chunk, words):
    """The same in BF16. `ldmatrix_x4_trans` reads one chunk of eight rows.

    The lowest bit of k becomes the highest, for copies with four lanes to a row: eight lanes write
    four chunks of two rows.
    """
    return k * words + (chunk ^ ((k & 1) << 2 | k >> 1 & 3)) * CHUNK


row_word = cuda.jit(device=True, inline="always")(swizzle_row)
k_word_tf32 = cuda.jit(device=True, inline="always")(swizzle_k_tf32)
k_word_bf16 = cuda.jit(device=True, inline="always")(swizzle_k_bf16)


# --- offsets


@cuda.jit(device=True, inline="always")
def quotient(a, b):
    """a // b of two numbers that are not negative. In 64 bits a division takes some five times as
    long."""
    return int32(uint32(a) // uint32(b))


@cuda.jit(device=True, inline="always")
def next_stage(offset, stage):
    """The same offset in the next stage, of `stage` words; the first stage follows the last."""
    last = (STAGES - 1) * stage
    return int32(offset + stage if offset < last else offset - last)


# --- the product of fragments
#
# A warp multiplies 64 × 32 at a time, four fragments of A by four of B: sums[4 (4 i + j) ...] are
# the four of a thread for fragments i and j. Two arrays of them are a warp's tile of 64 × 64.


def make_multiply_fragments(mma):
    """The device function that multiplies each of four fragments by each of four, with `mma`."""

    @cuda.jit(device=True, inline="always")
    def multiply_row(a_words, i, b_words, sums):
        # Fragment i of A by each of B.
        for j in range(4):
            mma(a_words, 4 * i, b_words, 2 * j, sums, 4 * (4 * i + j))

    @cuda.jit(device=True, inline="always")
    def multiply_fragments(a_words, b_words, sums):
        # Four calls and no loop: the compiler for sm_120 would not unroll it, and sums whose index
        # is not a constant are kept in memory instead of registers.
        multiply_row(a_words, 0, b_words, sums)
        multiply_row(a_words, 1, b_words, sums)
        multiply_row(a_words, 2, b_words, sums)
        multiply_row(a_words, 3, b_words, sums)

    return multiply_fragments


multiply_fragments_tf32 = make_multiply_fragments(mma_tf32)
multiply_fragments_bf16 = make_multiply_fragments(mma_bf16)


# --- the product of a k-tile of forward
#
# `a` and `b` are where this lane's rows of fragment 0 begin. Rows that are a multiple of 8 apart
# have the same swizzle; the second half of a row is the first with one bit flipped.


def make_multiply_k_tile(multiply_fragments, rounds=False):
    """The device function sums += A · B of one k-tile. rounds: A to TF32; B is rounded already."""

    @cuda.jit(device=True, inline="always")
    def multiply_columns(tiles, b, a_words, sums):
        # Four fragments of B, two in each load.
        b_words = cuda.local.array(8, uint32)
        for j in range(2):
            ldmatrix_x4(b_words, 4 * j, tiles, b + 16 * ROW * j)
        multiply_fragments(a_words, b_words, sums)

    @cuda.jit(device=True, inline="always")
    def multiply_half(tiles, a, b, sums, more_sums):
        # Four fragments of A, 16 rows apart, by eight of B.
        a_words = cuda.local.array(16, uint32)
        for i in range(4):
            ldmatrix_x4(a_words, 4 * i, tiles, a + 16 * ROW * i)
        if rounds:
            for i in range(16):
                cvt_rna_tf32(a_words, i)
        multiply_columns(tiles, b, a_words, sums)
        multiply_columns(tiles, b + 32 * ROW, a_words, more_sums)

    @cuda.jit(device=True, inline="always")
    def multiply_k_tile(tiles, a, b, sums, more_sums):
        # Half of its K at a time.
        multiply_half(tiles, a, b, sums, more_sums)
        multiply_half(tiles, a ^ 2 * CHUNK, b ^ 2 * CHUNK, sums, more_sums)

    return multiply_k_tile


# --- on the host


def kind_of(array):
    """ "tf32" for float32, "bf16" for uint16: how `array` is multiplied."""
    return "bf16" if array.dtype.itemsize == 2 else "tf32"


def kernel_kind(array, rounded):
    """The same for a kernel's name: "tf32_rounded" if operands in float32 are `rounded` to TF32."""
    kind = kind_of(array)
    return "tf32_rounded" if kind == "tf32" and rounded else kind


def taps_first(array, groups, size):
    """BK, if K goes through the `size` · `size` taps of so many channels first; else 0.

    array: (..., C), as it is multiplied.
    """
    bk = 4 * chunk_elements(array)
    return bk if TAPS_FIRST and size > 1 and array.shape[-1] // groups % bk == 0 else 0


def check_sizes(*arrays):
    """ValueError if one of the arrays has more elements than the kernels can count."""
    for array in arrays:
        if array.size > LARGEST:
            raise ValueError(
                f"algorithm 'tensor' counts {LARGEST:,} elements at most, not those of an array of "
                f"shape {array.shape}; use fewer images, or algorithm 'direct'"
            )
