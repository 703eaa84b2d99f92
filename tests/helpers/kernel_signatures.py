"""With which arguments each kernel is compiled, and for which GPUs, where there is none.

A kernel's argument types are those with which the layers launch it; `test_kernels_compile.py`
compares them with real launches.
"""

from numba import types

ARCHITECTURES = ((7, 5), (8, 0), (9, 0))
BLACKWELL = (12, 0)
"""For this one the compiler unrolls other loops. That once cost the kernels for tensor cores their
registers, so they are compiled for it as well."""

NUMBERS = {"float32": types.float32, "float64": types.float64, "bfloat16": types.uint16}
"""What activations are stored as."""

TENSOR_KERNELS = {
    kind: [
        f"layers.fast.conv.{module}_{tile}_{kind}_kernel"
        for module in ("tensor_core.tensor_forward", "tensor_gradients.tensor_filter")
        for tile in ("128x128", "128x64")
    ]
    for kind in ("tf32", "bf16")
}
"""The kernels that multiply on tensor cores."""

OLDEST: dict[str, tuple[int, int]] = dict.fromkeys(
    [
        *(name for names in TENSOR_KERNELS.values() for name in names),
        "layers.fast.conv.space_to_depth.filters_to_s2d_kernel",
        "layers.fast.conv.space_to_depth.flipped_filters_s2d_kernel",
    ],
    (8, 0),
)
"""Kernels that need a newer architecture than the oldest one, and which."""


def architectures_of(name, dtype):
    """Those for which this kernel is compiled with activations of `dtype`: all that launch it."""
    oldest = OLDEST.get(name, (8, 0) if dtype == "bfloat16" else ARCHITECTURES[0])
    newest = [BLACKWELL] if ".tensor_" in name else []
    return [a for a in ARCHITECTURES if a >= oldest] + newest


def tensor_signatures(stored):
    """The argument types of the tensor-core kernels, for float32 or bfloat16 (uint16)."""
    integer, number = types.int64, types.float32
    values, numbers, flat, flat_numbers = (
        types.Array(*array, "C") for array in ((stored, 4), (number, 4), (stored, 1), (number, 1))
    )
    bf16 = stored == types.uint16
    forward = (flat, flat, flat_numbers, flat, flat, *(integer,) * 11)
    filter_gradient = (flat, flat, flat_numbers, *(integer,) * 15)
    only_float32 = {
        "layers.fast.conv.space_to_depth.filters_from_s2d_kernel": (numbers, numbers, integer),
    }
    return {
        **{
            name: forward if ".tensor_core." in name else filter_gradient
            for name in TENSOR_KERNELS["bf16" if bf16 else "tf32"]
        },
        "layers.fast.conv.space_to_depth.image_to_s2d_kernel": (values, values, *(integer,) * 3),
        "layers.fast.conv.space_to_depth.filters_to_s2d_kernel": (numbers, values, integer),
        "layers.fast.conv.space_to_depth.flipped_filters_s2d_kernel": (
            *(numbers, values), *(integer,) * 2,
        ),
        "layers.fast.conv.space_to_depth.image_from_s2d_kernel": (
            *(values,) * 3, *(integer,) * 3, types.boolean,
        ),
        **({} if bf16 else only_float32),
    }  # fmt: skip


def signatures(stored):
    """The argument types of each kernel as the layers launch it, with activations of `stored`.

    A kernel that does not know `stored` is left out, and one that no activations go through is not
    given twice: float32 has it already.
    """
    integer, key = types.int64, types.uint64
    bf16 = stored == types.uint16
    number = types.float32 if bf16 else stored

    def array(ndim, dtype=number):
        return types.Array(dtype, ndim, "C")

    def values(ndim):
        return array(ndim, stored)

    keys, place = array(1, key), array(4, types.uint8)
    winner, labels, draw = array(4, types.int32), array(1, types.int64), array(1, types.int32)
    geometry = (integer,) * 3
    only_float32 = {}
    if stored == types.float32:
        forward = (array(1),) * 4 + (integer,) * 11
        filter_gradient = (array(1),) * 3 + (integer,) * 11
        only_float32 = {
            **tensor_signatures(stored),
            "layers.fast.conv.tiled.tiled_forward_vectorized_kernel": forward,
            "layers.fast.conv.tiled.tiled_forward_scalar_kernel": forward,
            "layers.fast.conv.tiled_gradients.flip_filters_kernel": (array(4), array(4), integer),
            "layers.fast.conv.tiled_gradients.tiled_filter_vectorized_kernel": filter_gradient,
            "layers.fast.conv.tiled_gradients.tiled_filter_scalar_kernel": filter_gradient,
        }
    fast = {
        "layers.fast.bias_relu.bias_kernel": (array(1), array(1), values(1)),
        "layers.fast.bias_relu.bias_relu_kernel": (array(1), array(1), values(1)),
        "layers.fast.bias_relu.bias_relu_dropout_kernel": (
            *(array(1), array(1), values(1)),
            *(number, key, keys),
        ),
        "layers.fast.bias_relu.masked_gradient_kernel": (
            *(*(values(2),) * 3, array(2)),
            *(integer, number),
        ),
        "layers.fast.lrn.lrn_rows_forward_kernel": (
            *(values(1), values(1), integer, integer),
            *(*(number,) * 3, integer),
        ),
        "layers.fast.lrn.lrn_rows_backward_kernel": (
            *(*(values(1),) * 3, integer, integer),
            *(*(number,) * 4, integer),
        ),
        "layers.fast.max_pool.max_pool_rows_forward_kernel": (values(4), values(4), place),
        "layers.fast.max_pool.max_pool_rows_backward_kernel": (values(4), place, values(4)),
        "layers.fast.reductions.sum_rows_kernel": (values(2), array(2), integer),
    }
    if bf16:
        return {
            **fast,
            **tensor_signatures(stored),
            "layers.fast.precision.to_bfloat16_kernel": (array(1), values(1)),
            "layers.fast.precision.from_bfloat16_kernel": (values(1), array(1)),
        }
    return {
        **only_float32,
        **fast,
        "layers.activation.relu_forward_kernel": (array(1),) * 2,
        "layers.activation.relu_backward_kernel": (array(1),) * 3,
        "layers.activation.tanh_forward_kernel": (array(1),) * 2,
        "layers.activation.tanh_backward_kernel": (array(1),) * 3,
        "layers.conv.conv_bias_gradient_kernel": (array(2), array(1)),
        "layers.dropout.dropout_kernel": (array(1), array(1), number, key, keys),
        "layers.lrn.lrn_forward_kernel": (
            *(array(2), array(2), array(2)),
            *(integer, integer, *(number,) * 3),
        ),
        "layers.lrn.lrn_backward_kernel": (
            *(array(2), array(2), array(2), array(2), array(2)),
            *(integer, integer, number, number),
        ),
        "layers.max_pool.max_pool_forward_kernel": (array(4), array(4), winner, *(integer,) * 2),
        "layers.max_pool.max_pool_backward_kernel": (array(4), winner, array(4), *(integer,) * 2),
        "layers.softmax_cross_entropy.softmax_forward_kernel": (
            *(array(2), labels, array(2), array(1)),
        ),
        "layers.softmax_cross_entropy.softmax_backward_kernel": (array(2), labels, array(2)),
        "layers.conv.conv_forward_kernel": (
            *(array(4), array(4), array(1), array(4)),
            *geometry,
        ),
        "layers.conv.conv_input_gradient_kernel": (*(array(4),) * 3, *geometry),
        "layers.conv.conv_filter_gradient_kernel": (*(array(4),) * 3, *geometry),
        "layers.fast.softmax.softmax_rows_kernel": (
            *(array(2), labels, array(2), array(1), array(1), array(2)),
        ),
        "layers.fast.conv.shared_memory.shared_forward_kernel": (
            *(array(4), array(4), array(1), array(4)),
            *(*geometry, types.boolean),
        ),
        **{
            f"layers.fast.conv.shared_memory.shared_{name}_gradient_kernel": (
                *(array(4),) * 3,
                *geometry,
            )
            for name in ("input", "filter")
        },
        "layers.fast.reductions.sum_parts_kernel": (array(2), array(1)),
        "layers.fast.reductions.totals_kernel": (*(array(1),) * 3, draw),
        "tinyconv.data.augment.crop_kernel": (
            *(array(4, types.uint8), array(3), draw, draw, draw, array(2)),
            *(integer, number, array(4)),
        ),
        "tinyconv.sgd.sgd_kernel": (*(array(1),) * 5, number, number, draw),
    }
