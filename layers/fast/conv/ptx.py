"""PTX instructions that Numba does not expose: 128-bit copies, cp.async, stores in bfloat16.

    copy_vec4(target, to, source, at)   target[to : to + 4] = source[at : at + 4]
    copy_scalar(target, to, source, at) target[to] = source[at]

A thread that copies four floats one by one executes four instructions, each of which requests 32
scattered words for its warp. As one access of 16 bytes it is one instruction, and the warp's 512
bytes are whole sectors. The compiler cannot join them, as it does not know that they begin at a
multiple of 16 bytes. `copy_vec4` asserts that: `to` and `at` are multiples of 4, in arrays that
begin at multiples of 16 bytes (`is_aligned` checks an array; shared memory is made with
`alignment=16`).

`copy_scalar` needs no alignment. It is a plain assignment without Numba's negative-index check,
which is most of the work in a loop of few instructions per load.

    cp_async(target, to, source, at, inside)
    cp_async_commit_group()
    cp_async_wait_group(n)

`cp_async` (PTX ISA, "cp.async") starts a copy of 16 bytes from global memory to words `to` ..
`to` + 3 of shared memory, past the registers, and does not wait for it. Where `inside` is false, 16
bytes of zeros are written and nothing is read. `cp_async_commit_group` ("cp.async.commit_group")
makes a group of the copies that this thread has started since the last group;
`cp_async_wait_group` ("cp.async.wait_group") waits until at most its `n` newest groups, a literal,
are pending. `cp_async_l1` is the same through the L1 cache ("cp.async.ca"), for what is copied
again soon. This orders a thread and its own copies: other threads may read the data only after a
barrier. No copy may be pending when the thread returns.

    store_vec8(y, at, values, first)    y[at : at + 8] = values[first : first + 8]
    store_vec4(y, at, values, first)
    store_scalar(y, at, values, i)      y[at] = values[i]

store float32 as elements of `y`: unchanged, or rounded to bfloat16 (uint16, "cvt.rn.bf16x2").

    load_vec8(values, first, x, at)     values[first : first + 8] = x[at : at + 8]
    load_vec4(values, first, x, at)
    load_vec2(values, first, x, at)

load elements of float32, or of bfloat16, as float32. (`values` and `x` or `y` may both be float64.)
All of these move up to 16 bytes by one
instruction; `at` is a multiple of the number of elements.

    store_bytes(y, at, numbers, first)  y[at : at + 4] = numbers[first : first + 4]
    load_bytes(numbers, first, x, at)   numbers[first : first + 4] = x[at : at + 4]

move four numbers below 256, int32 in `numbers`, as one word of a uint8 array.

    element(x, at)                      x[at], without the check for a negative index
    rsqrt(x), root(x)                   1 / √x and √x of a float32, good to 2 or 3 units in the last
                                        place ("rsqrt.approx", "sqrt.approx": one instruction each)

Arrays are flat. Both sides of a copy have one element type of 32 bits, in global, shared or local
memory; `cp_async` copies bytes, of elements of any type. A local array whose indices are constants
once loops are unrolled is kept in registers, so its side of a copy is free. A GPU does not check
indices. The simulator does: there these intrinsics are emulated by plain assignments, checked and
recorded like all others, and an asynchronous copy happens when it is waited for; until then its
target is poisoned.

    add_outer(rows, columns, sums)      sums[8 i + j] += rows[i] · columns[j]

is an intrinsic for the emulation only: on a GPU it is 64 multiply-adds between registers; simulated
one by one they would be most of a test's time, so NumPy does them at once.

This file bypasses `layers/device.py`: instructions are written with `numba.cuda.extending`.
"""

import sys

import numpy as np
from numba import types

from layers.device import SIMULATED, cuda
from layers.fast.bfloat16 import narrow, widen

BYTES = 16


def is_aligned(array):
    """Whether `array` (NumPy or CuPy) begins at a multiple of 16 bytes."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0] % BYTES == 0


def add_outer_loops(rows, columns, sums):
    """`add_outer` on a GPU, where the compiler unrolls both loops."""
    for i in range(8):
        row = rows[i]
        for j in range(8):
            sums[8 * i + j] += row * columns[j]


if SIMULATED:
    from layers.simulator import register_intrinsics, running

    register_intrinsics(__name__)

    def _check_types(target, source):
        if target.dtype != source.dtype:
            raise TypeError(
                f"{source.name} of {source.dtype} to {target.name} of {target.dtype}: "
                "a copy moves bits and converts nothing"
            )

    def copy_vec4(target, to, source, at):
        _check_types(target, source)
        target.check_aligned(to, "copy_vec4 to")
        source.check_aligned(at, "copy_vec4 from")
        target.write(to, source.read(at, 4))

    def copy_scalar(target, to, source, at):
        _check_types(target, source)
        target[to] = source[at]

    def cp_async(target, to, source, at, inside):
        frame = sys._getframe(1)
        place = frame.f_code, frame.f_lasti
        running().copies.begin(target, to, source, at, inside, place)

    def cp_async_l1(target, to, source, at, inside):
        frame = sys._getframe(1)
        place = frame.f_code, frame.f_lasti
        running().copies.begin(target, to, source, at, inside, place)

    def cp_async_commit_group():
        running().copies.commit()

    def cp_async_wait_group(n):
        running().copies.wait(n)

    def _check_vector(array, at, count, what):
        size = count * array.dtype.itemsize
        if size >= BYTES:
            array.check_aligned(at, what)
        elif at % count:
            raise ValueError(f"{what} {array.name}[{at}]: not at a multiple of {count} elements")

    def _store(count, name):
        def store(y, at, values, first):
            _check_vector(y, at, count, f"{name} to")
            floats = values.read(first, count)
            y.write(at, np.array([narrow(value, y) for value in floats], y.dtype))

        return store

    store_vec8, store_vec4 = _store(8, "store_vec8"), _store(4, "store_vec4")

    def store_scalar(y, at, values, i):
        y[at] = narrow(values[i], y)

    def _load(count, name):
        def load(values, first, x, at):
            _check_vector(x, at, count, f"{name} from")
            for i, element in enumerate(x.read(at, count)):
                values[first + i] = widen(element)

        return load

    load_vec8, load_vec4 = _load(8, "load_vec8"), _load(4, "load_vec4")
    load_vec2 = _load(2, "load_vec2")

    def store_bytes(y, at, numbers, first):
        _check_vector(y, at, 4, "store_bytes to")
        y.write(at, numbers.read(first, 4).astype(np.uint8))

    def load_bytes(numbers, first, x, at):
        _check_vector(x, at, 4, "load_bytes from")
        numbers.write(first, x.read(at, 4).astype(np.int32))

    def element(x, at):
        return x[at]

    def rsqrt(x):
        return np.float32(1) / np.sqrt(np.float32(x))

    def root(x):
        return np.sqrt(np.float32(x))

    def add_outer(rows, columns, sums):
        sums.data += np.multiply.outer(rows.data, columns.data).ravel()

else:
    from llvmlite import ir
    from numba.core.errors import TypingError
    from numba.cuda.extending import intrinsic
    from numba.cuda.np.arrayobj import make_array

    add_outer = cuda.jit(device=True, inline="always")(add_outer_loops)

    WORD, FLOAT = ir.IntType(32), ir.FloatType()
    GLOBAL, SHARED = 1, 3
    """LLVM's address spaces."""

    def element_pointer(context, builder, signature, arguments, number):
        """A pointer to element `arguments[number + 1]` of the array `arguments[number]`."""
        array = make_array(signature.args[number])(context, builder, arguments[number])
        return builder.gep(array.data, [arguments[number + 1]])

    def in_space(builder, pointer, space):
        """A generic pointer as one of address space `space`, to which it must point."""
        return builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, space))

    def instruction(builder, text, results, operands, constraints, memory=True, warp=False):
        """One PTX instruction as LLVM inline assembly.

        results: the type of its result, or a list of them for a structure. memory: it is not moved
        across accesses to memory. warp: all lanes execute it together.
        """
        returned = ir.LiteralStructType(results) if isinstance(results, list) else results
        kinds = ir.FunctionType(returned, [operand.type for operand in operands])
        if memory:
            constraints = ",".join(filter(None, [constraints, "~{memory}"]))
        code = ir.InlineAsm(kinds, text, constraints, side_effect=memory)
        attributes = ["nounwind"] + ["readnone"] * (not memory) + ["convergent"] * warp
        return builder.call(code, operands, attrs=attributes)

    def _copying(count):
        """The intrinsic that copies `count` words by one instruction."""

        @intrinsic
        def copy(typingctx, target, to, source, at):
            if target.dtype != source.dtype:
                raise TypingError(f"a copy of {source.dtype} to {target.dtype} converts nothing")

            def emit(context, builder, signature, arguments):
                size = source.dtype.bitwidth // 8 * count
                kind = ir.VectorType(context.get_data_type(source.dtype), count)

                def place(number):
                    element = element_pointer(context, builder, signature, arguments, number)
                    return builder.bitcast(element, ir.PointerType(kind))

                value = builder.load(place(2))
                value.align = size
                builder.store(value, place(0)).align = size
                return context.get_dummy_value()

            return types.void(target, types.int64, source, types.int64), emit

        return copy

    copy_vec4, copy_scalar = _copying(4), _copying(1)

    def _copying_async(cache):
        """The intrinsic of cp.async by way of `cache`: "cg" is L2 alone, "ca" L1 as well."""

        @intrinsic
        def copy(typingctx, target, to, source, at, inside):
            def emit(context, builder, signature, arguments):
                def place(number, space):
                    element = element_pointer(context, builder, signature, arguments, number)
                    return in_space(builder, element, space)

                to = builder.ptrtoint(place(0, SHARED), WORD)
                size = builder.select(arguments[4], WORD(BYTES), WORD(0))
                text = f"cp.async.{cache}.shared.global [$0], [$1], {BYTES}, $2;"
                operands = [to, place(2, GLOBAL), size]
                instruction(builder, text, ir.VoidType(), operands, "r,l,r")
                return context.get_dummy_value()

            return types.void(target, types.int64, source, types.int64, types.boolean), emit

        return copy

    cp_async, cp_async_l1 = _copying_async("cg"), _copying_async("ca")

    def _no_operands(text):
        """The function that emits an instruction without operands."""

        def emit(context, builder, signature, arguments):
            instruction(builder, text, ir.VoidType(), [], "")
            return context.get_dummy_value()

        return emit

    @intrinsic
    def cp_async_commit_group(typingctx):
        """Make a group of the copies started since the last group."""
        return types.void(), _no_operands("cp.async.commit_group;")

    @intrinsic
    def cp_async_wait_group(typingctx, n):
        """Wait until at most the `n` newest groups are pending; `n` is a literal."""
        if not isinstance(n, types.IntegerLiteral):
            raise TypingError("cp_async_wait_group(n): n must be a literal number")
        return types.void(n), _no_operands(f"cp.async.wait_group {n.literal_value};")

    def _values(context, builder, signature, arguments, count):
        """`count` elements of the array of argument 2, from that of argument 3 on."""
        first = element_pointer(context, builder, signature, arguments, 2)
        return [builder.load(builder.gep(first, [WORD(i)])) for i in range(count)]

    def two_bfloat16(builder, low, high):
        text = "cvt.rn.bf16x2.f32 $0, $1, $2;"
        return instruction(builder, text, WORD, [high, low], "=r,f,f", memory=False)

    def _vector(builder, words):
        vector = ir.Constant(ir.VectorType(words[0].type, len(words)), ir.Undefined)
        for i, word in enumerate(words):
            vector = builder.insert_element(vector, word, WORD(i))
        return vector

    def _storing(count):
        """The intrinsic that stores `count` elements, at once or 16 bytes at a time."""

        @intrinsic
        def store(typingctx, y, at, values, first):
            def emit(context, builder, signature, arguments):
                words = _values(context, builder, signature, arguments, count)
                if y.dtype == types.uint16:
                    pairs = zip(words[::2], words[1::2], strict=True)
                    words = [two_bfloat16(builder, *pair) for pair in pairs]
                element = element_pointer(context, builder, signature, arguments, 0)
                size = min(len(words), 2 if y.dtype == types.float64 else 4)
                align = min(BYTES, count * y.dtype.bitwidth // 8)
                kind = ir.PointerType(ir.VectorType(words[0].type, size))
                place = builder.bitcast(element, kind)
                for i in range(0, len(words), size):
                    vector = _vector(builder, words[i : i + size])
                    builder.store(vector, builder.gep(place, [WORD(i // size)])).align = align
                return context.get_dummy_value()

            return types.void(y, types.int64, values, types.int64), emit

        return store

    store_vec8, store_vec4 = _storing(8), _storing(4)

    @intrinsic
    def store_scalar(typingctx, y, at, values, i):
        """Store one float32 as an element of `y`."""
        signature = types.void(y, types.int64, values, types.int64)

        def emit(context, builder, signature, arguments):
            (value,) = _values(context, builder, signature, arguments, 1)
            if y.dtype == types.uint16:
                word = two_bfloat16(builder, value, FLOAT(0))
                value = builder.trunc(word, ir.IntType(16))
            builder.store(value, element_pointer(context, builder, signature, arguments, 0))
            return context.get_dummy_value()

        return signature, emit

    def _loading(count):
        """The intrinsic that loads `count` elements, at once or 16 bytes at a time."""

        @intrinsic
        def load(typingctx, values, first, x, at):
            def emit(context, builder, signature, arguments):
                bf16 = x.dtype == types.uint16
                number = WORD if bf16 else context.get_data_type(x.dtype)
                words = count // 2 if bf16 else count
                size = min(words, 2 if x.dtype == types.float64 else 4)
                element = element_pointer(context, builder, signature, arguments, 2)
                place = builder.bitcast(element, ir.PointerType(ir.VectorType(number, size)))
                floats = []
                for i in range(words // size):
                    vector = builder.load(builder.gep(place, [WORD(i)]))
                    vector.align = min(BYTES, count * x.dtype.bitwidth // 8)
                    for j in range(size):
                        word = builder.extract_element(vector, WORD(j))
                        if bf16:
                            upper = builder.and_(word, WORD(0xFFFF0000))
                            halves = builder.shl(word, WORD(16)), upper
                            floats += [builder.bitcast(half, FLOAT) for half in halves]
                        else:
                            floats.append(word)
                target = element_pointer(context, builder, signature, arguments, 0)
                for i, value in enumerate(floats):
                    builder.store(value, builder.gep(target, [WORD(i)]))
                return context.get_dummy_value()

            return types.void(values, types.int64, x, types.int64), emit

        return load

    load_vec8, load_vec4, load_vec2 = _loading(8), _loading(4), _loading(2)

    def _word_pointer(context, builder, signature, arguments, number):
        element = element_pointer(context, builder, signature, arguments, number)
        return builder.bitcast(element, ir.PointerType(WORD))

    @intrinsic
    def store_bytes(typingctx, y, at, numbers, first):
        """Store four int32 below 256 as bytes, at once; `at` is a multiple of 4."""

        def emit(context, builder, signature, arguments):
            word = WORD(0)
            for i, number in enumerate(_values(context, builder, signature, arguments, 4)):
                word = builder.or_(word, builder.shl(number, WORD(8 * i)))
            place = _word_pointer(context, builder, signature, arguments, 0)
            builder.store(word, place).align = 4
            return context.get_dummy_value()

        return types.void(y, types.int64, numbers, types.int64), emit

    @intrinsic
    def load_bytes(typingctx, numbers, first, x, at):
        """Load four bytes as int32, at once; `at` is a multiple of 4."""

        def emit(context, builder, signature, arguments):
            word = builder.load(_word_pointer(context, builder, signature, arguments, 2))
            word.align = 4
            target = element_pointer(context, builder, signature, arguments, 0)
            for i in range(4):
                byte = builder.and_(builder.lshr(word, WORD(8 * i)), WORD(255))
                builder.store(byte, builder.gep(target, [WORD(i)]))
            return context.get_dummy_value()

        return types.void(numbers, types.int64, x, types.int64), emit

    @intrinsic
    def element(typingctx, x, at):
        """x[at]; no index is negative."""

        def emit(context, builder, signature, arguments):
            return builder.load(element_pointer(context, builder, signature, arguments, 0))

        return x.dtype(x, types.int64), emit

    def _approximate(text):
        """The intrinsic of one instruction from a float32 to another."""

        @intrinsic
        def function(typingctx, x):
            def emit(context, builder, signature, arguments):
                return instruction(builder, text, FLOAT, arguments, "=f,f", memory=False)

            return types.float32(types.float32), emit

        return function

    rsqrt = _approximate("rsqrt.approx.f32 $0, $1;")
    root = _approximate("sqrt.approx.f32 $0, $1;")
