"""A tile of sums in vector registers: the inner loop of `register_tiles.py`.

    tile[i, j] += a[places[i] + at] · b[b_at + j]        i < rows, j < lanes

A run of `b` is loaded once for all rows, an element of `a` once for all lanes: for a tile of 8 rows
and 3 vectors that is 11 loads for 24 multiply-adds, so that the arithmetic takes longer than the
loads. It needs all sums in registers. Of a loop over an array of sums LLVM makes loads and stores
of each sum at every step, so the operations on a tile are written in its vector instructions here.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from layers.fast.host.vectors import AVX512, everywhere, pointer

VECTOR = 32
"""Bytes of a vector: one register with AVX, two with NEON."""
TILE = 24 if AVX512 else 12
"""Vectors of a tile: with AVX-512 there are 32 registers, else 16 or as many bytes."""
VECTORS = 2, 3, 4
"""Of a tile's row."""


def lanes(vectors: int, dtype: Any) -> int:
    """Numbers in so many vectors."""
    return vectors * VECTOR // np.dtype(dtype).itemsize


def rows(vectors: int) -> int:
    """Rows of a tile with so many vectors in a row."""
    return TILE // vectors


class Tile(types.Type):
    """Numba's type of a tile."""

    def __init__(self, number: Any, vectors: int) -> None:
        self.number, self.vectors, self.rows = number, vectors, rows(vectors)
        self.bytes = number.bitwidth // 8
        super().__init__(name=f"Tile({number}, {self.rows}, {vectors})")

    def vector(self, context: Any) -> Any:
        """LLVM's type of a vector; context: Numba's, or its data models."""
        number = context[self.number].get_value_type()
        return ir.VectorType(number, VECTOR // self.bytes)


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    """LLVM's type of a tile: its vectors, row after row."""

    def __init__(self, manager: Any, tile: Tile) -> None:
        super().__init__(
            manager, tile, ir.ArrayType(tile.vector(manager), tile.rows * tile.vectors)
        )


def vector_pointers(context: Any, builder: Any, tile: Tile, start: Any, count: int) -> list[Any]:
    """To `count` successive vectors from `start` on."""
    kind = tile.vector(context.data_model_manager).as_pointer()
    first = builder.bitcast(start, kind)
    return [builder.gep(first, [ir.IntType(64)(i)]) for i in range(count)]


@intrinsic(prefer_literal=True)
def zeros(typing: Any, vectors: Any, like: Any) -> Any:
    """A tile of zeros, a constant; like: an array of its dtype.

    vectors: how many are in a row, a number in the source or a tuple of that length.
    """
    count = len(vectors) if isinstance(vectors, types.UniTuple) else vectors.literal_value
    tile = Tile(like.dtype, count)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(vectors, like), generate


@intrinsic
def add_products(typing: Any, tile: Any, a: Any, places: Any, at: Any, b: Any, b_at: Any) -> Any:
    """The tile with a[places[i] + at] · b[b_at + j] added; places: as many as there are rows."""

    def generate(context, builder, signature, arguments):
        sums, a_array, places_array, at, b_array, b_at = arguments
        vector = tile.vector(context.data_model_manager)
        start = pointer(context, builder, b, b_array, b_at)
        run = [
            builder.load(place, align=tile.bytes)
            for place in vector_pointers(context, builder, tile, start, tile.vectors)
        ]
        for i in range(tile.rows):
            row = pointer(context, builder, places, places_array, ir.IntType(64)(i))
            place = builder.add(builder.load(row), at)
            number = builder.load(pointer(context, builder, a, a_array, place))
            number = everywhere(builder, number, vector)
            for j, vector_of_b in enumerate(run):
                k = i * tile.vectors + j
                product = builder.fmul(number, vector_of_b, flags=["contract"])
                total = builder.extract_value(sums, k)
                total = builder.fadd(total, product, flags=["contract"])
                sums = builder.insert_value(sums, total, k)
        return sums

    return tile(tile, a, places, types.intp, b, types.intp), generate


@intrinsic
def add_tile(typing: Any, tile: Any, out: Any) -> Any:
    """out[i · lanes + j] += tile[i, j]; out: one-dimensional."""

    def generate(context, builder, signature, arguments):
        sums, array = arguments
        start = pointer(context, builder, out, array, ir.IntType(64)(0))
        count = tile.rows * tile.vectors
        for k, place in enumerate(vector_pointers(context, builder, tile, start, count)):
            total = builder.load(place, align=tile.bytes)
            total = builder.fadd(total, builder.extract_value(sums, k))
            builder.store(total, place, align=tile.bytes)
        return context.get_dummy_value()

    return types.void(tile, out), generate


@intrinsic
def store_rows(typing: Any, tile: Any, out: Any, at: Any, step: Any) -> Any:
    """out[at + i · step + j] = tile[i, j]."""

    def generate(context, builder, signature, arguments):
        sums, array, at, step = arguments
        for i in range(tile.rows):
            place = builder.add(at, builder.mul(step, ir.IntType(64)(i)))
            start = pointer(context, builder, out, array, place)
            for j, place in enumerate(vector_pointers(context, builder, tile, start, tile.vectors)):
                total = builder.extract_value(sums, i * tile.vectors + j)
                builder.store(total, place, align=tile.bytes)
        return context.get_dummy_value()

    return types.void(tile, out, types.intp, types.intp), generate
