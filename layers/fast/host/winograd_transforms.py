"""The loops of Winograd's algorithm on the host: tiles to their n² points and back.

    to_points      V = Bᵀ x B, or Z = A dz Aᵀ with dz = dy where y is positive, and dL/db
    from_points    y = Aᵀ M A + b and the ReLU, or dx += B dV Bᵀ

Both take CHANNELS channels of a tile at a time, in small arrays that stay in the cache. Outside the
image they read zeros and write nothing, so any padding and any remainder goes. Sizes and matrices
are arguments: one compilation serves every tile. A sum has TERMS terms; what a matrix lacks of
them is zero, so that the loop over terms is written out and sums stay in registers.

Arrays are flat and indices unsigned: of any other index Numba looks whether it is negative.
"""

import numpy as np
from numba import njit

from layers.fast.host.vectors import TERMS, WIDE, load_column, store_sum

CHANNELS = 16
"""Channels that are transformed at a time: one or two registers."""


@njit(inline="always")
def copy_channels(source, start, target, place, count):
    """target[place : place + count] = source[start : start + count], count <= CHANNELS."""
    start, place = np.uintp(start), np.uintp(place)
    if count == CHANNELS:  # of a constant length, so one or two instructions
        for c in range(CHANNELS):
            target[place + np.uintp(c)] = source[start + np.uintp(c)]
    else:
        for c in range(count):
            target[place + np.uintp(c)] = source[start + np.uintp(c)]


@njit(nogil=True, cache=True)
def both_sides(matrix, a, b, source, start, row, column, half, target, place, to_row, to_column):
    """matrix · tile · matrixᵀ of a channel vector's tile, b×b in source, to target, a×a.

    matrix: flat, TERMS a row, zero outside a×b. Element (i, j) is at start + i·row + j·column, and
    in the target likewise.
    """
    channels = WIDE // source.itemsize
    for j in range(b):
        values = load_column(source, start + j * column, row, b)
        for i in range(a):
            store_sum(values, matrix, i * TERMS, half, (i * b + j) * channels)
    for i in range(a):
        values = load_column(half, i * b * channels, channels, b)
        for j in range(a):
            store_sum(values, matrix, j * TERMS, target, place + i * to_row + j * to_column)


@njit(nogil=True, cache=True, fastmath={"contract"})
def to_points(source, y, relu, matrix, sides, step, before, rows, columns, first, points, db):
    """points (n·n, tiles, C): matrix · tile · matrixᵀ of tiles first, first + 1, ... of source.

    source: x or dy (N, H, W, C); sides: n and the side of a tile, whose corners are `step` apart
    and the first `before` outside the image. relu: source counts where y is positive, else is zero.
    db (C) += the sum of what counts, unless it is empty.
    """
    _, height, width, channels = source.shape
    n, side = sides
    tiles, dtype = points.shape[1], source.dtype
    flat, signs, out = source.reshape(-1), y.reshape(-1), points.reshape(-1)
    matrix = matrix.reshape(-1)
    tile = np.zeros(TERMS * TERMS * CHANNELS, dtype)
    half = np.zeros((TERMS + 1) * TERMS * CHANNELS, dtype)
    result = np.empty(TERMS * TERMS * CHANNELS, dtype)
    sign, total = np.zeros(CHANNELS, dtype), np.zeros(CHANNELS, dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * step - before, place % columns * step - before
        for low in range(0, channels, CHANNELS):
            count = min(CHANNELS, channels - low)
            total[:] = 0
            for i in range(side):
                h = top + i
                for j in range(side):
                    w, at = left + j, np.uintp((i * side + j) * CHANNELS)
                    if h < 0 or h >= height or w < 0 or w >= width:
                        for c in range(CHANNELS):
                            tile[at + np.uintp(c)] = 0
                        continue
                    start = np.uintp(((image * height + h) * width + w) * channels + low)
                    copy_channels(flat, start, tile, at, count)
                    if relu:
                        copy_channels(signs, start, sign, 0, count)
                        for c in range(CHANNELS):
                            value = tile[at + np.uintp(c)]
                            tile[at + np.uintp(c)] = value if not sign[c] <= 0 else dtype.type(0)
                    if db.size:
                        for c in range(CHANNELS):
                            total[c] += tile[at + np.uintp(c)]
            for c in range(min(count, db.size)):
                db[low + c] += total[c]
            row = side * CHANNELS
            if count == CHANNELS:
                step_j = tiles * channels
                both_sides(matrix, n, side, tile, 0, row, CHANNELS, half, out, t * channels + low, n * step_j, step_j)
                continue
            both_sides(matrix, n, side, tile, 0, row, CHANNELS, half, result, 0, n * CHANNELS, CHANNELS)
            for p in range(n * n):
                copy_channels(result, p * CHANNELS, out, (p * tiles + t) * channels + low, count)


@njit(nogil=True, cache=True, fastmath={"contract"})
def from_points(points, matrix, sides, step, before, rows, columns, first, b, relu, target):
    """matrix · points · matrixᵀ to the tiles first, first + 1, ... of target (N, H, W, C).

    sides: that of a tile, and n. With a bias b (C) target becomes the result + b, and the ReLU of
    it; with an empty one the result is added to target, as tiles may overlap: to_points transposed.
    """
    _, height, width, channels = target.shape
    side, n = sides
    tiles, dtype = points.shape[1], target.dtype
    flat, out = points.reshape(-1), target.reshape(-1)
    matrix = matrix.reshape(-1)
    tile = np.zeros(TERMS * TERMS * CHANNELS, dtype)
    half = np.zeros((TERMS + 1) * TERMS * CHANNELS, dtype)
    result = np.empty(TERMS * TERMS * CHANNELS, dtype)
    bias = np.zeros(CHANNELS, dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * step - before, place % columns * step - before
        for low in range(0, channels, CHANNELS):
            count = min(CHANNELS, channels - low)
            if b.size:
                copy_channels(b, low, bias, 0, count)
            if count == CHANNELS:
                step_j = tiles * channels
                both_sides(matrix, side, n, flat, t * channels + low, n * step_j, step_j, half, result, 0, side * CHANNELS, CHANNELS)
            else:
                for p in range(n * n):
                    copy_channels(flat, (p * tiles + t) * channels + low, tile, p * CHANNELS, count)
                both_sides(matrix, side, n, tile, 0, n * CHANNELS, CHANNELS, half, result, 0, side * CHANNELS, CHANNELS)
            for i in range(max(0, -top), min(side, height - top)):
                for j in range(max(0, -left), min(side, width - left)):
                    at = np.uintp((i * side + j) * CHANNELS)
                    start = np.uintp(
                        ((image * height + top + i) * width + left + j) * channels + low
                    )
                    if b.size:
                        for c in range(CHANNELS):
                            z = result[at + np.uintp(c)] + bias[c]
                            result[at + np.uintp(c)] = z if not (relu and z <= 0) else dtype.type(0)
                        copy_channels(result, at, out, start, count)
                    else:
                        for c in range(count):
                            out[start + np.uintp(c)] += result[at + np.uintp(c)]
