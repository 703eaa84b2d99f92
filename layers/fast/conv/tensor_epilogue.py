"""The epilogue of a tensor-core convolution: bias, ReLU, mask, rounding, and stores of the sums."""

from numba import float32, int32

from layers.device import cuda
from layers.fast.bfloat16 import nearest_tf32, widen
from layers.fast.conv.ptx import load_vec8, store_scalar, store_vec8

BIAS, RELU, MASK, ROUND = 1, 2, 4, 8
"""What the epilogue does before it stores the sums, added up; ROUND: to TF32."""


@cuda.jit(device=True, inline="always")
def store_sums(sums, b, mask, y, row, column, sizes):
    """A thread's sums are eight neighbouring filters, from `column` on, of the pixels row, row + 8,
    ..., row + 56. Two pixels are stored in each round, then the other sums move up: the compiler
    would not unroll a loop of this length, and an index that is not a constant would move the
    sums from registers to memory."""
    rows, columns, row_stride, first, epilogue = sizes
    bias = cuda.local.array(8, float32)
    for j in range(8):
        has_bias = epilogue & BIAS and column + j < columns
        bias[j] = b[first + column + j] if has_bias else float32(0)
    filters_left = int32(columns - column)
    vectorized = filters_left >= 8 and row_stride % 8 == 0 and first % 8 == 0
    offset = int32(row * row_stride + first + column)
    step = int32(8 * row_stride)
    rows_left = int32(min(rows - row, 64))
    while rows_left > 0:
        store_row(sums, 0, bias, mask, y, offset, filters_left, vectorized, epilogue)
        second = filters_left if rows_left > 8 else 0
        store_row(sums, 2, bias, mask, y, offset + step, second, vectorized, epilogue)
        offset, rows_left = int32(offset + 2 * step), int32(rows_left - 16)
        for i in range(48):
            sums[i] = sums[i + 16]


@cuda.jit(device=True, inline="always")
def store_row(sums, first_sum, bias, mask, y, offset, filters_left, vectorized, epilogue):
    """Eight filters of one pixel, or the first `filters_left` of them."""
    values = cuda.local.array(8, float32)
    signs = cuda.local.array(8, float32)
    zero = float32(0)
    if filters_left > 0:
        for j in range(8):
            values[j] = sums[first_sum + j % 4 * 4 + j // 4] + bias[j]
            if epilogue & RELU and values[j] <= zero:  # not "> 0": a NaN stays one
                values[j] = zero
            if epilogue & ROUND:
                values[j] = nearest_tf32(values[j])
        if vectorized:
            if epilogue & MASK:
                load_vec8(signs, 0, mask, offset)
                for j in range(8):
                    if signs[j] <= zero:
                        values[j] = zero
            store_vec8(y, offset, values, 0)
        else:
            for j in range(8):
                if j < filters_left:
                    if epilogue & MASK and widen(mask[offset + j]) <= zero:
                        values[j] = zero
                    store_scalar(y, offset + j, values, j)
