"""The loops of Winograd's algorithm on the host: tiles to their n² points and back.

    to_points      V = Bᵀ x B, or Z = A dz Aᵀ with dz = dy where y is positive, and dL/db
    from_points    y = Aᵀ M A + b and the ReLU, or dx += B dV Bᵀ

Both take a vector of a tile's channels at a time (`vectors.py`); a row or column of the tile is then
in registers for all sums over it. Outside the image they read zeros and write nothing, so any
padding and any remainder goes. Sizes and matrices are arguments: one compilation serves every tile.
A sum has TERMS terms; what a matrix lacks of them is zero.

Arrays are flat and indices unsigned: of any other index Numba looks whether it is negative.
"""

import numpy as np
from numba import njit

from layers.fast.host.vectors import (
    TERMS,
    WIDE,
    add,
    load,
    load_column,
    store,
    weighted_sum,
    where_positive,
)


@njit(nogil=True, cache=True)
def both_sides(matrix, a, b, source, start, step, half, target, place, target_step):
    """matrix · tile · matrixᵀ, a×a vectors in target, of a tile of b×b vectors in source.

    matrix: flat, TERMS in a row, zero beyond a×b. Element (i, j) is at start + (i·b + j)·step, in
    the target at place + (i·a + j)·target_step.
    """
    channels = WIDE // source.itemsize
    for j in range(b):
        values = load_column(source, start + j * step, b * step, b)
        for i in range(a):
            store(weighted_sum(values, matrix, i * TERMS), half, (i * b + j) * channels)
    for i in range(a):
        values = load_column(half, i * b * channels, channels, b)
        for j in range(a):
            to = place + (i * a + j) * target_step
            store(weighted_sum(values, matrix, j * TERMS), target, to)


@njit(nogil=True, cache=True)
def to_points(source, y, relu, matrix, sides, step, before, rows, columns, first, points, db):
    """points (n·n, tiles, C): matrix · tile · matrixᵀ of tiles first, first + 1, ... of source.

    source: x or dy (N, H, W, C); sides: n and the side of a tile, whose corners are `step` apart
    and the first `before` outside the image. relu: source counts where y is positive, else is zero.
    db (C) += the sum of what counts, unless it is empty.
    """
    _, height, width, channels = source.shape
    n, side = sides
    tiles, lanes, dtype = points.shape[1], WIDE // source.itemsize, source.dtype
    flat, signs, out = source.reshape(-1), y.reshape(-1), points.reshape(-1)
    matrix = matrix.reshape(-1)
    tile, half = np.zeros((2, (TERMS + 1) * TERMS * lanes), dtype)
    zeros = np.zeros(lanes, dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * step - before, place % columns * step - before
        for low in range(0, channels, lanes):
            total = load(zeros, 0)
            for i in range(side):
                h = top + i
                for j in range(side):
                    w, at = left + j, (i * side + j) * lanes
                    if h < 0 or h >= height or w < 0 or w >= width:
                        store(load(zeros, 0), tile, at)
                        continue
                    start = ((image * height + h) * width + w) * channels + low
                    value = load(flat, start)
                    if relu:
                        value = where_positive(value, load(signs, start))
                    store(value, tile, at)
                    total = add(total, value)
            if db.size:
                store(add(load(db, low), total), db, low)
            to = t * channels + low
            both_sides(matrix, n, side, tile, 0, lanes, half, out, to, tiles * channels)


@njit(nogil=True, cache=True)
def from_points(points, matrix, sides, step, before, rows, columns, first, b, relu, target):
    """matrix · points · matrixᵀ to the tiles first, first + 1, ... of target (N, H, W, C).

    sides: that of a tile, and n. With a bias b (C) target becomes the result + b, and the ReLU of
    it; with an empty one the result is added to target, as tiles may overlap: to_points transposed.
    """
    _, height, width, channels = target.shape
    side, n = sides
    tiles, lanes, dtype = points.shape[1], WIDE // target.itemsize, target.dtype
    flat, out = points.reshape(-1), target.reshape(-1)
    matrix = matrix.reshape(-1)
    half, result = np.zeros((2, (TERMS + 1) * TERMS * lanes), dtype)
    zeros = np.zeros(lanes, dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * step - before, place % columns * step - before
        for low in range(0, channels, lanes):
            bias = load(b, low) if b.size else load(zeros, 0)
            at = t * channels + low
            both_sides(matrix, side, n, flat, at, tiles * channels, half, result, 0, lanes)
            for i in range(max(0, -top), min(side, height - top)):
                for j in range(max(0, -left), min(side, width - left)):
                    start = ((image * height + top + i) * width + left + j) * channels + low
                    value = load(result, (i * side + j) * lanes)
                    if b.size:
                        value = add(value, bias)
                        if relu:
                            value = where_positive(value, value)
                    else:
                        value = add(value, load(out, start))
                    store(value, out, start)
