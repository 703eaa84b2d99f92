"""A tile of sums in vector registers: the inner loop of `register_tiles.py`.

    tile[i, j] += a[places[i] + at] · b[b_at + j]        i < rows, j < lanes

A run of `b` is loaded once for all rows, an element of `a` once for all lanes: for a tile of 8 rows
and 3 vectors that is 11 loads for 24 multiply-adds, so that the arithmetic takes longer than the
loads. It needs all sums in registers. Of a loop over an array of sums LLVM makes loads and stores
of each sum at every step, so the operations on a tile are written in its vector instructions here.
"""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, models, register_model

VECTOR = 32
"""Bytes of a vector: one register with AVX, two with NEON."""
TILE = 24 if binding.get_host_cpu_features().get("avx512vl") else 12
"""Vectors of a tile: with AVX-512 there are 32 registers, else 16 or as many bytes."""
WIDE = 64 if TILE == 24 else 32
"""Bytes of the vectors of a column."""
TERMS = 8
"""Vectors of a column."""
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


def pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """To element `index` of an array in C order; kind: its type. Nothing checks the index."""
    assert kind.layout == "C"
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


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


# --- wide vectors, alone and as a column


class Vector(types.Type):
    """Numba's type of `count` wide vectors."""

    def __init__(self, number: Any, count: int) -> None:
        self.number, self.bytes, self.count = number, number.bitwidth // 8, count
        super().__init__(name=f"Vector({number}, {count})")

    def vector(self, context: Any) -> Any:
        """LLVM's type of one of them."""
        number = context[self.number].get_value_type()
        return ir.VectorType(number, WIDE // self.bytes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """LLVM's type of a vector, or of a column of them."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        kind = vector.vector(manager)
        super().__init__(manager, vector, kind if vector.count == 1 else ir.ArrayType(kind, TERMS))


def vector_pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """To the vector at array[place]; kind: the array's type."""
    vector = Vector(kind.dtype, 1).vector(context.data_model_manager)
    return builder.bitcast(pointer(context, builder, kind, array, place), vector.as_pointer())


def everywhere(builder: Any, number: Any, vector: Any) -> Any:
    """A number in all lanes."""
    nothing = ir.Constant(vector, ir.Undefined)
    number = builder.insert_element(nothing, number, ir.IntType(32)(0))
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(number, nothing, first_lane)


@intrinsic
def load(typing: Any, array: Any, place: Any) -> Any:
    """The vector array[place], array[place + 1], ..."""
    vector = Vector(array.dtype, 1)

    def generate(context, builder, signature, arguments):
        return builder.load(vector_pointer(context, builder, array, *arguments), align=vector.bytes)

    return vector(array, types.intp), generate


@intrinsic
def store(typing: Any, vector: Any, array: Any, place: Any) -> Any:
    """array[place], array[place + 1], ... = the vector."""

    def generate(context, builder, signature, arguments):
        target = pointer(context, builder, array, *arguments[1:])
        target = builder.bitcast(target, arguments[0].type.as_pointer())
        builder.store(arguments[0], target, align=vector.bytes)
        return context.get_dummy_value()

    return types.void(vector, array, types.intp), generate


@intrinsic
def prefetch(typing: Any, array: Any, place: Any) -> Any:
    """Begin to fetch the cache line of array[place], which is to be written."""

    def generate(context, builder, signature, arguments):
        start = pointer(context, builder, array, *arguments)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte] + 3 * [number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [builder.bitcast(start, byte), number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def add(typing: Any, one: Any, other: Any) -> Any:
    """The sum of two vectors."""

    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return one(one, other), generate


@intrinsic
def subtract(typing: Any, one: Any, other: Any) -> Any:
    """The difference of two vectors."""

    def generate(context, builder, signature, arguments):
        return builder.fsub(*arguments)

    return one(one, other), generate


@intrinsic
def where_positive(typing: Any, vector: Any, signs: Any) -> Any:
    """The vector where signs is positive or NaN, else 0."""

    def generate(context, builder, signature, arguments):
        value, sign = arguments
        zero = ir.Constant(value.type, None)
        return builder.select(builder.fcmp_unordered(">", sign, zero), value, zero)

    return vector(vector, signs), generate


# --- vectors of places: as many int32 as a wide vector has numbers


class Places(types.Type):
    """Numba's type of a place for each number of a wide vector."""

    def __init__(self, number: Any) -> None:
        self.number, self.bytes, self.lanes = number, 4, 8 * WIDE // number.bitwidth
        super().__init__(name=f"Places({number})")


@register_model(Places)
class PlacesModel(models.PrimitiveModel):
    """LLVM's type of them."""

    def __init__(self, manager: Any, places: Places) -> None:
        super().__init__(manager, places, ir.VectorType(ir.IntType(32), places.lanes))


@intrinsic
def all_at(typing: Any, place: Any, like: Any) -> Any:
    """A place for each number of the vector `like`, all the same."""
    places = Places(like.number)

    def generate(context, builder, signature, arguments):
        place = builder.trunc(arguments[0], ir.IntType(32))
        return everywhere(builder, place, context.get_value_type(places))

    return places(types.intp, like), generate


@intrinsic
def larger(typing: Any, best: Any, places: Any, value: Any, place: Any) -> Any:
    """best and places, but value and its place where it is larger than best, or a NaN."""

    def generate(context, builder, signature, arguments):
        best, places, value, place = arguments
        wins = builder.or_(
            builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value)
        )
        at = everywhere(builder, builder.trunc(place, ir.IntType(32)), places.type)
        found = builder.select(wins, value, best), builder.select(wins, at, places)
        return context.make_tuple(builder, signature.return_type, found)

    return types.Tuple([best, places])(best, places, value, types.intp), generate


# --- columns


@intrinsic
def load_column(typing: Any, array: Any, start: Any, step: Any, count: Any) -> Any:
    """The vectors at start + k·step for k < count, and the last of them again up to TERMS."""
    column = Vector(array.dtype, TERMS)

    def generate(context, builder, signature, arguments):
        source, start, step, count = arguments
        last = builder.sub(count, ir.IntType(64)(1))
        found = ir.Constant(context.get_value_type(column), ir.Undefined)
        for k in range(TERMS):
            number = ir.IntType(64)(k)
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            place = builder.add(start, builder.mul(number, step))
            place = vector_pointer(context, builder, array, source, place)
            found = builder.insert_value(found, builder.load(place, align=column.bytes), k)
        return found

    return column(array, types.intp, types.intp, types.intp), generate


@intrinsic
def mixed(typing: Any, column: Any, pairs: Any) -> Any:
    """The column with the sum and the difference of two neighbours in place of the first pairs."""

    def generate(context, builder, signature, arguments):
        values, count = arguments
        for k in range(0, TERMS, 2):
            two = [builder.extract_value(values, k + i) for i in range(2)]
            mix = builder.icmp_signed("<", ir.IntType(64)(k // 2), count)
            for i, found in enumerate((builder.fadd(*two), builder.fsub(*two))):
                found = builder.select(mix, found, two[i])
                values = builder.insert_value(values, found, k + i)
        return values

    return column(column, types.intp), generate


@intrinsic(prefer_literal=True)
def half_sum(typing: Any, column: Any, factors: Any, at: Any, odd: Any) -> Any:
    """The vector Σ_k factors[at + k] · column[2k + odd] for k < TERMS / 2; odd: 0 or 1."""
    found, first = Vector(column.number, 1), odd.literal_value

    def generate(context, builder, signature, arguments):
        values, factor_array, at, _ = arguments
        start = pointer(context, builder, factors, factor_array, at)
        total = None
        for k in range(TERMS // 2):
            factor = builder.load(builder.gep(start, [ir.IntType(64)(k)]))
            vector = builder.extract_value(values, 2 * k + first)
            term = builder.fmul(
                everywhere(builder, factor, vector.type), vector, flags=["contract"]
            )
            total = builder.fadd(total, term, flags=["contract"]) if k else term
        return total

    return found(column, factors, types.intp, odd), generate
