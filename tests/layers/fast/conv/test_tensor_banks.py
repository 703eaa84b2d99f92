"""No two lanes of a warp wait for each other at shared memory, by the functions that place chunks.

Shared memory has 32 banks of a word. A request for 16 bytes a lane (`cp_async`, and a row of
`ldmatrix_x4`) is served eight lanes at a time, one for a word a lane all at once: within each lot
every word has to be in a bank of its own.
"""

import numpy as np
import pytest

from layers.fast.conv import tensor_gradients, tensor_tile
from layers.fast.conv.tensor_tile import swizzle_k_bf16, swizzle_k_tf32, swizzle_row

BANKS = 32
LANES = np.arange(32)


def conflicts(words):
    """How many of `words`, which are asked for together, are in a bank that another one is in."""
    return len(words) - len(set(np.asarray(words) % BANKS))


def chunk_words(starts):
    """Every word of the chunks that begin at `starts`."""
    return (np.asarray(starts)[:, None] + np.arange(tensor_tile.CHUNK)).ravel()


def eights(starts):
    """The lots in which a warp's 32 chunks are served."""
    assert len(starts) == 32
    return [chunk_words(starts[first : first + 8]) for first in (0, 8, 16, 24)]


def test_the_count_sees_a_conflict():
    assert conflicts(range(32)) == 0
    assert conflicts([0, 32, 1]) == 1
    unswizzled = [row * tensor_tile.ROW for row in range(8)]
    assert conflicts(chunk_words(unswizzled)) > 0


# --- forward


@pytest.mark.parametrize("first_row", range(0, 256, 8))
@pytest.mark.parametrize("chunk", range(4))
def test_eight_rows_of_a_fragment(first_row, chunk):
    assert conflicts(chunk_words(swizzle_row(first_row + np.arange(8), chunk))) == 0


@pytest.mark.parametrize("warp", range(8))
def test_copies_of_a_k_tile_of_forward(warp):
    t = 32 * warp + LANES
    for words in eights(swizzle_row(t // 4, t % 4)):
        assert conflicts(words) == 0


def test_rows_and_chunks_of_forward_have_places_of_their_own():
    rows, chunks = np.meshgrid(np.arange(256), np.arange(4))
    starts = swizzle_row(rows.ravel(), chunks.ravel())
    assert sorted(starts) == list(range(0, 256 * tensor_tile.ROW, tensor_tile.CHUNK))


# --- dL/dw: 64 or 128 numbers a row, of 4 or 2 bytes


@pytest.mark.parametrize("words", [64, 128])
@pytest.mark.parametrize("first_k", range(0, 16, 4))
@pytest.mark.parametrize("column", [0, 8, 16, 56])
def test_a_fragment_of_tf32_read_word_by_word(words, first_k, column):
    k, at = first_k + LANES % 4, column + LANES // 4
    assert conflicts(swizzle_k_tf32(k, at // 4, words) + at % 4) == 0


@pytest.mark.parametrize("words", [32, 64])
@pytest.mark.parametrize("first_k", range(0, 32, 8))
@pytest.mark.parametrize("chunk", [0, 1, 6, 7])
def test_eight_rows_of_k_of_a_fragment_of_bf16(words, first_k, chunk):
    starts = swizzle_k_bf16(first_k + np.arange(8), chunk, words)
    assert conflicts(chunk_words(starts)) == 0


COPIES = [  # swizzle, rows of a k-tile, words of a row
    (swizzle_k_tf32, 16, 128),
    (swizzle_k_tf32, 16, 64),
    (swizzle_k_bf16, 32, 64),
    (swizzle_k_bf16, 32, 32),
]


@pytest.mark.parametrize(("swizzle", "bk", "words"), COPIES)
def test_copies_of_a_k_tile_of_the_filter_gradient(swizzle, bk, words):
    threads = tensor_gradients.THREADS
    lanes_of_row = threads // bk
    for t in np.arange(threads).reshape(-1, 32):
        for first in range(0, words // tensor_tile.CHUNK, lanes_of_row):
            starts = swizzle(t // lanes_of_row, first + t % lanes_of_row, words)
            for chunks in eights(starts):
                assert conflicts(chunks) == 0


@pytest.mark.parametrize(("swizzle", "bk", "words"), COPIES)
def test_rows_of_k_and_chunks_have_places_of_their_own(swizzle, bk, words):
    rows, chunks = np.meshgrid(np.arange(bk), np.arange(words // tensor_tile.CHUNK))
    starts = swizzle(rows.ravel(), chunks.ravel(), words)
    assert sorted(starts) == list(range(0, bk * words, tensor_tile.CHUNK))
