"""Convolution on the host: im2col, then one large matrix product by BLAS.

Replaces the seven loops of `layers/conv.py`, which has the formulas and names. Every output is a
dot product of a filter with a window of the image. With each window as a row of a matrix, all
outputs are one product:

    columns[(n, p, q), (r, s, c)] = padded[n, p·stride + r, q·stride + s, c]

    y  = columns · wᵀ          (N·P·Q, R·S·C) · (R·S·C, K)
    dw = dyᵀ · columns
    dx = col2im(dy · w)        each image element adds up what its windows hold for it

`padded` is x with zeros around it, and only the channels of one group: groups are processed one
after the other. Every window is inside it, and each of a window's rows (s, c) is one run of memory.
So im2col copies runs and col2im adds them, and neither has to test for the image's border.

The matrix holds each pixel up to R·S times: each group of conv2 would need 448 MB at batch 128. So
it is built for a few rows of outputs at a time, as many as stay in the cache (COLUMN_BYTES) between
the loop that writes them and the product that reads them, and anew in the backward pass. Bias and
ReLU, and in the backward pass the ReLU's mask and dL/db, are computed while those rows are there.
"""

import numpy as np
from numba import njit

from layers.fast.host.threads import in_parallel, shares
from layers.fast.step import Step

COLUMN_BYTES = 2**20
"""Upper limit of a thread's matrix of columns, but at least one row of outputs."""

# Both loops take a slice for each run. Numba works on such a run at full speed, since its index
# cannot be negative, where `columns[row, base + i]` would be checked element by element.


@njit(nogil=True, cache=True)
def im2col(padded, columns, size, stride, rows, first):
    """Write windows of padded (N, H, W, C) into columns (lines, Q, size·size·C).

    rows: P; first: the first of the N·P lines of outputs.
    """
    images, height, padded_width, channels = padded.shape
    lines = padded.reshape(images * height, padded_width * channels)
    run, step = size * channels, stride * channels
    for line in range(columns.shape[0]):
        n, p = divmod(first + line, rows)
        for q in range(columns.shape[1]):
            for r in range(size):
                out = columns[line, q, r * run : (r + 1) * run]
                pixels = lines[n * height + p * stride + r, q * step : q * step + run]
                for i in range(run):
                    out[i] = pixels[i]


@njit(nogil=True, cache=True)
def col2im(columns, padded, size, stride, rows, first):
    """Add columns (lines, Q, size·size·C) to padded (N, H, W, C): the transpose of im2col."""
    images, height, padded_width, channels = padded.shape
    lines = padded.reshape(images * height, padded_width * channels)
    run, step = size * channels, stride * channels
    for line in range(columns.shape[0]):
        n, p = divmod(first + line, rows)
        for r in range(size):
            whole = lines[n * height + p * stride + r]
            for q in range(columns.shape[1]):
                pixels = whole[q * step : q * step + run]
                part = columns[line, q, r * run : (r + 1) * run]
                for i in range(run):
                    pixels[i] += part[i]


@njit(nogil=True, cache=True)
def add_bias(y, b, relu):
    """y[row, k] += b[k] for every row, and the ReLU if there is one."""
    for row in range(y.shape[0]):
        for k in range(y.shape[1]):
            z = y[row, k] + b[k]
            y[row, k] = z if not (relu and z <= 0) else y.dtype.type(0)


@njit(nogil=True, cache=True)
def mask_and_sum(dy, y, dz, db, relu):
    """dz is dy, with a ReLU only where y is positive; db[k] += dz[row, k], row after row."""
    for row in range(dy.shape[0]):
        for k in range(dy.shape[1]):
            dz[row, k] = dy[row, k] if not (relu and y[row, k] <= 0) else y.dtype.type(0)
            db[k] += dz[row, k]


def blocks(x_shape, y_shape, w_shape, itemsize):
    """How many images (of one group) are padded at a time, and lines of outputs at once."""
    line = y_shape[2] * w_shape[1] * w_shape[2] * w_shape[3] * itemsize
    lines = max(1, COLUMN_BYTES // line)
    return min(x_shape[0], max(1, lines // y_shape[1])), lines


def with_padding(x, y, size, stride, workspace):
    """Zeros for the images of x with padding around them, as far as the windows of y reach."""
    sides = ((outputs - 1) * stride + size for outputs in y.shape[1:3])
    padded = workspace("padded", (x.shape[0], *sides, x.shape[3]))
    padded[...] = 0
    return padded


def common(x, padded, before):
    """What x (N, H, W, C) and padded have in common: a view of each.

    Less than the whole of x where its last rows and columns are beyond every window.
    """
    height, width = (
        max(0, min(side, padded_side - before))
        for side, padded_side in zip(x.shape[1:3], padded.shape[1:3], strict=True)
    )
    return x[:, :height, :width], padded[:, before : before + height, before : before + width]


def forward_images(x, w, b, y, relu, stride, before, groups, workspace):
    """im2col_forward for one thread's images."""
    filters, size, _, channels = w.shape
    images, rows, width, _ = y.shape
    per_group = filters // groups
    w = w.reshape(filters, -1)
    batch, at_once = blocks(x.shape, y.shape, (filters, size, size, channels), x.itemsize)
    padded = with_padding(x[:batch, ..., :channels], y, size, stride, workspace)
    for start in range(0, images, batch):
        x_part = x[start : start + batch]
        part = padded[: len(x_part)]
        lines = y[start : start + batch].reshape(-1, width, filters)
        for g in range(groups):
            image, place = common(x_part[..., g * channels : (g + 1) * channels], part, before)
            place[...] = image
            group = slice(g * per_group, (g + 1) * per_group)
            for first in range(0, len(lines), at_once):
                out = lines[first : first + at_once]
                columns = workspace("columns", (*out.shape[:2], w.shape[1]))
                im2col(part, columns, size, stride, rows, first)
                out = out.reshape(-1, filters)
                np.matmul(columns.reshape(len(out), -1), w[group].T, out=out[:, group])
                if g == groups - 1:
                    add_bias(out, b, relu)


def backward_images(x, w, dy, y, relu, dx, dw, db, stride, before, groups, workspace):
    """im2col_backward for one thread's images: dw and db are what these add to them."""
    filters, size, _, channels = w.shape
    images, rows, width, _ = dy.shape
    per_group = filters // groups
    flat_w, flat_dw = w.reshape(filters, -1), dw.reshape(filters, -1)
    partial = workspace("partial dw", (per_group, flat_w.shape[1]))
    dw[...] = 0
    db[...] = 0
    batch, at_once = blocks(x.shape, dy.shape, w.shape, x.itemsize)
    padded = with_padding(x[:batch, ..., :channels], dy, size, stride, workspace)
    for start in range(0, images, batch):
        x_part = x[start : start + batch]
        part = padded[: len(x_part)]
        given, outputs = (a[start : start + batch].reshape(-1, filters) for a in (dy, y))
        dz = workspace("dz", given.shape)
        mask_and_sum(given, outputs, dz, db, relu)
        lines = dz.reshape(-1, width, filters)
        for g in range(groups):
            channels_of_group = slice(g * channels, (g + 1) * channels)
            image, place = common(x_part[..., channels_of_group], part, before)
            place[...] = image
            group = slice(g * per_group, (g + 1) * per_group)
            d_part = None
            if dx is not None:
                d_part = workspace("d_padded", part.shape)
                d_part[...] = 0
            for first in range(0, len(lines), at_once):
                some = lines[first : first + at_once]
                columns = workspace("columns", (*some.shape[:2], flat_w.shape[1]))
                im2col(part, columns, size, stride, rows, first)
                some = some.reshape(-1, filters)[:, group]
                flat = columns.reshape(len(some), -1)
                np.matmul(some.T, flat, out=partial)
                flat_dw[group] += partial
                if d_part is not None:
                    np.matmul(some, flat_w[group], out=flat)
                    col2im(columns, d_part, size, stride, rows, first)
            if d_part is not None:
                dx_part = dx[start : start + batch, ..., channels_of_group]
                d_image, place = common(dx_part, d_part, before)
                if d_image.shape != dx_part.shape:
                    dx_part[...] = 0  # where no window reaches
                d_image[...] = place


# The images are split among the threads (`threads.py`), each with its own arrays.


def workspace_of(workspace, number):
    """The arrays of thread `number`."""
    return lambda name, shape: workspace(f"{name} {number}", shape)


def im2col_forward(x, w, b, y, relu, stride, before, groups, workspace):
    """y (N, P, Q, K) from x (N, H, W, C), w (K, R, S, C/groups), b (K), and the ReLU behind it.

    `workspace(name, shape)` returns a reusable array.
    """

    def work(number, part):
        arrays = workspace_of(workspace, number)
        forward_images(x[part], w, b, y[part], relu, stride, before, groups, arrays)

    in_parallel(work, shares(len(x)))


def im2col_backward(x, w, dy, y, relu, dx, dw, db, stride, before, groups, workspace):
    """dx, dw, db from dy, x, w and y; dx may be None where it is not needed (the first layer).

    What the images add to dw and db is added in their order: the same bits each run.
    """
    parts = shares(len(x))
    # The first thread adds to dw and db themselves.
    sums = [(dw, db)] + [
        (workspace(f"dw {number}", dw.shape), workspace(f"db {number}", db.shape))
        for number in range(1, len(parts))
    ]

    def work(number, part):
        dx_part = None if dx is None else dx[part]
        part_dw, part_db = sums[number]
        geometry = stride, before, groups
        arrays = workspace_of(workspace, number)
        given = x[part], w, dy[part], y[part], relu
        backward_images(*given, dx_part, part_dw, part_db, *geometry, arrays)

    in_parallel(work, parts)
    for more_dw, more_db in sums[1:]:
        dw += more_dw
        db += more_db


# --- step


class Im2colConv(Step):
    """A Conv2D on the host, and the ReLU behind it, in place, if there is one."""

    short = "im2col, BLAS"
    computed_by = "im2col, BLAS, col2im"

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv = self.layers[0]
        x = self.check_input(x)
        self.x_product = self.operand(x, "x for products")
        self.w_product = self.operand(conv.weight.value, "w for products")
        y = self.output((x.shape[0], *conv.output_shape(x.shape[1:])))
        geometry = conv.stride, conv.before, conv.groups
        operands = self.x_product, self.w_product, conv.bias.value, y, len(self.layers) == 2
        im2col_forward(*operands, *geometry, self.buffer)
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.layers[0]
        dy, relu = self.check_gradient(dy), len(self.layers) == 2
        dx = self.input_gradient(self.x_product.shape)
        dw, db = conv.weight.grad, conv.bias.grad
        dz = self.operand(dy, "dy for products")
        geometry = conv.stride, conv.before, conv.groups
        operands = self.x_product, self.w_product, dz, self.y, relu, dx, dw, db
        im2col_backward(*operands, *geometry, self.buffer)
        if dz is not dy:  # biases are not rounded
            masked = np.where(self.y <= 0, 0, dy) if relu else dy
            masked.reshape(-1, db.size).sum(axis=0, out=db)
        return dx
