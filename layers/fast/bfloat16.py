"""bfloat16 and TF32: float32 with fewer fraction bits, for the products of tensor cores.

    float32     sign, 8 bits of exponent, 23 of fraction
    TF32        sign, 8 bits of exponent, 10 of fraction; the other 13 bits of the word are 0
    bfloat16    sign, 8 bits of exponent,  7 of fraction: the upper half of the word

Both have the range of float32 with a larger step, 2⁻¹⁰ and 2⁻⁷ of a number instead of 2⁻²³. NumPy
has no such types. Here a bfloat16 is the uint16 of its 16 bits, or a float32 with that value; a
TF32 number is a float32.

Rounding is to nearest, in integer arithmetic. The bits of a float32, read as an integer, grow with
its magnitude: half a step is added and the rest cut off. If the fraction overflows, the exponent
grows by one, and the largest number becomes infinity. Ties go to even in bfloat16 and away from
zero in TF32, as with a GPU's `cvt.rn.bf16` and `cvt.rna.tf32` (PTX ISA, "cvt"). A NaN becomes a
quiet NaN; in bfloat16 there is only one.

On the host whole arrays are rounded, or converted to bits and back. In a kernel

    widen(value)            the float32 of bfloat16 bits; a float unchanged
    narrow(value, array)    the bfloat16 bits of a float, if `array` is of uint16; else unchanged
    nearest_tf32(value)     a float32 rounded to TF32
    wide_type(array)        the dtype of widened elements: float32 for uint16, else `array`'s

let one source serve arrays of float32, float64 and bfloat16. The bits are the same on the host,
simulated and on a GPU.

This file imports `numba.cuda.extending`, past `layers/device.py`, to define instructions.
"""

import numpy as np
from numba import njit, prange, types

from layers.device import SIMULATED

NAN = 0x7FFF
"""The only NaN in bfloat16."""


def bf16_bits(word):
    """The bfloat16 bits of a float32; both as integers."""
    if word & 0x7FFFFFFF > 0x7F800000:
        return NAN
    # Half a step less one, and one more if the last remaining bit is set: ties go to even.
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16


def tf32_bits(word):
    """The bits of a float32 rounded to TF32; both as integers."""
    if word & 0x7FFFFFFF > 0x7F800000:
        return (word | 0x00400000) & 0xFFFFE000
    return (word + 0x1000) & 0xFFFFE000


# --- host

_bf16 = njit(bf16_bits, inline="always")
_tf32 = njit(tf32_bits, inline="always")


@njit(parallel=True, cache=True)
def _to_bits(words, bits):
    for i in prange(words.size):
        bits[i] = _bf16(words[i])


@njit(parallel=True, cache=True)
def _from_bits(bits, words):
    for i in prange(bits.size):
        words[i] = bits[i] << 16


@njit(parallel=True, cache=True)
def _round_bf16(words, rounded):
    for i in prange(words.size):
        rounded[i] = _bf16(words[i]) << 16


@njit(parallel=True, cache=True)
def _round_tf32(words, rounded):
    for i in prange(words.size):
        rounded[i] = _tf32(words[i])


def _flat(array, dtype, word):
    """The elements of `array` in a row, as unsigned integers; ValueError if not of `dtype`."""
    if array.dtype != dtype:
        raise ValueError(f"expected an array of {np.dtype(dtype)}, not of {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(word)


def _flat_out(out, x):
    if out.shape != x.shape or not out.flags.c_contiguous:
        raise ValueError(f"out {out.shape} must be contiguous and have the shape of x {x.shape}")
    return _flat(out, np.float32, np.uint32)


def to_bits(x: np.ndarray) -> np.ndarray:
    """The bfloat16 bits (uint16) of `x` (float32), in its shape; rounded.

    Raises ValueError if x is not of float32.
    """
    bits = np.empty(x.shape, np.uint16)
    _to_bits(_flat(x, np.float32, np.uint32), bits.reshape(-1))
    return bits


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers that have these bfloat16 bits (uint16), in their shape; exact.

    Raises ValueError if bits are not of uint16.
    """
    x = np.empty(bits.shape, np.float32)
    _from_bits(_flat(bits, np.uint16, np.uint16), x.reshape(-1).view(np.uint32))
    return x


def round_bf16(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16, in `out`, which is returned and may be x itself.

    x, out: float32 of one shape, out contiguous; ValueError if not.
    """
    _round_bf16(_flat(x, np.float32, np.uint32), _flat_out(out, x))
    return out


def round_tf32(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """x rounded to TF32, in `out`, which is returned and may be x itself.

    x, out: float32 of one shape, out contiguous; ValueError if not.
    """
    _round_tf32(_flat(x, np.float32, np.uint32), _flat_out(out, x))
    return out


# --- kernels

if SIMULATED:

    def widen(value):
        if isinstance(value, np.uint16):
            return np.uint32(int(value) << 16).view(np.float32)
        return value

    def narrow(value, array):
        if array.dtype == np.uint16:
            return np.uint16(bf16_bits(int(np.float32(value).view(np.uint32))))
        return value

    def nearest_tf32(value):
        return np.uint32(tf32_bits(int(np.float32(value).view(np.uint32)))).view(np.float32)

    def wide_type(array):
        return np.dtype(np.float32) if array.dtype == np.uint16 else array.dtype

else:
    # The same arithmetic as LLVM instructions: without a GPU Numba compiles no device function that
    # a kernel calls only for some types of its arguments.
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

    def _emit_tf32(context, builder, signature, arguments):
        value = context.cast(builder, arguments[0], signature.args[0], types.float32)
        word = builder.bitcast(value, WORD)
        is_nan = builder.fcmp_unordered("uno", value, value)
        quiet = builder.or_(word, WORD(0x00400000))
        word = builder.select(is_nan, quiet, builder.add(word, WORD(0x1000)))
        return builder.bitcast(builder.and_(word, WORD(0xFFFFE000)), FLOAT)

    def _emit_unchanged(context, builder, signature, arguments):
        return arguments[0]

    def _emit_nothing(context, builder, signature, arguments):
        return context.get_dummy_value()

    @intrinsic
    def widen(typingctx, value):
        """The float32 of bfloat16 bits; a float as it is."""
        if value == types.uint16:
            return types.float32(value), _emit_widen
        return value(value), _emit_unchanged

    @intrinsic
    def narrow(typingctx, value, array):
        """The bfloat16 bits of a float, if `array` is of uint16; else the float as it is."""
        if array.dtype == types.uint16:
            return types.uint16(value, array), _emit_narrow
        return value(value, array), _emit_unchanged

    @intrinsic
    def nearest_tf32(typingctx, value):
        """A float32 rounded to TF32; ties go away from zero."""
        return types.float32(value), _emit_tf32

    @intrinsic
    def wide_type(typingctx, array):
        """float32 for an array of bfloat16 bits; else the dtype of its floats."""
        number = types.float32 if array.dtype == types.uint16 else array.dtype
        return types.DType(number)(array), _emit_nothing
