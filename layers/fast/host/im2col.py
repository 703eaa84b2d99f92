"""Convolution on the host: im2col, then one large matrix product by BLAS.

Replaces the seven loops of `layers/conv.py`, which has the formulas and names. Every output is a
dot product of a filter with a window of the image. With each window as a row of a matrix, all
outputs are one product:

    columns[(n, p, q), (r, s, c)] = padded[n, p·stride + r, q·stride + s, c]

    y  = columns · wᵀ          (N·P·Q, R·S·C) · (R·S·C, K)
    dw = dyᵀ · columns
    dx = col2im(dy · w)        each image element gathers what its windows hold for it

`padded` is x with zeros around it, and only the channels of one group: groups are processed one
after the other. Every window is inside it, and each of a window's rows (s, c) is one run of memory.
So im2col copies runs and col2im adds them, and neither has to test for the image's border.

The matrix holds each pixel up to R·S times: each group of conv2 would need 448 MB at batch 128. So
the images are taken a few at a time, as many as fit COLUMN_BYTES, and the matrix is built anew in
the backward pass instead of being kept.
"""

import numpy as np
from numba import njit

from layers.activation import relu_backward_host, relu_forward_host
from layers.fast.host.threads import in_parallel, shares
from layers.fast.step import Step

COLUMN_BYTES = 8 * 2**20
"""Upper limit of a thread's matrix of columns, but at least one image."""

# Both loops take a slice for each run. Numba works on such a run at full speed, since its index
# cannot be negative, where `columns[row, base + i]` would be checked element by element.


@njit(nogil=True, cache=True)
def im2col(padded, columns, size, stride, rows, width):
    """Write the windows of padded (N, H, W, C) into columns (N·P·Q, size·size·C).

    rows, width: P and Q.
    """
    images, height, padded_width, channels = padded.shape
    lines = padded.reshape(images * height, padded_width * channels)
    run, step = size * channels, stride * channels
    for n_p in range(images * rows):
        top = n_p // rows * height + n_p % rows * stride
        for q in range(width):
            window = columns[n_p * width + q]
            for r in range(size):
                out = window[r * run : (r + 1) * run]
                pixels = lines[top + r, q * step : q * step + run]
                for i in range(run):
                    out[i] = pixels[i]


@njit(nogil=True, cache=True)
def col2im(columns, padded, size, stride, rows, width):
    """Add up in padded (N, H, W, C) what the windows hold for each element.

    The reverse of im2col: one owner for each row of padded, which gathers from all windows over it.
    """
    images, height, padded_width, channels = padded.shape
    lines = padded.reshape(images * height, padded_width * channels)
    run, step = size * channels, stride * channels
    for n_h in range(images * height):
        n, h = n_h // height, n_h % height
        line = lines[n_h]
        line[:] = 0
        for r in range(size):
            p, rest = divmod(h - r, stride)
            if rest != 0 or p < 0 or p >= rows:
                continue
            for q in range(width):
                pixels = line[q * step : q * step + run]
                part = columns[(n * rows + p) * width + q, r * run : (r + 1) * run]
                for i in range(run):
                    pixels[i] += part[i]


@njit(nogil=True, cache=True)
def add_bias(y, b):
    """y[row, k] += b[k] for every row."""
    for row in range(y.shape[0]):
        for k in range(y.shape[1]):
            y[row, k] += b[k]


@njit(nogil=True, cache=True)
def column_sums(y, total):
    """total[k] = Σ y[row, k] over the rows, one after the other."""
    total[:] = 0
    for row in range(y.shape[0]):
        for k in range(y.shape[1]):
            total[k] += y[row, k]


def images_at_once(x_shape, y_shape, w_shape, itemsize):
    """How many images' columns (of one group) fit into COLUMN_BYTES; at least one."""
    per_image = y_shape[1] * y_shape[2] * w_shape[1] * w_shape[2] * w_shape[3] * itemsize
    return min(x_shape[0], max(1, COLUMN_BYTES // per_image))


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


def forward_images(x, w, b, y, stride, before, groups, workspace):
    """im2col_forward for one thread's images."""
    filters, size, _, channels = w.shape
    images, rows, width, _ = y.shape
    per_group = filters // groups
    w = w.reshape(filters, -1)
    batch = images_at_once(x.shape, y.shape, (filters, size, size, channels), x.itemsize)
    padded = with_padding(x[:batch, ..., :channels], y, size, stride, workspace)
    for start in range(0, images, batch):
        x_part = x[start : start + batch]
        y_rows = y[start : start + batch].reshape(-1, filters)
        part = padded[: len(x_part)]
        columns = workspace("columns", (y_rows.shape[0], w.shape[1]))
        for g in range(groups):
            image, place = common(x_part[..., g * channels : (g + 1) * channels], part, before)
            place[...] = image
            im2col(part, columns, size, stride, rows, width)
            filters_of_group = slice(g * per_group, (g + 1) * per_group)
            np.matmul(columns, w[filters_of_group].T, out=y_rows[:, filters_of_group])
        add_bias(y_rows, b)


def backward_images(x, w, dy, dx, dw, db, stride, before, groups, workspace):
    """im2col_backward for one thread's images: dw and db are what these add to them."""
    filters, size, _, channels = w.shape
    images, rows, width, _ = dy.shape
    per_group = filters // groups
    flat_w, flat_dw = w.reshape(filters, -1), dw.reshape(filters, -1)
    partial = workspace("partial dw", (per_group, flat_w.shape[1]))
    partial_db = workspace("partial db", db.shape)
    dw[...] = 0
    db[...] = 0
    batch = images_at_once(x.shape, dy.shape, w.shape, x.itemsize)
    padded = with_padding(x[:batch, ..., :channels], dy, size, stride, workspace)
    for start in range(0, images, batch):
        x_part = x[start : start + batch]
        part = padded[: len(x_part)]
        dy_rows = dy[start : start + batch].reshape(-1, filters)
        column_sums(dy_rows, partial_db)
        db += partial_db
        columns = workspace("columns", (dy_rows.shape[0], flat_w.shape[1]))
        for g in range(groups):
            group = slice(g * channels, (g + 1) * channels)
            image, place = common(x_part[..., group], part, before)
            place[...] = image
            im2col(part, columns, size, stride, rows, width)
            filters_of_group = slice(g * per_group, (g + 1) * per_group)
            np.matmul(dy_rows[:, filters_of_group].T, columns, out=partial)
            flat_dw[filters_of_group] += partial
            if dx is not None:
                np.matmul(dy_rows[:, filters_of_group], flat_w[filters_of_group], out=columns)
                d_part = workspace("d_padded", part.shape)
                col2im(columns, d_part, size, stride, rows, width)
                dx_part = dx[start : start + batch, ..., group]
                d_image, place = common(dx_part, d_part, before)
                if d_image.shape != dx_part.shape:
                    dx_part[...] = 0  # where no window reaches
                d_image[...] = place


# The images are split among the threads (`threads.py`), each with its own arrays.


def workspace_of(workspace, number):
    """The arrays of thread `number`."""
    return lambda name, shape: workspace(f"{name} {number}", shape)


def im2col_forward(x, w, b, y, stride, before, groups, workspace):
    """y (N, P, Q, K) from x (N, H, W, C), w (K, R, S, C/groups), b (K).

    `workspace(name, shape)` returns a reusable array.
    """

    def work(number, part):
        arrays = workspace_of(workspace, number)
        forward_images(x[part], w, b, y[part], stride, before, groups, arrays)

    in_parallel(work, shares(len(x)))


def im2col_backward(x, w, dy, dx, dw, db, stride, before, groups, workspace):
    """dx, dw, db from dy, x and w; dx may be None where it is not needed (the first layer).

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
        backward_images(x[part], w, dy[part], dx_part, part_dw, part_db, *geometry, arrays)

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
        operands = self.x_product, self.w_product, conv.bias.value, y
        im2col_forward(*operands, *geometry, self.buffer)
        if len(self.layers) == 2:
            relu_forward_host(y.reshape(-1), y.reshape(-1))
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.layers[0]
        dz = dy = self.check_gradient(dy)
        if len(self.layers) == 2:
            dz = self.buffer("dz", dy.shape)
            relu_backward_host(self.y.reshape(-1), dy.reshape(-1), dz.reshape(-1))
        dx = self.input_gradient(self.x_product.shape)
        dw, db = conv.weight.grad, conv.bias.grad
        rounded = self.operand(dz, "dy for products")
        geometry = conv.stride, conv.before, conv.groups
        operands = self.x_product, self.w_product, rounded, dx, dw, db
        im2col_backward(*operands, *geometry, self.buffer)
        if rounded is not dz:  # biases are not rounded
            dz.reshape(-1, db.size).sum(axis=0, out=db)
        return dx
