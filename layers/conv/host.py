"""Convolution on the host: im2col, then one large matrix product that BLAS is good at.

Every output is a dot product of a filter with a window of the image. Write each window as a row
of a matrix, and all outputs are one product (formulas and names as in `layers/conv/__init__.py`):

    columns[(n, p, q), (r, s, c)] = x[n, p·stride + r − before, q·stride + s − before, c]

    y  = columns · wᵀ          (N·P·Q, R·S·C) · (R·S·C, K)
    dw = dyᵀ · columns
    dx = col2im(dy · w)        each image element gathers what its windows hold for it

The matrix holds each pixel up to R·S times: each group of conv2 would need 448 MB at batch 128. So
the images are taken a few at a time, as many as fit COLUMN_BYTES, and the matrix is built anew in
the backward pass instead of being kept. Groups take turns, each with its slice of the channels.
"""

import numpy as np
from numba import njit, prange

COLUMN_BYTES = 8 * 2**20
"""Upper limit for the matrix of columns, except that one image is always taken whole."""


@njit(parallel=True, cache=True)
def im2col(x, columns, size, stride, before, rows, width, first, channels):
    """Write the windows of channels first .. first+channels of x (N, H, W, C) into columns.

    columns: (N·P·Q, size·size·channels) with P = rows and Q = width. Padded places become 0.
    """
    images, height, x_width, all_channels = x.shape
    flat = x.reshape(images * height, x_width * all_channels)
    for n_p in prange(images * rows):
        n, p = n_p // rows, n_p % rows
        for q in range(width):
            left = q * stride - before
            # The window's columns inside the image; none, if it lies wholly in the padding.
            inside = range(min(size, max(0, -left)), max(0, min(size, x_width - left)))
            for r in range(size):
                h = p * stride + r - before
                # A slice for each run: Numba copies one at full speed, since its index cannot be
                # negative, where `columns[row, base + i]` would be checked element by element.
                out = columns[n_p * width + q, r * size * channels : (r + 1) * size * channels]
                if h < 0 or h >= height:
                    out[:] = 0
                    continue
                out[: inside.start * channels] = 0
                out[inside.stop * channels :] = 0
                if channels == all_channels:
                    # With all the channels, a window's row is one run of memory.
                    run = flat[
                        n * height + h,
                        (left + inside.start) * channels : (left + inside.stop) * channels,
                    ]
                    for i in range(run.size):
                        out[inside.start * channels + i] = run[i]
                else:
                    for s in inside:
                        start = (left + s) * all_channels + first
                        run = flat[n * height + h, start : start + channels]
                        for i in range(channels):
                            out[s * channels + i] = run[i]


@njit(parallel=True, cache=True)
def col2im(columns, dx, size, stride, before, rows, width, first, channels):
    """Add up into dx (N, H, W, first .. first+channels) what the windows hold for each element.

    The reverse of im2col: one owner for each row of dx, which gathers from all windows over it.
    """
    images, height, x_width = dx.shape[:3]
    for n_h in prange(images * height):
        n, h = n_h // height, n_h % height
        for w in range(x_width):
            out = dx[n, h, w, first : first + channels]
            out[:] = 0
            for r in range(size):
                p, p_rest = divmod(h + before - r, stride)
                if p_rest != 0 or p < 0 or p >= rows:
                    continue
                for s in range(size):
                    q, q_rest = divmod(w + before - s, stride)
                    if q_rest != 0 or q < 0 or q >= width:
                        continue
                    base = (r * size + s) * channels
                    part = columns[(n * rows + p) * width + q, base : base + channels]
                    for c in range(channels):
                        out[c] += part[c]


@njit(parallel=True, cache=True)
def add_bias(y, b):
    """y[row, k] += b[k] for every row."""
    for row in prange(y.shape[0]):
        for k in range(y.shape[1]):
            y[row, k] += b[k]


def images_at_once(x_shape, y_shape, w_shape, itemsize):
    """How many images' columns (of one group) fit into COLUMN_BYTES; at least one."""
    per_image = y_shape[1] * y_shape[2] * w_shape[1] * w_shape[2] * w_shape[3] * itemsize
    return min(x_shape[0], max(1, COLUMN_BYTES // per_image))


def conv_forward_host(x, w, b, y, stride, before, groups, workspace):
    """y (N, P, Q, K) from x (N, H, W, C), w (K, R, S, C/groups), b (K).

    `workspace(name, shape)` returns a reusable array for the columns.
    """
    filters, size, _, channels = w.shape
    images, rows, width, _ = y.shape
    per_group = filters // groups
    w = w.reshape(filters, -1)
    batch = images_at_once(x.shape, y.shape, (filters, size, size, channels), x.itemsize)
    for start in range(0, images, batch):
        x_part, y_part = x[start : start + batch], y[start : start + batch]
        y_rows = y_part.reshape(-1, filters)
        columns = workspace("columns", (y_rows.shape[0], w.shape[1]))
        for g in range(groups):
            mine = slice(g * per_group, (g + 1) * per_group)
            im2col(x_part, columns, size, stride, before, rows, width, g * channels, channels)
            np.matmul(columns, w[mine].T, out=y_rows[:, mine])
        add_bias(y_rows, b)


def conv_backward_host(x, w, dy, dx, dw, db, stride, before, groups, workspace):
    """dx, dw, db from dy, x and w; dx may be None where nobody needs it (the first layer).

    The images' shares of dw and db are added in the order of the images: the same bits each run.
    """
    filters, size, _, channels = w.shape
    images, rows, width, _ = dy.shape
    per_group = filters // groups
    flat_w, flat_dw = w.reshape(filters, -1), dw.reshape(filters, -1)
    share = workspace("dw", (per_group, flat_w.shape[1]))
    dw[...] = 0
    db[...] = 0
    batch = images_at_once(x.shape, dy.shape, w.shape, x.itemsize)
    for start in range(0, images, batch):
        x_part = x[start : start + batch]
        dy_rows = dy[start : start + batch].reshape(-1, filters)
        columns = workspace("columns", (dy_rows.shape[0], flat_w.shape[1]))
        db += dy_rows.sum(axis=0)
        for g in range(groups):
            mine = slice(g * per_group, (g + 1) * per_group)
            im2col(x_part, columns, size, stride, before, rows, width, g * channels, channels)
            np.matmul(dy_rows[:, mine].T, columns, out=share)
            flat_dw[mine] += share
            if dx is not None:
                np.matmul(dy_rows[:, mine], flat_w[mine], out=columns)
                dx_part = dx[start : start + batch]
                col2im(
                    columns, dx_part, size, stride, before, rows, width, g * channels, channels
                )
