"""Tensor-core instructions: a warp multiplies small matrices, of which each lane holds a fragment.

A *fragment* is the part of a matrix that one lane holds. The instruction fixes which elements these
are; lane l is written as two numbers, g = l // 4 and t = l % 4.

    mma_tf32(a, i, b, j, sums, k)       sums += a · b, (16, 8) += (16, 8) · (8, 8)
    mma_bf16(a, i, b, j, sums, k)       sums += a · b, (16, 8) += (16, 16) · (16, 8)

PTX ISA, "Matrix Fragments for mma.m16n8k8" (.tf32) and "... mma.m16n8k16" (.bf16). The operands
are uint32 words a[i : i + 4] and b[j : j + 2], the sums float32 sums[k : k + 4], of local arrays. A
word is one TF32 number, whose lower 13 bits are ignored, or two bfloat16, the lower half first.

                word    TF32: row, column           bfloat16: row, columns
        a       0       g,      t                   g,      2t,     2t + 1
                1       g + 8,  t                   g + 8,  2t,     2t + 1
                2       g,      t + 4               g,      2t + 8, 2t + 9
                3       g + 8,  t + 4               g + 8,  2t + 8, 2t + 9

                        TF32: row, column           bfloat16: rows, column
        b       0       t,      g                   2t,     2t + 1, g
                1       t + 4,  g                   2t + 8, 2t + 9, g

        sums    0, 1    g,      2t, 2t + 1          the same
                2, 3    g + 8,  2t, 2t + 1

    ldmatrix_x4(target, to, tiles, at)
    ldmatrix_x4_trans(target, to, tiles, at)

PTX ISA, "ldmatrix", .x4: four matrices of 8 rows of 16 bytes from shared memory `tiles` (uint32) to
words target[to : to + 4] of a local array. Lane l passes where row l % 8 of matrix l // 8 begins:
`at`, a multiple of 4. Word m of the target belongs to matrix m:

        ldmatrix_x4             row g, word t: one TF32, or bfloat16 columns 2t and 2t + 1
        ldmatrix_x4_trans       bfloat16 rows 2t and 2t + 1 of column g: the matrix transposed

    cvt_rna_tf32(words, i)              words[i], the bits of a float32, rounded to TF32

("cvt.rna.tf32"); without it the tensor core truncates the lower bits.

    operand(value, array)               `value`, a float32, rounded to an element of `array`:
                                        TF32 in float32, or bfloat16 bits

All 32 lanes execute these calls together, except the last two. In the simulator each lane passes
its part and waits; with the last one NumPy does the work of the whole warp. There the products are
added in float64 and rounded once; a tensor core adds in an order and with roundings of its own,
which NVIDIA does not describe.

This file bypasses `layers/device.py`: instructions are written with `numba.cuda.extending`.
"""

import numpy as np
from numba import types

from layers.device import SIMULATED

if SIMULATED:
    from layers.fast.bfloat16 import narrow, tf32_bits
    from layers.simulator import register_intrinsics, running

    register_intrinsics(__name__)

    LANES = 8, 4
    """g and t."""

    def _product(parts, a, b):
        """Add a · b to the lanes' sums, in place."""
        sums = [part[2] for part in parts]
        # Of a lane's four sums, the first two are of row g, the others of row g + 8.
        c = np.concatenate(sums).reshape(*LANES, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)
        c = (c + np.matmul(a, b, dtype=np.float64)).astype(np.float32)
        c = c.reshape(2, *LANES, 2).transpose(1, 2, 0, 3).reshape(32, 4)
        for lane, row in zip(sums, c, strict=True):
            lane[:] = row

    def _product_tf32(parts):
        words = (np.concatenate([part[i] for part in parts]) & 0xFFFFE000 for i in (0, 1))
        a, b = (operand.view(np.float32) for operand in words)
        a = a.reshape(*LANES, 2, 2).transpose(3, 0, 2, 1).reshape(16, 8)
        b = b.reshape(*LANES, 2).transpose(2, 1, 0).reshape(8, 8)
        _product(parts, a, b)
        return parts

    def _from_bf16(words):
        return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)

    def _product_bf16(parts):
        a, b = (_from_bf16(np.concatenate([part[i] for part in parts])) for i in (0, 1))
        a, b = a.reshape(*LANES, 2, 2, 2), b.reshape(*LANES, 2, 2)
        a = a.transpose(3, 0, 2, 1, 4).reshape(16, 16)
        b = b.transpose(2, 1, 3, 0).reshape(16, 8)
        _product(parts, a, b)
        return parts

    def mma_tf32(a, i, b, j, sums, k):
        part = a.memory(i, 4), b.memory(j, 2), sums.memory(k, 4)
        running().collective("mma_tf32", part, _product_tf32)

    def mma_bf16(a, i, b, j, sums, k):
        part = a.memory(i, 4), b.memory(j, 2), sums.memory(k, 4)
        running().collective("mma_bf16", part, _product_bf16)

    def _fragments(rows):
        return list(np.concatenate(rows).reshape(4, 8, 4).transpose(1, 2, 0).reshape(32, 4))

    def _fragments_trans(rows):
        halves = np.concatenate(rows).view(np.uint16).reshape(4, 4, 2, 8)
        words = np.ascontiguousarray(halves.transpose(3, 1, 0, 2)).view(np.uint32)
        return list(words.reshape(32, 4))

    def _row(tiles, at, call):
        if tiles.space != "shared":
            raise TypeError(f"{call} of {tiles.name}: that is {tiles.space}, not shared memory")
        tiles.check_aligned(at, f"{call} from")
        return tiles.read(at, 4)

    def ldmatrix_x4(target, to, tiles, at):
        row = _row(tiles, at, "ldmatrix_x4")
        target.write(to, running().collective("ldmatrix_x4", row, _fragments))

    def ldmatrix_x4_trans(target, to, tiles, at):
        row = _row(tiles, at, "ldmatrix_x4_trans")
        target.write(to, running().collective("ldmatrix_x4_trans", row, _fragments_trans))

    def cvt_rna_tf32(words, i):
        word = words.memory(i, 1)
        word[0] = tf32_bits(int(word[0]))

    def operand(value, array):
        if array.dtype == np.uint16:
            return narrow(value, array)
        return np.uint32(tf32_bits(int(np.float32(value).view(np.uint32)))).view(np.float32)

else:
    from llvmlite import ir
    from numba.core.errors import TypingError
    from numba.cuda.extending import intrinsic

    from layers.fast.conv.ptx import (
        FLOAT,
        SHARED,
        WORD,
        element_pointer,
        in_space,
        instruction,
        two_bfloat16,
    )

    def _words(context, builder, signature, arguments, number, count):
        """Pointers to `count` elements of an array argument, from its index on."""
        first = element_pointer(context, builder, signature, arguments, number)
        return [builder.gep(first, [WORD(i)]) for i in range(count)]

    def _mma(shape, kind, a, b, sums):
        if (a.dtype, b.dtype, sums.dtype) != (types.uint32, types.uint32, types.float32):
            raise TypingError(
                f"an mma takes words of uint32 and sums of float32, "
                f"not {a.dtype}, {b.dtype} and {sums.dtype}"
            )
        index = types.int64
        signature = types.void(a, index, b, index, sums, index)
        text = (
            f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )

        def emit(context, builder, signature, arguments):
            def words(number, count):
                return _words(context, builder, signature, arguments, number, count)

            places = words(4, 4)
            operands = [builder.load(word) for word in (*words(0, 4), *words(2, 2), *places)]
            constraints = "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"
            result = instruction(builder, text, [FLOAT] * 4, operands, constraints, False, True)
            for i, place in enumerate(places):
                builder.store(builder.extract_value(result, i), place)
            return context.get_dummy_value()

        return signature, emit

    @intrinsic
    def mma_tf32(typingctx, a, i, b, j, sums, k):
        """(16, 8) += (16, 8) · (8, 8) in TF32 by one warp."""
        return _mma("m16n8k8", "tf32", a, b, sums)

    @intrinsic
    def mma_bf16(typingctx, a, i, b, j, sums, k):
        """(16, 8) += (16, 16) · (16, 8) in bfloat16 by one warp."""
        return _mma("m16n8k16", "bf16", a, b, sums)

    def _load(trans, target, tiles):
        signature = types.void(target, types.int64, tiles, types.int64)
        text = f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4];"

        def emit(context, builder, signature, arguments):
            row = element_pointer(context, builder, signature, arguments, 2)
            at = builder.ptrtoint(in_space(builder, row, SHARED), WORD)
            result = instruction(builder, text, [WORD] * 4, [at], "=r,=r,=r,=r,r", warp=True)
            for i, place in enumerate(_words(context, builder, signature, arguments, 0, 4)):
                builder.store(builder.extract_value(result, i), place)
            return context.get_dummy_value()

        return signature, emit

    @intrinsic
    def ldmatrix_x4(typingctx, target, to, tiles, at):
        """Load four 8 × 8 matrices of 16-bit elements, or 8 × 4 of 32 bits, by one warp."""
        return _load("", target, tiles)

    @intrinsic
    def ldmatrix_x4_trans(typingctx, target, to, tiles, at):
        """Load four 8 × 8 matrices of 16-bit elements, transposed, by one warp."""
        return _load(".trans", target, tiles)

    @intrinsic
    def cvt_rna_tf32(typingctx, words, i):
        """Round words[i], the bits of a float32, to TF32."""

        def emit(context, builder, signature, arguments):
            place = element_pointer(context, builder, signature, arguments, 0)
            value = builder.bitcast(builder.load(place), FLOAT)
            text = "cvt.rna.tf32.f32 $0, $1;"
            builder.store(instruction(builder, text, WORD, [value], "=r,f", memory=False), place)
            return context.get_dummy_value()

        return types.void(words, types.int64), emit

    @intrinsic
    def operand(typingctx, value, array):
        """Round a float32 to an element of `array`, TF32 or bfloat16 bits."""
        bf16 = array.dtype == types.uint16

        def emit(context, builder, signature, arguments):
            number = arguments[0]
            if bf16:
                return builder.trunc(two_bfloat16(builder, number, FLOAT(0)), ir.IntType(16))
            text = "cvt.rna.tf32.f32 $0, $1;"
            word = instruction(builder, text, WORD, [number], "=r,f", memory=False)
            return builder.bitcast(word, FLOAT)

        return (types.uint16 if bf16 else types.float32)(types.float32, array), emit
