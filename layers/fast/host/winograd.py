"""Convolution on the host by Winograd's algorithm: fewer multiplications (Lavin and Gray 2015).

docs/winograd.md derives it, with a worked example and its error. In one dimension m neighbouring
outputs of a filter of r weights depend on n = m + r − 1 values of x:

    y = Aᵀ[(G w) ⊙ (Bᵀ x)]        x (n), w (r), y (m);  A (n, m), G (n, r), B (n, n)

n multiplications instead of m·r. In two dimensions, with one tile of n×n values of x at a time:

    V = Bᵀ x B    U = G w Gᵀ    M = Σ_c U ⊙ V    y = Aᵀ M A

At each of the n² places the sum over channels, for all tiles, is a matrix product (tiles, C)·(C, K)
by BLAS. The backward pass is the transpose of each of these:

    Z = A dy Aᵀ    dV = Σ_k U ⊙ Z    dx = B dV Bᵀ, overlapping tiles added up
                   dU = Σ_tiles Z ⊙ V    dw = Gᵀ dU G

A stride s > 1 becomes 1 by space-to-depth: s×s pixels become one with s²·C channels, and the filter
is filled up with zeros: conv1 (11×11, stride 4, 3 channels) becomes 3×3 with 48 channels.

The transforms read a tile of CHANNELS channels into a small array that stays in the cache. Outside
the image they read zeros and write nothing, so any padding and any remainder goes. Tiles are taken
in blocks: small, so that V and M stay in the cache, but larger where U is large, as each block
reads all of it.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from layers.fast.host.threads import in_parallel, multiply, own_array, shares
from layers.fast.host.winograd_matrices import matrices
from layers.fast.step import Step

LEAST_WEIGHTS, LEAST_AFTER_S2D = 60_000, 17_000
"""Of a layer that the plan takes it for, after space-to-depth the second. With fewer, as in the net
of the first command, the transforms take what the products save, and compiling them takes 10 s."""
CHANNELS = 16
"""Channels that are transformed at a time: one or two registers."""
SMALL_BLOCK, LARGE_BLOCK = 2**20, 24 * 2**20
"""Bytes of V and M of a block of tiles in one thread, at least and at most."""
TILES = (4, 5), (2, 3, 4)
"""Outputs of a tile in each direction, for 3×3 and for 5×5 filters: n = 6, 7 and 6, 7, 8.

Without m = 6 for 3×3, which saves little and needs loops of its own to be compiled.
"""


# --- host
#
# Arrays are flat and indices unsigned: of any other index Numba looks whether it is negative.


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


@njit(inline="always")
def both_sides(matrix, tile, half):
    """tile (b, b, CHANNELS) becomes matrix · tile · matrixᵀ (a, a, CHANNELS).

    matrix: a tuple of `a` tuples of b numbers, so that the loops over them are unrolled.
    """
    a, b = len(matrix), len(matrix[0])
    for i in range(a):
        row = matrix[i]
        for e in range(b * CHANNELS):
            total = row[0] * tile[e]
            for k in range(1, b):
                total += row[k] * tile[np.uintp(k * b * CHANNELS + e)]
            half[np.uintp(i * b * CHANNELS + e)] = total
    for j in range(a):
        row = matrix[j]
        for i in range(a):
            for c in range(CHANNELS):
                total = row[0] * half[np.uintp(i * b * CHANNELS + c)]
                for k in range(1, b):
                    total += row[k] * half[np.uintp((i * b + k) * CHANNELS + c)]
                tile[np.uintp((i * a + j) * CHANNELS + c)] = total


@njit(nogil=True, cache=True, fastmath={"contract"})
def image_to_points(x, matrix, m, before, rows, columns, first, points):
    """points (n·n, tiles, C): Bᵀ x B of the tiles first, first + 1, ... of x (N, H, W, C)."""
    _, height, width, channels = x.shape
    n, tiles = len(matrix), points.shape[1]
    flat, out = x.reshape(-1), points.reshape(-1)
    tile, half = np.zeros(n * n * CHANNELS, x.dtype), np.empty(n * n * CHANNELS, x.dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * m - before, place % columns * m - before
        for low in range(0, channels, CHANNELS):
            count = min(CHANNELS, channels - low)
            for i in range(n):
                h = top + i
                for j in range(n):
                    w, at = left + j, (i * n + j) * CHANNELS
                    if 0 <= h < height and 0 <= w < width:
                        start = ((image * height + h) * width + w) * channels + low
                        copy_channels(flat, start, tile, at, count)
                    else:
                        for c in range(CHANNELS):
                            tile[np.uintp(at + c)] = 0
            both_sides(matrix, tile, half)
            for p in range(n * n):
                copy_channels(tile, p * CHANNELS, out, (p * tiles + t) * channels + low, count)


@njit(nogil=True, cache=True, fastmath={"contract"})
def points_to_image(points, matrix, m, before, rows, columns, first, dx):
    """Add B points Bᵀ to the tiles of dx (N, H, W, C): the transpose of image_to_points."""
    _, height, width, channels = dx.shape
    n, tiles = len(matrix), points.shape[1]
    flat, out = points.reshape(-1), dx.reshape(-1)
    tile, half = np.zeros(n * n * CHANNELS, dx.dtype), np.empty(n * n * CHANNELS, dx.dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * m - before, place % columns * m - before
        for low in range(0, channels, CHANNELS):
            count = min(CHANNELS, channels - low)
            for p in range(n * n):
                copy_channels(flat, (p * tiles + t) * channels + low, tile, p * CHANNELS, count)
            both_sides(matrix, tile, half)
            for i in range(max(0, -top), min(n, height - top)):
                for j in range(max(0, -left), min(n, width - left)):
                    at = np.uintp((i * n + j) * CHANNELS)
                    start = ((image * height + top + i) * width + left + j) * channels + low
                    to = np.uintp(start)
                    if count == CHANNELS:
                        for c in range(CHANNELS):
                            out[to + np.uintp(c)] += tile[at + np.uintp(c)]
                    else:
                        for c in range(count):
                            out[to + np.uintp(c)] += tile[at + np.uintp(c)]


@njit(nogil=True, cache=True, fastmath={"contract"})
def points_to_outputs(points, matrix, b, relu, rows, columns, first, y):
    """y (N, P, Q, K) of the tiles first, first + 1, ...: Aᵀ points A + b, and the ReLU behind."""
    _, height, width, filters = y.shape
    m, n, tiles = len(matrix), len(matrix[0]), points.shape[1]
    flat, out = points.reshape(-1), y.reshape(-1)
    tile, half = np.zeros(n * n * CHANNELS, y.dtype), np.empty(n * n * CHANNELS, y.dtype)
    bias = np.zeros(CHANNELS, y.dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * m, place % columns * m
        for low in range(0, filters, CHANNELS):
            count = min(CHANNELS, filters - low)
            copy_channels(b, low, bias, 0, count)
            for p in range(n * n):
                copy_channels(flat, (p * tiles + t) * filters + low, tile, p * CHANNELS, count)
            both_sides(matrix, tile, half)
            for i in range(min(m, height - top)):
                for j in range(min(m, width - left)):
                    at = np.uintp((i * m + j) * CHANNELS)
                    for c in range(CHANNELS):
                        z = tile[at + np.uintp(c)] + bias[c]
                        tile[at + np.uintp(c)] = z if not (relu and z <= 0) else y.dtype.type(0)
                    start = ((image * height + top + i) * width + left + j) * filters + low
                    copy_channels(tile, at, out, start, count)


@njit(nogil=True, cache=True, fastmath={"contract"})
def outputs_to_points(dy, y, matrix, relu, rows, columns, first, points, db):
    """points (n·n, tiles, K) = A dz Aᵀ, and db (K) += dz; dz is dy where y is positive."""
    _, height, width, filters = dy.shape
    n, m, tiles = len(matrix), len(matrix[0]), points.shape[1]
    flat, flat_y, out = dy.reshape(-1), y.reshape(-1), points.reshape(-1)
    tile, half = np.zeros(n * n * CHANNELS, dy.dtype), np.empty(n * n * CHANNELS, dy.dtype)
    signs, total = np.zeros(CHANNELS, dy.dtype), np.empty(CHANNELS, dy.dtype)
    for t in range(tiles):
        image, place = divmod(first + t, rows * columns)
        top, left = place // columns * m, place % columns * m
        for low in range(0, filters, CHANNELS):
            count = min(CHANNELS, filters - low)
            total[:] = 0
            for i in range(m):
                for j in range(m):
                    at = np.uintp((i * m + j) * CHANNELS)
                    if top + i >= height or left + j >= width:
                        for c in range(CHANNELS):
                            tile[at + np.uintp(c)] = 0
                        continue
                    start = ((image * height + top + i) * width + left + j) * filters + low
                    copy_channels(flat, start, tile, at, count)
                    if relu:
                        copy_channels(flat_y, start, signs, 0, count)
                        for c in range(CHANNELS):
                            dz = tile[at + np.uintp(c)]
                            tile[at + np.uintp(c)] = dz if not signs[c] <= 0 else dy.dtype.type(0)
                    for c in range(CHANNELS):
                        total[c] += tile[at + np.uintp(c)]
            for c in range(count):
                db[low + c] += total[c]
            both_sides(matrix, tile, half)
            for p in range(n * n):
                copy_channels(tile, p * CHANNELS, out, (p * tiles + t) * filters + low, count)


@njit(nogil=True, cache=True)
def space_to_depth(x, blocks, stride, before, back):
    """blocks (N, H', W', s·s·C) of x (N, H, W, C), `before` zeros around it; back: x of blocks."""
    images, height, width, channels = x.shape
    run = stride * channels
    flat, out = x.reshape(-1), blocks.reshape(-1)
    line = width * channels
    for n in range(images):
        for block_row in range(blocks.shape[1]):
            for i in range(stride):
                h = block_row * stride + i - before
                for q in range(blocks.shape[2]):
                    place = (n * blocks.shape[1] + block_row) * blocks.shape[2] + q
                    to = np.uintp((place * stride + i) * run)
                    first = q * run - before * channels
                    start = np.uintp((n * height + h) * line + first)
                    low, high = 0, 0
                    if 0 <= h < height:
                        low, high = min(run, max(0, -first)), max(0, min(run, line - first))
                    if back:
                        for e in range(low, high):
                            flat[start + np.uintp(e)] = out[to + np.uintp(e)]
                        continue
                    for e in range(low):
                        out[to + np.uintp(e)] = 0
                    for e in range(low, high):
                        out[to + np.uintp(e)] = flat[start + np.uintp(e)]
                    for e in range(max(low, high), run):
                        out[to + np.uintp(e)] = 0


# --- geometry


def tile_side(outputs: tuple[int, int], r: int) -> int:
    """Of TILES that with the fewest multiplications for outputs (P, Q); among equals the first."""

    def places(m: int) -> int:
        return math.prod(-(-side // m) * (m + r - 1) for side in outputs)

    return min(TILES[r == 5], key=places)


@cache
def transforms(m: int, r: int, dtype: Any) -> dict[str, Any]:
    """A, Aᵀ, B, Bᵀ as tuples for the loops above, and G ⊗ G (n², r²), in dtype."""
    exact = matrices(m, r)
    found: dict[str, Any] = {}
    for name in "AB":
        rows = [[np.dtype(dtype).type(float(value)) for value in row] for row in exact[name]]
        found[name] = tuple(map(tuple, rows))
        found[f"{name}t"] = tuple(zip(*rows, strict=True))
    g = np.array(exact["G"], dtype=np.float64)
    found["GG"] = np.kron(g, g).astype(dtype)
    return found


class Geometry:
    """The tiles of a convolution of one shape.

    r: side of the filter after space-to-depth; m: side of a tile's outputs.
    """

    def __init__(self, conv: Any, x_shape: Any, y_shape: Any, dtype: Any) -> None:
        stride = conv.stride
        self.stride, self.before, self.groups = stride, conv.before, conv.groups
        self.r = -(-conv.kernel_size // stride)
        self.m = tile_side(y_shape[1:3], self.r)
        self.points = (self.m + self.r - 1) ** 2
        self.rows, self.columns = (-(-side // self.m) for side in y_shape[1:3])
        self.channels = x_shape[3] * stride**2
        self.filters = y_shape[3]
        self.blocks = *(side + self.r - 1 for side in y_shape[1:3]), self.channels
        self.dtype = np.dtype(dtype)
        self.transforms = transforms(self.m, self.r, self.dtype)
        self.tile_bytes = self.points * (self.channels + self.filters) * self.dtype.itemsize
        self.u_size = self.points * self.filters * self.channels // self.groups

    def filters_of(self, w: Any, order: str, work: Any) -> Any:
        """w (K, R, S, C/groups) as (r·r, K, C') or (r·r, C', K) in `work`, stride 1."""
        s, r, k = self.stride, self.r, len(w)
        if s > 1:
            size = w.shape[1]
            whole = np.zeros((k, r * s, r * s, w.shape[3]), w.dtype)
            whole[:, :size, :size] = w
            w = whole.reshape(k, r, s, r, s, -1).transpose(0, 1, 3, 2, 4, 5)
        w = w.reshape(k, r * r, -1)
        work[...] = w.transpose((1, 0, 2) if order == "kc" else (1, 2, 0))
        return work

    def add_filters(self, found: Any, dw: Any) -> None:
        """dw (K, R, S, C/groups) += found (r·r, K, C'): the transpose of filters_of."""
        s, r, size = self.stride, self.r, dw.shape[1]
        found = found.transpose(1, 0, 2)
        if s > 1:
            found = found.reshape(len(dw), r, r, s, s, -1).transpose(0, 1, 3, 2, 4, 5)
            found = found.reshape(len(dw), r * s, r * s, -1)[:, :size, :size]
        dw += found.reshape(dw.shape)

    def group_slices(self) -> list[tuple[slice, slice]]:
        """The channels and the filters of each group."""
        c, k = self.channels // self.groups, self.filters // self.groups
        return [(slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)) for g in range(self.groups)]

    def image_parts(self, images: int) -> list[slice]:
        """All images at once; after space-to-depth a few at a time, as they are a copy."""
        count = images
        if self.stride > 1:
            size = math.prod(self.blocks) * self.dtype.itemsize
            count = max(1, 2 * SMALL_BLOCK // size)
        return [slice(i, min(i + count, images)) for i in range(0, images, count)]

    def tiles_at_once(self, images: int, wanted: int) -> int:
        """Of `images` images, whose V and M are about `wanted` bytes."""
        limit = max(1, min(max(wanted, SMALL_BLOCK), LARGE_BLOCK) // self.tile_bytes)
        return min(images * self.rows * self.columns, limit)

    def tile_parts(self, images: int, limit: int) -> list[tuple[int, int]]:
        """The tiles of `images` images in blocks of at most `limit`: first and count."""
        tiles = images * self.rows * self.columns
        parts = -(-tiles // limit)
        ends = [tiles * part // parts for part in range(parts + 1)]
        return [(start, stop - start) for start, stop in zip(ends, ends[1:], strict=False)]

    def arrays(self, *shapes: tuple[int, ...]) -> list[Any]:
        """Arrays of this thread, valid until its next call."""
        sizes = [-(-math.prod(shape) // 16) * 16 for shape in shapes]
        memory, found, start = own_array((sum(sizes),), self.dtype), [], 0
        for shape, size in zip(shapes, sizes, strict=True):
            found.append(memory[start : start + math.prod(shape)].reshape(shape))
            start += size
        return found

    def block_shape(self, images: int) -> tuple[int, ...]:
        """Of the copy that space-to-depth makes of that many images; empty for stride 1."""
        return (images, *self.blocks) if self.stride > 1 else (0,)


def winograd_forward(geometry, x, u, b, y, relu):
    """y (N, P, Q, K) of x (N, H, W, C) and u (n·n, C', K), for one thread's images."""
    g, t = geometry, geometry.transforms
    parts = g.image_parts(len(x))
    most = parts[0].stop
    wanted = g.u_size * g.dtype.itemsize // 2
    tiles = g.tiles_at_once(most, wanted)
    blocks, v_flat, m_flat = g.arrays(
        g.block_shape(most), (g.points * tiles * g.channels,), (g.points * tiles * g.filters,)
    )
    for part in parts:
        image, before = x[part], g.before
        if g.stride > 1:
            image, before = blocks[: len(image)], 0
            space_to_depth(x[part], image, g.stride, g.before, False)
        for first, count in g.tile_parts(len(image), tiles):
            v = v_flat[: g.points * count * g.channels].reshape(g.points, count, -1)
            products = m_flat[: g.points * count * g.filters].reshape(g.points, count, -1)
            where = g.rows, g.columns, first
            image_to_points(image, t["Bt"], g.m, before, *where, v)
            for c, k in g.group_slices():
                np.matmul(v[..., c], u[..., k], out=products[..., k])
            points_to_outputs(products, t["At"], b, relu, *where, y[part])


def winograd_backward(geometry, x, u, dy, y, relu, dx, dw, db):
    """dx, and what these images add to dw and db; u (n·n, K, C'); dx may be None."""
    g, t = geometry, geometry.transforms
    parts = g.image_parts(len(x))
    most = parts[0].stop
    wanted = 4 * g.u_size * g.dtype.itemsize
    tiles = g.tiles_at_once(most, wanted)
    du_shape = g.points, g.filters, g.channels // g.groups
    copies = g.block_shape(most)
    blocks, d_blocks, v_flat, z_flat, du, more = g.arrays(
        *(copies, copies if dx is not None else (0,)),
        *((g.points * tiles * g.channels,), (g.points * tiles * g.filters,)),
        *(du_shape, du_shape),
    )
    db[...] = 0
    target = du
    for part in parts:
        image, before = x[part], g.before
        d_image = None if dx is None else dx[part]
        if g.stride > 1:
            image, before = blocks[: len(image)], 0
            space_to_depth(x[part], image, g.stride, g.before, False)
            d_image = None if dx is None else d_blocks[: len(image)]
        if d_image is not None:
            d_image[...] = 0
        for first, count in g.tile_parts(len(image), tiles):
            v = v_flat[: g.points * count * g.channels].reshape(g.points, count, -1)
            z = z_flat[: g.points * count * g.filters].reshape(g.points, count, -1)
            where = g.rows, g.columns, first
            outputs_to_points(dy[part], y[part], t["A"], relu, *where, z, db)
            image_to_points(image, t["Bt"], g.m, before, *where, v)
            for c, k in g.group_slices():
                np.matmul(z[..., k].swapaxes(1, 2), v[..., c], out=target[:, k])
            if target is more:
                du += more
            target = more
            if d_image is not None:
                for c, k in g.group_slices():
                    np.matmul(z[..., k], u[:, k], out=v[..., c])
                points_to_image(v, t["B"], g.m, before, *where, d_image)
        if g.stride > 1 and dx is not None:
            dx[part] = 0  # where no window reaches
            space_to_depth(dx[part], d_image, g.stride, g.before, True)
    d_filters = np.matmul(t["GG"].T, du.reshape(g.points, -1))
    dw[...] = 0
    g.add_filters(d_filters.reshape(g.r**2, *du_shape[1:]), dw)


# --- step


class WinogradConv(Step):
    """A Conv2D on the host, and the ReLU behind it, if there is one."""

    short = "Winograd, BLAS"
    computed_by = "image_to_points, BLAS, points_to_outputs"

    @staticmethod
    def fits(conv: Any) -> bool:
        """Whether it can: 3×3 or 5×5 at stride 1 or by space-to-depth, 8 channels or more."""
        s = conv.stride
        r = -(-conv.kernel_size // s)
        if r not in (3, 5) or (s > 1 and (conv.groups > 1 or conv.kernel_size < r * s - s // 2)):
            return False
        return min(conv.in_channels * s * s, conv.out_channels) // conv.groups >= 8

    @staticmethod
    def saves_time(conv: Any) -> bool:
        """Whether the plan takes it for this layer."""
        s = conv.stride
        weights = conv.in_channels * conv.out_channels // conv.groups * conv.kernel_size**2
        least = LEAST_AFTER_S2D if s > 1 else LEAST_WEIGHTS
        return WinogradConv.fits(conv) and weights >= least

    def geometry(self, x_shape: Any, y_shape: Any) -> Geometry:
        """The tiles for these shapes; kept, as they seldom change."""
        key = tuple(x_shape), tuple(y_shape)
        if getattr(self, "_key", None) != key:
            self._key = key
            self._geometry = Geometry(self.layers[0], x_shape, y_shape, self.dtype)
        return self._geometry

    def filters(self, geometry: Geometry, order: str) -> Any:
        """U = G w Gᵀ: (n·n, K, C') or (n·n, C', K)."""
        w = self.layers[0].weight.value
        k, c = len(w), geometry.channels // geometry.groups
        sides = (k, c) if order == "kc" else (c, k)
        work = self.buffer("w", (geometry.r**2, *sides))
        u = self.buffer("u", (geometry.points, *sides))
        flat = geometry.filters_of(w, order, work).reshape(geometry.r**2, -1)
        multiply(self.device, (geometry.transforms["GG"], flat, u.reshape(geometry.points, -1)))
        return u

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv = self.layers[0]
        self.x = x = self.check_input(x)
        y = self.output((x.shape[0], *conv.output_shape(x.shape[1:])))
        geometry = self.geometry(x.shape, y.shape)
        u, b, relu = self.filters(geometry, "ck"), conv.bias.value, len(self.layers) == 2

        def work(_, part):
            winograd_forward(geometry, x[part], u, b, y[part], relu)

        in_parallel(work, shares(len(x)))
        return y

    def backward(self, dy):
        """dy (N, P, Q, K) -> dx (N, H, W, C), or None if `input_gradient` is switched off."""
        conv = self.layers[0]
        dy, x, y = self.check_gradient(dy), self.x, self.y
        geometry = self.geometry(x.shape, y.shape)
        dx, dw, db = self.input_gradient(x.shape), conv.weight.grad, conv.bias.grad
        u, relu = self.filters(geometry, "kc") if dx is not None else None, len(self.layers) == 2
        parts = shares(len(x))
        # The first thread adds to dw and db themselves.
        sums = [(dw, db)] + [
            (self.buffer(f"dw {number}", dw.shape), self.buffer(f"db {number}", db.shape))
            for number in range(1, len(parts))
        ]

        def work(number, part):
            dx_part = None if dx is None else dx[part]
            arrays = x[part], u, dy[part], y[part], relu, dx_part
            winograd_backward(geometry, *arrays, *sums[number])

        in_parallel(work, parts)
        for more_dw, more_db in sums[1:]:
            dw += more_dw
            db += more_db
        return dx
