"""Vectors of numbers, alone and as a column, in Numba: LLVM's vector instructions by hand.

Of a loop over the channels of several pixels LLVM makes loads and stores of each sum at every step.
These operations keep them in registers: for pooling (`max_pool.py`), Winograd's transforms
(`winograd_transforms.py`) and, in a type of its own, a tile of sums (`tile.py`).
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, models, register_model

AVX512 = bool(binding.get_host_cpu_features().get("avx512vl"))
"""Whether there are 32 registers of 64 bytes."""
WIDE = 64 if AVX512 else 32
"""Bytes of a vector."""
TERMS = 8
"""Vectors of a column."""


def pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """To element `index` of an array in C order; kind: its type. Nothing checks the index."""
    assert kind.layout == "C"
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def everywhere(builder: Any, number: Any, vector: Any) -> Any:
    """A number in all lanes."""
    nothing = ir.Constant(vector, ir.Undefined)
    number = builder.insert_element(nothing, number, ir.IntType(32)(0))
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(number, nothing, first_lane)


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
