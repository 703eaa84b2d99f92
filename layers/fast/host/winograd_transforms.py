"""The loops of Winograd's algorithm on the host: tiles to their n² points and back.

    to_points      V = Bᵀ x B, or Z = A dz Aᵀ with dz = dy where y is positive, and dL/db
    from_points    y = Aᵀ M A + b and the ReLU, or dx += B dV Bᵀ

Both take a vector of a tile's channels at a time (`vectors.py`); a row or column of the tile is
then in registers for all sums over it. The last vector of a pixel ends with its last channel: where
it overlaps the one before, its first lanes are computed twice, but added once. Outside the image
both read zeros and write nothing, so any padding and any remainder goes. Sizes and matrices are
arguments: one compilation serves every tile.

`factors` are a matrix as `winograd.py` prepares it: halves (TERMS, TERMS / 2), of its even rows the
even elements and of its odd rows the odd ones, with zeros for what it lacks; and how many pairs of
its columns and of its rows belong to points ±a. In these one pair of sums serves both rows, or both
columns (docs/winograd.md).
"""

import numpy as np
from numba import njit

from layers.fast.host.vectors import (
    TERMS,
    WIDE,
    add,
    half_sum,
    load,
    load_column,
    mixed,
    prefetch,
    store,
    subtract,
    where_positive,
)


@njit(nogil=True, cache=True)
def aligned_zeros(count, dtype):
    """From the beginning of a cache line on, so that no vector is in two of them."""
    memory = np.zeros(count + 64, dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize
    return memory[start : start + count]


@njit(nogil=True, cache=True)
def one_side(factors, a, lines, b, source, start, line, step, target, place, to_line, to_step):
    """A matrix (a, b) times each line of b vectors of source: a line of a vectors in target.

    Element k of a line is at start + its number · line + k · step, in target likewise.
    """
    halves, column_pairs, row_pairs = factors
    for number in range(lines):
        values = load_column(source, start + number * line, step, b)
        if column_pairs:
            values = mixed(values, column_pairs)
        for i in range(0, a, 2):
            even = half_sum(values, halves, i * (TERMS // 2), 0)
            odd = half_sum(values, halves, (i + 1) * (TERMS // 2), 1)
            if i < 2 * row_pairs:
                even, odd = add(even, odd), subtract(even, odd)
            store(even, target, place + number * to_line + i * to_step)
            if i + 1 < a:
                store(odd, target, place + number * to_line + (i + 1) * to_step)


@njit(nogil=True, cache=True)
def both_sides(factors, a, b, source, start, step, half, target, place, target_step):
    """matrix · tile · matrixᵀ, a×a vectors in target, of a tile of b×b vectors in source.

    Element (i, j) is at start + (i·b + j)·step, in the target at place + (i·a + j)·target_step.
    """
    vector = WIDE // source.itemsize
    one_side(factors, a, b, b, source, start, step, b * step, half, 0, vector, b * vector)
    ends = target, place, a * target_step, target_step
    one_side(factors, a, a, b, half, 0, b * vector, vector, *ends)


@njit(nogil=True, cache=True)
def to_points(
    source, y, relu, factors, sides, step, before, rows, columns, first, tiles, points, db
):
    """points (n·n, tiles or more, C): matrix · tile · matrixᵀ of so many tiles of source.

    source: x or dy (N, H, W, C), rows × columns tiles an image, counted from `first` on; sides: n
    and that of a tile. Their corners are `step` apart and the first `before` outside the image.
    relu: source counts where y is positive, else is zero.
    db (C) += the sum of what counts, unless it is empty.
    """
    _, height, width, channels = source.shape
    n, side = sides
    room, lanes, dtype = points.shape[1], WIDE // source.itemsize, source.dtype
    flat, tile = points.reshape(-1), (TERMS + 1) * TERMS * lanes
    work = aligned_zeros(2 * tile, dtype)  # half the product, and from `tile` on the tile
    flags = np.zeros(2 * lanes, dtype)
    flags[lanes:] = 1
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * step - before, place % columns * step - before
        for start in range(0, channels, lanes):
            low = min(start, channels - lanes)
            total = load(flags, 0)
            for i in range(side):
                h = top + i
                for j in range(side):
                    w, at = left + j, tile + (i * side + j) * lanes
                    if h < 0 or h >= height or w < 0 or w >= width:
                        store(load(flags, 0), work, at)
                        continue
                    pixel = ((image * height + h) * width + w) * channels + low
                    value = load(source, pixel)
                    if relu:
                        value = where_positive(value, load(y, pixel))
                    store(value, work, at)
                    total = add(total, value)
            if db.size:
                total = where_positive(total, load(flags, lanes + low - start))
                store(add(load(db, low), total), db, low)
            to = t * channels + low
            both_sides(factors, n, side, work, tile, lanes, work, flat, to, room * channels)


@njit(nogil=True, cache=True)
def from_points(points, factors, sides, step, before, rows, columns, first, tiles, b, relu, target):
    """matrix · points · matrixᵀ to so many tiles, from `first` on, of target (N, H, W, C).

    sides: that of a tile, and n. With a bias b (C) target becomes the result + b, and the ReLU of
    it; with an empty one the result is added to target, as tiles may overlap: to_points transposed.
    """
    _, height, width, channels = target.shape
    side, n = sides
    room, lanes, dtype = points.shape[1], WIDE // target.itemsize, target.dtype
    flat, result = points.reshape(-1), (TERMS + 1) * TERMS * lanes
    work = aligned_zeros(2 * result, dtype)  # half the product, and from `result` on the tile
    flags = np.zeros(2 * lanes, dtype)
    flags[lanes:] = 1
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * step - before, place % columns * step - before
        for start in range(0, channels, lanes):
            low = min(start, channels - lanes)
            bias = load(b, low) if b.size else load(flags, 0)
            fresh = load(flags, lanes + low - start)
            at = t * channels + low
            # So that the stores below need not wait for memory.
            for i in range(max(0, -top), min(side, height - top)):
                for j in range(max(0, -left), min(side, width - left)):
                    pixel = ((image * height + top + i) * width + left + j) * channels + low
                    prefetch(target, pixel)
            both_sides(factors, side, n, flat, at, room * channels, work, work, result, lanes)
            for i in range(max(0, -top), min(side, height - top)):
                for j in range(max(0, -left), min(side, width - left)):
                    pixel = ((image * height + top + i) * width + left + j) * channels + low
                    value = load(work, result + (i * side + j) * lanes)
                    if b.size:
                        value = add(value, bias)
                        if relu:
                            value = where_positive(value, value)
                    else:
                        value = add(where_positive(value, fresh), load(target, pixel))
                    store(value, target, pixel)
