"""bfloat16 and TF32: float32 with fewer bits of its fraction, for the products of tensor cores.

    float32     sign, 8 bits of exponent, 23 of fraction
    TF32        sign, 8 bits of exponent, 10 of fraction; the other 13 bits of the word are 0
    bfloat16    sign, 8 bits of exponent,  7 of fraction; the upper half of the word alone

Both have the range of float32; only their steps are wider, 2⁻¹⁰ and 2⁻⁷ of a number instead of
2⁻²³. NumPy has no such types: a bfloat16 is kept as the uint16 of its 16 bits, a TF32 number as
the float32 that it also is.

Rounding is to nearest, and done in integer arithmetic: a float32's bits, read as an integer, grow
with its magnitude, so that half a step is added and the rest cut off; where the fraction
overflows, the exponent grows by one, and beyond the largest number that gives infinity. What lies
in the middle goes to the even neighbour in bfloat16, away from zero in TF32: that is what a GPU's
`cvt.rn.bf16` and `cvt.rna.tf32` do (PTX ISA, "cvt"). Every NaN becomes one quiet NaN.

On the host whole arrays are rounded, or turned into bits and back. In a kernel

    widen(value)            float32 of an element: of bfloat16 bits, or of a float as it is
    narrow(value, array)    `value` as an element of `array`: its bfloat16 bits, or as it is

let one source serve arrays of float32, of float64 and of bfloat16. All of them give the same bits.
"""

import numpy as np
from numba import njit, prange, types

from layers.device import SIMULATED

NAN = 0x7FFF
"""The bits of the NaN that every NaN becomes as a bfloat16, as on a GPU."""

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)

# --- host: arrays


@njit(inline="always")
def _bf16(word):
    if word & _MAGNITUDE > _INFINITY:
        return np.uint32(NAN)
    # Half a step less one, and one more where the step's last bit is set: ties go to even.
    return np.uint32((word + np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1))) >> 16)


@njit(inline="always")
def _tf32(word):
    if word & _MAGNITUDE > _INFINITY:
        return np.uint32(0x7FFFE000)
    return np.uint32((word + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


@njit(parallel=True, cache=True)
def _to_bits(words, bits):
    for i in prange(words.size):
        bits[i] = _bf16(words[i])


@njit(parallel=True, cache=True)
def _from_bits(bits, words):
    for i in prange(bits.size):
        words[i] = np.uint32(bits[i]) << np.uint32(16)


@njit(parallel=True, cache=True)
def _round_bf16(words, rounded):
    for i in prange(words.size):
        rounded[i] = _bf16(words[i]) << np.uint32(16)


@njit(parallel=True, cache=True)
def _round_tf32(words, rounded):
    for i in prange(words.size):
        rounded[i] = _tf32(words[i])


def _flat(array, dtype, word):
    """The elements of `array` in a row, as unsigned integers `word`; ValueError if not `dtype`."""
    if array.dtype != dtype:
        raise ValueError(f"an array of {np.dtype(dtype)} is wanted, not of {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(word)


def _flat_out(array, like):
    if array.shape != like.shape or not array.flags.c_contiguous:
        raise ValueError(f"out {array.shape} must be contiguous and of the shape {like.shape}")
    return _flat(array, np.float32, np.uint32)


def to_bits(x: np.ndarray) -> np.ndarray:
    """The bfloat16 bits (uint16) of `x` (float32, any shape), rounded to nearest, ties to even."""
    bits = np.empty(x.shape, np.uint16)
    _to_bits(_flat(x, np.float32, np.uint32), bits.reshape(-1))
    return bits


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers whose bfloat16 bits (uint16, any shape) are given; exact."""
    x = np.empty(bits.shape, np.float32)
    _from_bits(_flat(bits, np.uint16, np.uint16), x.reshape(-1).view(np.uint32))
    return x


def round_bf16(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out` = `x` (both float32, of one shape; may be the same array) rounded to bfloat16."""
    _round_bf16(_flat(x, np.float32, np.uint32), _flat_out(out, x))
    return out


def round_tf32(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out` = `x` (both float32, of one shape; may be the same array) rounded to TF32."""
    _round_tf32(_flat(x, np.float32, np.uint32), _flat_out(out, x))
    return out


# --- kernels: single elements

if SIMULATED:

    def _narrow(value):
        word = int(np.float32(value).view(np.uint32))
        if word & 0x7FFFFFFF > 0x7F800000:
            return NAN
        return (word + 0x7FFF + (word >> 16 & 1)) >> 16

    def widen(value):
        if isinstance(value, np.uint16):
            return np.uint32(int(value) << 16).view(np.float32)
        return value

    def narrow(value, array):
        return np.uint16(_narrow(value)) if array.dtype == np.uint16 else value

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    WORD, FLOAT = ir.IntType(32), ir.FloatType()

    def _emit_widen(context, builder, signature, arguments):
        word = builder.shl(builder.zext(arguments[0], WORD), WORD(16))
        return builder.bitcast(word, FLOAT)

    def _emit_narrow(context, builder, signature, arguments):
        value = context.cast(builder, arguments[0], signature.args[0], types.float32)
        word = builder.bitcast(value, WORD)
        even = builder.and_(builder.lshr(word, WORD(16)), WORD(1))
        rounded = builder.lshr(builder.add(builder.add(word, WORD(0x7FFF)), even), WORD(16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, WORD(NAN), rounded), ir.IntType(16))

    def _emit_unchanged(context, builder, signature, arguments):
        return arguments[0]

    @intrinsic
    def widen(typingctx, value):
        """The float32 of bfloat16 bits; a float as it is."""
        if value == types.uint16:
            return types.float32(value), _emit_widen
        return value(value), _emit_unchanged

    @intrinsic
    def narrow(typingctx, value, array):
        """The bfloat16 bits of a float, if `array` has such elements; else the float as it is."""
        if array.dtype == types.uint16:
            return types.uint16(value, array), _emit_narrow
        return value(value, array), _emit_unchanged
