"""What Numba's CUDA has no word for: moving neighbouring float32 by one instruction.

    copy4(target, to, source, at)       target[to : to + 4] = source[at : at + 4]
    copy1(target, to, source, at)       target[to] = source[at]

A thread that copies four floats one by one gives four instructions, each of which asks for 32
scattered words for its warp; as one access of 16 bytes it gives one, and the warp's 512 bytes are
whole sectors. The compiler does not join them by itself, for it cannot know that they begin at a
multiple of 16 bytes. `copy4` promises that: `to` and `at` are multiples of 4, in arrays that begin
at multiples of 16 bytes (`is_aligned` asks an array; shared memory is made with `alignment=16`).

`copy1` needs no such promise. It is a plain assignment without Numba's question whether the index
is negative, and counts from the end: in a loop of few instructions per load that question is most.

Arrays are flat and float32, in global, shared or local memory. A local array whose indices are
constants once the loops are unrolled is kept in registers, so that either function is one load, or
one store. On a GPU indices are not checked. In the simulator they are: there the same names are
plain assignments, checked and recorded like all others.

    add_outer(rows, columns, sums)      sums[8 i + j] += rows[i] · columns[j]

is here for its stand-in only: on a GPU it is 64 multiply-adds between registers; simulated one by
one they would be nearly all the time that a test takes, so NumPy does them at once.

This file reaches behind `layers/device.py`: instructions are written with `numba.cuda.extending`.
"""

import numpy as np
from numba import types

from layers.device import SIMULATED, cuda

BYTES = 16


def is_aligned(array):
    """Whether `array` (NumPy or CuPy) begins at a multiple of 16 bytes."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0] % BYTES == 0


def add_outer_loops(rows, columns, sums):
    """What `add_outer` is on a GPU, where the compiler unrolls both loops."""
    for i in range(8):
        row = rows[i]
        for j in range(8):
            sums[8 * i + j] += row * columns[j]


if SIMULATED:

    def copy4(target, to, source, at):
        if to % 4 or at % 4:
            raise ValueError(f"copy4 of {source.name}[{at}] to {target.name}[{to}]: not aligned")
        for i in range(4):
            target[to + i] = source[at + i]

    def copy1(target, to, source, at):
        target[to] = source[at]

    def add_outer(rows, columns, sums):
        sums.data += np.multiply.outer(rows.data, columns.data).ravel()

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic
    from numba.cuda.np.arrayobj import make_array

    add_outer = cuda.jit(device=True, inline="always")(add_outer_loops)

    def _copy(count, target, source):
        """The signature, and the function that writes LLVM's code, of a copy of `count` floats."""
        signature = types.void(target, types.int64, source, types.int64)

        def emit(context, builder, signature, arguments):
            floats = ir.VectorType(ir.FloatType(), count)

            def place(number):
                array = make_array(signature.args[number])(context, builder, arguments[number])
                element = builder.gep(array.data, [arguments[number + 1]])
                return builder.bitcast(element, ir.PointerType(floats))

            value = builder.load(place(2))
            value.align = 4 * count
            builder.store(value, place(0)).align = 4 * count
            return context.get_dummy_value()

        return signature, emit

    @intrinsic
    def copy4(typingctx, target, to, source, at):
        """Four floats by one instruction; `to` and `at` are multiples of 4."""
        return _copy(4, target, source)

    @intrinsic
    def copy1(typingctx, target, to, source, at):
        """One float; no index counts from the end."""
        return _copy(1, target, source)
