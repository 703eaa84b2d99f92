"""Many small matrix products at once, each sum in a vector register: those of Winograd's algorithm.

    out[n, g, i, :] = Σ_t a[n, g, i, t] · b[n, g, t, :]

In place of BLAS, for matrices of a few dozen rows. A tile of rows × lanes stays in registers for
all terms (`tile.py`); as many columns as there are lanes are a panel.
"""

import numpy as np
from numba import njit

from layers.fast.host.tile import TILE, VECTOR, add_products, store_rows, zeros

# --- host


@njit(nogil=True, cache=True)
def panel_products(
    zero, rows, terms, columns, a, a_at, a_row, a_step, b, b_at, b_step, out, to, out_row, places,
    sums,
):  # fmt: skip
    """`columns` columns of out = a · b, for matrix_products; zero: a tile."""
    at_once, width = len(places), len(sums) // len(places)
    for first in range(0, rows, at_once):
        here = min(at_once, rows - first)
        for i in range(at_once):
            places[i] = a_at + (first + min(i, here - 1)) * a_row
        tile = zero
        for term in range(terms):
            tile = add_products(tile, a, places, term * a_step, b, b_at + term * b_step)
        start = to + first * out_row
        if here == at_once and columns == width:
            store_rows(tile, out, start, out_row)
            continue
        store_rows(tile, sums, 0, width)
        for i in range(here):
            for k in range(columns):
                out[np.uintp(start + i * out_row + k)] = sums[np.uintp(i * width + k)]


@njit(nogil=True, cache=True)
def matrix_products(shape, a, a_steps, b, b_steps, out, out_steps, vectors):
    """out = a · b for many small matrices, at each of n places and for each group.

    shape: n, groups, rows, terms, columns. The arrays are flat; a_steps: from place to place, group
    to group, row to row and term to term; b_steps: place, group, term; out_steps: place, group,
    row. b is read up to a whole panel.
    """
    count, groups, rows, terms, columns = shape
    width = vectors * VECTOR // a.itemsize
    places, sums = np.empty(TILE // vectors, np.intp), np.empty(TILE // vectors * width, a.dtype)
    for n in range(count):
        for g in range(groups):
            a_at, b_at = n * a_steps[0] + g * a_steps[1], n * b_steps[0] + g * b_steps[1]
            out_at = n * out_steps[0] + g * out_steps[1]
            for low in range(0, columns, width):
                some = rows, terms, min(width, columns - low)
                given = a, a_at, a_steps[2], a_steps[3], b, b_at + low, b_steps[2]
                to = out, out_at + low, out_steps[2], places, sums
                if vectors == 4:
                    panel_products(zeros(4, a), *some, *given, *to)
                elif vectors == 3:
                    panel_products(zeros(3, a), *some, *given, *to)
                else:
                    panel_products(zeros(2, a), *some, *given, *to)
