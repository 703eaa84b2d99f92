"""Convolution on the host by Winograd's algorithm: fewer multiplications (Lavin and Gray 2015).

docs/winograd.md derives it, with a worked example and its error. In one dimension m neighbouring
outputs of a filter of r weights depend on n = m + r − 1 values of x:

    y = Aᵀ[(G w) ⊙ (Bᵀ x)]        x (n), w (r), y (m);  A (n, m), G (n, r), B (n, n)

n multiplications instead of m·r. In two dimensions, with one tile of n×n values of x at a time:

    V = Bᵀ x B    U = G w Gᵀ    M = Σ_c U ⊙ V    y = Aᵀ M A

At each of the n² places the sum over channels, for all tiles, is a product (tiles, C) · (C, K).
These are small, so that BLAS would take as long to copy operands as to multiply: they are computed
by `small_products.py`. The backward pass is the transpose of each of these:

    Z = A dy Aᵀ    dV = Σ_k U ⊙ Z    dx = B dV Bᵀ, overlapping tiles added up
                   dU = Σ_tiles Z ⊙ V    dw = Gᵀ dU G

The transforms are in `winograd_transforms.py`. Tiles are taken in blocks: small, so that V and M
stay in the cache, but larger where U is large, as each block reads all of it.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from layers.fast.host.register_tiles import vectors_for
from layers.fast.host.small_products import matrix_products
from layers.fast.host.threads import in_parallel, multiply, own_array, shares
from layers.fast.host.vectors import TERMS
from layers.fast.host.winograd_matrices import matrices
from layers.fast.host.winograd_transforms import from_points, to_points
from layers.fast.step import Step

LEAST_CHANNELS = 16
"""As many as the longest vector of the transforms has numbers."""
LEAST_WEIGHTS = 15_000
"""Of a layer that the plan takes it for. With fewer, the transforms take what the products save."""
SMALL_BLOCK, LARGE_BLOCK = 2**19, 24 * 2**20
"""Bytes of V and M of a block of tiles in one thread, at least and at most."""
FORWARD_BLOCK = 2**21
"""At least in the forward pass, which reads V and M once; the backward pass reads V and Z twice."""
TILES = (4, 5), (2, 3, 4)
"""Outputs of a tile in each direction, for 3×3 and for 5×5 filters: n = 6, 7 and 6, 7, 8.

Without m = 6 for 3×3, which saves little and errs more.
"""


# --- geometry


def tile_side(outputs: tuple[int, int], r: int) -> int:
    """Of TILES that with the fewest multiplications for outputs (P, Q); among equals the first."""

    def places(m: int) -> int:
        return math.prod(-(-side // m) * (m + r - 1) for side in outputs)

    return min(TILES[r == 5], key=places)


@cache
def transforms(m: int, r: int, dtype: Any) -> dict[str, Any]:
    """A, Aᵀ, B, Bᵀ as `factors` of winograd_transforms.py, and G ⊗ G (n², r²), in dtype.

    Rows of A and of Bᵀ belong to points, in pairs ±a but for the last ones, of which, as r is odd,
    the first has only even elements and the second only odd ones.
    """
    exact, pairs = matrices(m, r), (m + r - 2) // 2
    a, g, b = (np.array(exact[name], dtype=np.float64) for name in "AGB")
    found: dict[str, Any] = {"GG": np.kron(g, g).astype(dtype)}
    for name, transposed, values in (("A", "At", a), ("Bt", "B", b.T)):
        matrix = np.zeros((TERMS, TERMS), dtype)
        matrix[: values.shape[0], : values.shape[1]] = values
        matrix[1 : 2 * pairs : 2] = matrix[: 2 * pairs : 2]  # those at a serve for −a
        found[name] = halves(matrix), 0, pairs
        found[transposed] = halves(matrix.T), pairs, 0
    return found


def halves(matrix: Any) -> Any:
    """Of even rows the even columns, of odd rows the odd ones."""
    found = np.stack([matrix[::2, ::2], matrix[1::2, 1::2]], axis=1)
    return np.ascontiguousarray(found.reshape(TERMS, TERMS // 2))


class Geometry:
    """The tiles of a convolution of one shape. m: side of a tile's outputs."""

    def __init__(self, conv: Any, x_shape: Any, y_shape: Any, dtype: Any) -> None:
        self.before, self.groups, self.r = conv.before, conv.groups, conv.kernel_size
        self.m = tile_side(y_shape[1:3], self.r)
        self.n = self.m + self.r - 1
        self.points = self.n**2
        self.rows, self.columns = (-(-side // self.m) for side in y_shape[1:3])
        self.channels, self.filters = x_shape[3], y_shape[3]
        self.c, self.k = self.channels // self.groups, self.filters // self.groups
        self.dtype = np.dtype(dtype)
        self.transforms = transforms(self.m, self.r, self.dtype)
        self.tile_bytes = self.points * (self.channels + self.filters) * self.dtype.itemsize
        self.u_size = self.points * self.filters * self.channels // self.groups

    def tiles_at_once(self, images: int, wanted: int) -> int:
        """Of `images` images, whose V and M are about `wanted` bytes."""
        limit = max(1, min(max(wanted, SMALL_BLOCK), LARGE_BLOCK) // self.tile_bytes)
        return min(images * self.rows * self.columns, limit)

    def v_and_m(self, tiles: int) -> list[tuple[int, int, int]]:
        """The shapes of V and M, or of V and Z, of so many tiles.

        Room for an odd number of them: with a power of two, the points of a tile would lie in the
        few places of the L1 cache that have the same last digits of the address.
        """
        return [(self.points, tiles | 1, numbers) for numbers in (self.channels, self.filters)]

    def tile_parts(self, images: int, limit: int) -> list[tuple[int, int]]:
        """The tiles of `images` images in blocks of at most `limit`: first and count."""
        tiles = images * self.rows * self.columns
        parts = -(-tiles // limit)
        ends = [tiles * part // parts for part in range(parts + 1)]
        return [(start, stop - start) for start, stop in zip(ends, ends[1:], strict=False)]

    def arrays(self, *shapes: tuple[int, ...]) -> list[Any]:
        """Arrays of this thread, valid until its next call."""
        sizes = [-(-math.prod(shape) // 16) * 16 for shape in shapes]
        memory, found, start = own_array((sum(sizes) + 64,), self.dtype), [], 0
        for shape, size in zip(shapes, sizes, strict=True):
            found.append(memory[start : start + math.prod(shape)].reshape(shape))
            start += size
        return found


def winograd_forward(geometry, x, u, b, y, relu):
    """y (N, P, Q, K) of x (N, H, W, C) and u (n·n, K, C/groups), for one thread's images."""
    g, t = geometry, geometry.transforms
    to_v, to_y = (t["Bt"], (g.n, g.n), g.m, g.before), (t["At"], (g.m, g.n), g.m, 0)
    tiles = g.tiles_at_once(len(x), max(FORWARD_BLOCK, g.u_size * g.dtype.itemsize // 2))
    v, products = g.arrays(*g.v_and_m(tiles))
    v_flat, m_flat = v.reshape(-1), products.reshape(-1)
    for first, count in g.tile_parts(len(x), tiles):
        where = g.rows, g.columns, first, count
        to_points(x, x, False, *to_v, *where, v, b[:0])
        matrix_products(
            (g.points, g.groups, count, g.c, g.k),
            *(v_flat, (v[0].size, g.c, g.channels, 1)),
            *(u, (g.c * g.filters, g.k, g.filters)),
            *(m_flat, (products[0].size, g.k, g.filters)),
            vectors_for(g.k, g.dtype),
        )
        from_points(products, *to_y, *where, b, relu, y)


def winograd_backward(geometry, x, u, dy, y, relu, dx, dw, db):
    """dx, and what these images add to dw and db; u (n·n, K, C/groups); dx may be None."""
    g, t = geometry, geometry.transforms
    tiles = g.tiles_at_once(len(x), 4 * g.u_size * g.dtype.itemsize)
    du_shape = g.points, g.filters, g.channels // g.groups
    v, z, du, more = g.arrays(*g.v_and_m(tiles), du_shape, du_shape)
    v_flat, z_flat = v.reshape(-1), z.reshape(-1)
    to_v, to_z = (t["Bt"], (g.n, g.n), g.m, g.before), (t["A"], (g.n, g.m), g.m, 0)
    to_dx = t["B"], (g.n, g.n), g.m, g.before
    db[...] = 0
    if dx is not None:
        dx[...] = 0
    target = du
    for first, count in g.tile_parts(len(x), tiles):
        where = g.rows, g.columns, first, count
        to_points(dy, y, relu, *to_z, *where, z, db)
        to_points(x, x, False, *to_v, *where, v, db[:0])
        matrix_products(
            (g.points, g.groups, g.k, count, g.c),
            *(z_flat, (z[0].size, g.k, 1, g.filters)),
            *(v_flat, (v[0].size, g.c, g.channels)),
            *(target.reshape(-1), (g.filters * g.c, g.k * g.c, g.c)),
            vectors_for(g.c, g.dtype),
        )
        if target is more:
            du += more
        target = more
        if dx is not None:
            matrix_products(
                (g.points, g.groups, count, g.k, g.c),
                *(z_flat, (z[0].size, g.k, g.filters, 1)),
                *(u, (g.filters * g.c, g.k * g.c, g.c)),
                *(v_flat, (v[0].size, g.c, g.channels)),
                vectors_for(g.c, g.dtype),
            )
            from_points(v, *to_dx, *where, db[:0], False, dx)
    d_filters = np.matmul(t["GG"].T, du.reshape(g.points, -1)).reshape(g.r**2, *du_shape[1:])
    dw[...] = np.moveaxis(d_filters, 0, 1).reshape(dw.shape)


# --- step


class WinogradConv(Step):
    """A Conv2D on the host, and the ReLU behind it, if there is one."""

    short = "Winograd"
    computed_by = "to_points, matrix_products, from_points"

    @staticmethod
    def fits(conv: Any) -> bool:
        """Whether it can: 3×3 or 5×5 at stride 1, 16 channels or more."""
        enough = min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        return conv.stride == 1 and conv.kernel_size in (3, 5) and enough

    @staticmethod
    def saves_time(conv: Any) -> bool:
        """Whether the plan takes it for this layer."""
        weights = conv.in_channels * conv.out_channels // conv.groups * conv.kernel_size**2
        return WinogradConv.fits(conv) and weights >= LEAST_WEIGHTS

    def geometry(self, x_shape: Any, y_shape: Any) -> Geometry:
        """The tiles for these shapes; kept, as they seldom change."""
        key = tuple(x_shape), tuple(y_shape)
        if getattr(self, "_key", None) != key:
            self._key = key
            self._geometry = Geometry(self.layers[0], x_shape, y_shape, self.dtype)
        return self._geometry

    def filters(self, geometry: Geometry, name: str, order: tuple[int, ...]) -> Any:
        """U = G w Gᵀ, flat: (n·n, K, C/groups), or (n·n, C/groups, K)."""
        w = self.layers[0].weight.value
        w = w.reshape(len(w), geometry.r**2, -1).transpose(order)
        work = self.buffer("w", w.shape)
        work[...] = w
        u = self.buffer(name, (geometry.u_size + 64,))
        out = u[: geometry.u_size].reshape(geometry.points, -1)
        multiply(self.device, (geometry.transforms["GG"], work.reshape(geometry.r**2, -1), out))
        return u

    def forward(self, x, train=True):
        """x (N, H, W, C) -> y (N, P, Q, K)."""
        conv = self.layers[0]
        self.x = x = self.check_input(x)
        y = self.output((x.shape[0], *conv.output_shape(x.shape[1:])))
        geometry = self.geometry(x.shape, y.shape)
        u = self.filters(geometry, "u", (1, 2, 0))
        b, relu = conv.bias.value, len(self.layers) == 2

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
        u, relu = self.filters(geometry, "u", (1, 0, 2)), len(self.layers) == 2
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
