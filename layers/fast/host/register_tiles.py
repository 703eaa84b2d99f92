"""Convolution on the host without a matrix of columns: sums in registers, a few windows at a time.

Replaces the seven loops of `layers/conv.py`, which has the formulas and names, where `im2col.py`
did before: that copies each pixel up to R·S times into a matrix, and BLAS copies it once more into
its own order, which with few filters takes as long as the arithmetic. Here the operands are read
where they are, and a tile of sums stays in registers (`tile.py`) for all terms of a sum:

    y     sums of rows × lanes: outputs (n, p, q) × filters; terms (r, s, c)
    dw    taps (r, s, c) × filters; terms (n, p, q)
    dx    as y, of dz with zeros around it and the flipped filters; for stride 1

with dz = dy where the ReLU let y pass. One factor of a term is a number of the padded image, at the
place of the sum's row plus that of the term; the other is a run of filters or of dz. As many
filters as there are lanes are a panel. Images are padded a few at a time and so stay in the cache.

On two cores of an AMD EPYC conv1 takes 0.64 of im2col's time in the net of the first command, and
as long as Winograd's algorithm after space-to-depth in the full net (`benchmarks/host_step.py`).
"""

import math

import numpy as np
from numba import njit

from layers.fast.host.im2col import Im2colConv, workspace_of
from layers.fast.host.threads import in_parallel, shares
from layers.fast.host.tile import TILE, VECTORS, add_products, add_tile, lanes, rows, zeros
from layers.fast.host.vectors import prefetch

CACHED_BYTES = 2**19
"""Padded images in one thread at a time, at least one."""
LEAST = 12
"""Filters of a group: with fewer, too many lanes are unused."""

# --- host


@njit(nogil=True, cache=True)
def add_sums(row, a, a_at, places, a_steps, b, b_at, b_steps, counts, out):
    """out += the products of all terms (i, j, k), whose places are the sums of their steps."""
    tile = zeros(row, a)
    for i in range(counts[0]):
        for j in range(counts[1]):
            a_start = a_at + i * a_steps[0] + j * a_steps[1]
            b_start = b_at + i * b_steps[0] + j * b_steps[1]
            for k in range(counts[2]):
                at, b_place = a_start + k * a_steps[2], b_start + k * b_steps[2]
                tile = add_products(tile, a, places, at, b, b_place)
    add_tile(tile, out)


@njit(nogil=True, cache=True)
def mask(dy, y, relu, padded, before, db):
    """pad of dy where y is positive, or of dy without a ReLU; db (K) += its sum."""
    for n in range(dy.shape[0]):
        for p in range(dy.shape[1]):
            for q in range(dy.shape[2]):
                given, signs, dz = dy[n, p, q], y[n, p, q], padded[n, before + p, before + q]
                for k in range(dy.shape[3]):
                    dz[k] = given[k] if not (relu and signs[k] <= 0) else dy.dtype.type(0)
                    db[k] += dz[k]


@njit(nogil=True, cache=True)
def convolve(padded, filters, b, relu, row, places, sums, y):
    """y (n, P, Q, K) of padded (N, H, W, C) and filters (groups, panels, R, S, C/groups, lanes).

    row: a tuple of as many numbers as a tile's row has vectors; so each number of them is compiled
    by itself. places: of the windows; sums: a tile, work space.
    """
    groups, panels, size, _, channels, width = filters.shape
    line, pixel = padded.shape[2] * padded.shape[3], padded.shape[3]
    pixels, weights, out = padded.reshape(-1), filters.reshape(-1), y.reshape(-1)
    outputs, per_group, at_once = y.size // y.shape[3], y.shape[3] // groups, TILE // len(row)
    a_steps, counts = (line, pixel, 1), (size, size, channels)
    if groups == 1:  # a window's row is one run
        a_steps, counts = (0, line, 1), (1, size, size * channels)
    b_steps = counts[1] * counts[2] * width, counts[2] * width, width
    first_sums, sums = sums[0], sums[1]
    for panel in range(groups * panels):
        g, low = panel // panels, panel % panels * width
        count = min(width, per_group - low)
        low += g * per_group
        for i in range(at_once):
            for k in range(count):
                first_sums[i * width + k] = b[low + k]
        start = panel * size * size * channels * width
        for first in range(0, outputs, at_once):
            for e in range(sums.size):
                sums[e] = first_sums[e]
            here = min(at_once, outputs - first)
            for i in range(here):  # so that the stores below need not wait for memory
                prefetch(out, (first + i) * y.shape[3] + low)
                prefetch(out, (first + i) * y.shape[3] + low + count - 1)
            windows = places[first : first + at_once]
            a, filter_run = (pixels, g * channels, windows, a_steps), (weights, start, b_steps)
            add_sums(row, *a, *filter_run, counts, sums)
            if relu:
                for e in range(sums.size):
                    sums[e] = sums[e] if not sums[e] <= 0 else y.dtype.type(0)
            for i in range(here):
                place = np.uintp((first + i) * y.shape[3] + low)
                for k in range(count):
                    out[place + np.uintp(k)] = sums[np.uintp(i * width + k)]


@njit(nogil=True, cache=True)
def filter_gradient(padded, stride, dz, border, shape, row, taps, dw):
    """dw (groups, panels, taps, lanes) += dz · the windows of padded (N, H, W, C).

    dz: (N, H', W', K) of which the gradient of shape (n, P, Q) is `border` from the corner; taps:
    places in a window of one group. The last panel's run may reach beyond dz's end.
    """
    groups, panels, _, width = dw.shape
    pixel, z_pixel = padded.shape[3], dz.shape[3]
    line, z_line = padded.shape[2] * pixel, dz.shape[2] * z_pixel
    a_steps = padded.shape[1] * line, stride * line, stride * pixel
    b_steps = dz.shape[1] * z_line, z_line, z_pixel
    pixels, gradients, out = padded.reshape(-1), dz.reshape(-1), dw.reshape(groups * panels, -1)
    at_once = TILE // len(row)
    for panel in range(groups * panels):
        g = panel // panels
        start = border * (z_line + z_pixel) + g * (z_pixel // groups) + panel % panels * width
        for first in range(0, len(taps), at_once):
            sums = out[panel, first * width : (first + at_once) * width]
            some, at = taps[first : first + at_once], g * (pixel // groups)
            add_sums(row, pixels, at, some, a_steps, gradients, start, b_steps, shape, sums)


# --- geometry


def pad(x, padded, before):
    """Copy x (n, H, W, C) into padded (N, H', W', C), `before` pixels from its corner."""
    inside = padded[: len(x), before : before + x.shape[1], before : before + x.shape[2]]
    inside[...] = x[:, : inside.shape[1], : inside.shape[2]]


def vectors_for(filters, dtype):
    """Vectors of a tile's row, so that as few lanes as possible are unused; then the most."""

    def lanes_used(vectors):
        return -(-filters // lanes(vectors, dtype)) * lanes(vectors, dtype)

    return min(reversed(VECTORS), key=lanes_used)


def grid(counts, steps, at_once):
    """The sums of index · step, in order, and zeros up to a multiple of at_once."""
    places = np.zeros((), np.intp)
    for count, step in zip(counts, steps, strict=True):
        places = np.add.outer(places, np.arange(count) * step)
    return np.append(places.reshape(-1), np.zeros(-places.size % at_once, np.intp))


def to_panels(w, panels):
    """panels (groups, number, R, S, C, lanes) = w (groups, K, R, S, C), and zeros behind."""
    width = panels.shape[-1]
    for number in range(panels.shape[1]):
        part = w[:, number * width : (number + 1) * width]
        panels[:, number, ..., : part.shape[1]] = np.moveaxis(part, 1, -1)
        panels[:, number, ..., part.shape[1] :] = 0


def from_panels(panels, w):
    """The transpose of to_panels."""
    width = panels.shape[-1]
    for number in range(panels.shape[1]):
        part = w[:, number * width : (number + 1) * width]
        part[...] = np.moveaxis(panels[:, number, ..., : part.shape[1]], -1, 1)


class Geometry:
    """The arrays of a convolution for batches of one shape, and the places in them.

    with_dx: whether dL/dx is wanted, for which dz needs zeros around it.
    """

    def __init__(self, conv, x_shape, y_shape, dtype, with_dx):
        size, stride, groups = conv.kernel_size, conv.stride, conv.groups
        _, height, width, channels = x_shape
        _, rows_out, columns_out, filters = y_shape
        self.parts = shares(x_shape[0])
        self.vectors = vectors_for(filters // groups, dtype)
        self.dx_vectors = vectors_for(channels // groups, dtype)
        self.row, self.dx_row = (0,) * self.vectors, (0,) * self.dx_vectors
        self.border = size - 1 - conv.before if with_dx else 0
        sides = [(outputs - 1) * stride + size for outputs in y_shape[1:3]]
        dz_sides = [outputs + self.border for outputs in y_shape[1:3]]
        if with_dx:
            dz_sides = [max(a, b + size - 1) for a, b in zip(dz_sides, x_shape[1:3], strict=True)]
        numbers = sides[0] * sides[1] * channels + dz_sides[0] * dz_sides[1] * filters
        at_once = max(1, CACHED_BYTES // (numbers * np.dtype(dtype).itemsize))
        at_once = min(at_once, max(part.stop - part.start for part in self.parts))
        self.padded, self.dz = (at_once, *sides, channels), (at_once, *dz_sides, filters)
        line, dz_line = sides[1] * channels, dz_sides[1] * filters

        def panels(count, terms, vectors):
            number = -(-count // groups // lanes(vectors, dtype))
            return groups, number, *terms, lanes(vectors, dtype)

        self.filters = panels(filters, (size, size, channels // groups), self.vectors)
        self.flipped = panels(channels, (size, size, filters // groups), self.dx_vectors)
        self.windows = grid(
            (at_once, rows_out, columns_out),
            (sides[0] * line, stride * line, stride * channels),
            rows(self.vectors),
        )
        self.dx_windows = grid(
            (at_once, height, width),
            (dz_sides[0] * dz_line, dz_line, filters),
            rows(self.dx_vectors),
        )
        self.taps = grid((size, size, channels // groups), (line, channels, 1), rows(self.vectors))

    def batches(self, part):
        """`part` of the images, as many at a time as are padded."""
        starts = range(part.start, part.stop, self.padded[0])
        return [slice(first, min(first + self.padded[0], part.stop)) for first in starts]


def tile_shape(vectors, dtype):
    """Of the sums of a tile, as a flat array."""
    return 2, rows(vectors) * lanes(vectors, dtype)


# --- step


class RegisterTileConv(Im2colConv):
    """A Conv2D on the host, and the ReLU behind it, if there is one.

    dL/dx of a stride above 1 is left to im2col, and then dL/dw with it.
    """

    short = "register tiles"
    computed_by = "convolve, filter_gradient"

    @staticmethod
    def fits(conv):
        """Whether few lanes are unused."""
        return conv.out_channels // conv.groups >= LEAST

    def tiles_dx(self):
        """Whether `backward` computes dL/dx by tiles."""
        conv = self.layers[0]
        fits = conv.in_channels // conv.groups >= LEAST and conv.before < conv.kernel_size
        return conv.input_gradient and conv.stride == 1 and fits

    def geometry(self, x_shape, y_shape):
        """Kept, as the shapes seldom change."""
        key = x_shape, y_shape, self.tiles_dx(), len(shares(x_shape[0]))
        if getattr(self, "_key", None) != key:
            self._geometry = Geometry(self.layers[0], x_shape, y_shape, self.dtype, self.tiles_dx())
            self._key = key
        return self._geometry

    def by_group(self, w):
        """w (K, R, S, C/groups) as (groups, K/groups, R, S, C/groups)."""
        return w.reshape(self.layers[0].groups, -1, *w.shape[1:])

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv = self.layers[0]
        self.x_product = x = self.check_input(x)
        self.w_product = conv.weight.value
        y = self.output((x.shape[0], *conv.output_shape(x.shape[1:])))
        g = self.geometry(x.shape, y.shape)
        filters = self.buffer("filters", g.filters)
        to_panels(self.by_group(conv.weight.value), filters)
        b, relu = conv.bias.value, len(self.layers) == 2

        def work(number, part):
            arrays = workspace_of(self.buffer, number)
            padded, sums = (
                arrays("padded", g.padded),
                arrays("sums", tile_shape(g.vectors, self.dtype)),
            )
            padded[...] = 0
            for some in g.batches(part):
                pad(x[some], padded, conv.before)
                convolve(padded, filters, b, relu, g.row, g.windows, sums, y[some])

        in_parallel(work, g.parts)
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.layers[0]
        if conv.input_gradient and not self.tiles_dx():
            return super().backward(dy)
        dy, x, y = self.check_gradient(dy), self.x_product, self.y
        dw, db, relu = conv.weight.grad, conv.bias.grad, len(self.layers) == 2
        g = self.geometry(x.shape, y.shape)
        dx, flipped = self.input_gradient(x.shape), self.buffer("flipped", g.flipped)
        if dx is not None:
            w = self.by_group(conv.weight.value)[:, :, ::-1, ::-1]
            to_panels(w.transpose(0, 4, 2, 3, 1), flipped)
        zero = self.buffer("zero", x.shape[3:])
        zero[:] = 0
        taps = *g.filters[:2], g.taps.size, g.filters[-1]
        found = [
            (self.buffer(f"dw {number}", taps), self.buffer(f"db {number}", db.shape))
            for number in range(len(g.parts))
        ]

        def work(number, part):
            arrays = workspace_of(self.buffer, number)
            dz = arrays("dz", (math.prod(g.dz) + taps[-1],))[: math.prod(g.dz)].reshape(g.dz)
            padded, sums = (
                arrays("padded", g.padded),
                arrays("sums", tile_shape(g.dx_vectors, self.dtype)),
            )
            more, more_db = found[number]
            padded[...] = dz[...] = more[...] = more_db[...] = 0
            for some in g.batches(part):
                pad(x[some], padded, conv.before)
                mask(dy[some], y[some], relu, dz, g.border, more_db)
                given = padded, conv.stride, dz, g.border, y[some].shape[:3]
                filter_gradient(*given, g.row, g.taps, more)
                if dx is not None:
                    to_dx = flipped, zero, False, g.dx_row, g.dx_windows, sums
                    convolve(dz, *to_dx, dx[some])

        in_parallel(work, g.parts)
        sums, db[...] = found[0]
        for more, more_db in found[1:]:
            sums += more
            db += more_db
        count = dw[0].size
        from_panels(sums[:, :, :count].reshape(g.filters), self.by_group(dw))
        return dx
