"""The kernels of the fast tier, `layers/fast/*.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from layers import Device, Dropout, Linear, LocalResponseNorm, MaxPool2D, ReLU
from layers.fast import (
    bias_relu,
    lrn,
    lrn_vectorized,
    max_pool,
    max_pool_vectorized,
    precision,
    reductions,
    softmax,
)
from tinyconv.lab.cases.book import ELEMENTS, POOLED, ROWS
from tinyconv.lab.cases.case import KernelCase, KernelGroup, Shape
from tinyconv.lab.cases.runs import loss, of_steps, random

BF16 = ("bfloat16",)


def to_bfloat16_and_back(shape: Shape, dtype: str) -> dict[str, Callable[[], Any]]:
    """What stands between steps in bf16 and layers in float32."""
    device, x = Device("cuda:0"), random(shape)
    bits = device.empty(shape, precision.BITS)

    def run() -> None:
        precision.round_into(device, "bf16", x, bits)
        precision.widen_into(bits, device.empty(shape, np.float32))

    return {"bfloat16": run}


def second_pass(shape: Shape, dtype: str) -> dict[str, Callable[[], Any]]:
    """The sum of the parts of `shape` (parts, columns)."""
    partial, total = random(shape).astype(dtype), np.empty(shape[1], dtype)
    return {"sum of parts": lambda: reductions.sum_parts(partial, total)}


GROUPS = {
    "max_pool_rows": KernelGroup(
        runs=of_steps(lambda channels: {"MaxPool2D 3, stride 2": [MaxPool2D(3, 2)]}),
        shapes=POOLED,
        small=(1, 7, 9, 6),  # channels that are no fours
        cases=(
            KernelCase(
                max_pool.max_pool_rows_forward_kernel, "2*stored[4] uint8[4]", "y winner", (0, 3)
            ),
            KernelCase(
                max_pool.max_pool_rows_backward_kernel, "stored[4] uint8[4] stored[4]", "dx", (0, 2)
            ),
        ),
    ),
    "max_pool_vectorized": KernelGroup(
        runs=of_steps(lambda channels: {"MaxPool2D 3, stride 2": [MaxPool2D(3, 2)]}),
        shapes=((2, 6, 7, 4), (1, 3, 3, 8), (2, 9, 4, 36), (1, 7, 8, 516)),
        small=(1, 7, 9, 8),
        cases=(
            KernelCase(
                max_pool_vectorized.max_pool_vectorized_forward_kernel,
                "2*stored[1] uint8[1] 5*int64 boolean",
                "y winner",
                (0, 3),
                only=("float32", "bfloat16"),
            ),
            KernelCase(
                max_pool_vectorized.max_pool_vectorized_backward_kernel,
                "stored[1] uint8[1] stored[1] 5*int64",
                "dx",
                (0, 3),
                only=("float32", "bfloat16"),
            ),
        ),
    ),
    "lrn_rows": KernelGroup(
        runs=of_steps(
            lambda channels: {
                "LocalResponseNorm 5": [LocalResponseNorm(5, alpha=0.5)],
                "LocalResponseNorm 9, β 1": [LocalResponseNorm(9, alpha=0.5, beta=1.0)],
            }
        ),
        shapes=ROWS,
        small=(2, 3, 3, 16),
        cases=(
            KernelCase(
                lrn.lrn_rows_forward_kernel, "2*stored[1] 2*int64 3*number int64", "y", (0, 7)
            ),
            KernelCase(
                lrn.lrn_rows_backward_kernel, "3*stored[1] 2*int64 4*number int64", "dx", (0, 0)
            ),
        ),
    ),
    "lrn_vectorized": KernelGroup(
        runs=of_steps(lambda channels: {"LocalResponseNorm 5": [LocalResponseNorm(alpha=0.5)]}),
        shapes=((2, 1, 3, 8), (1, 1, 1, 24), (3, 1, 5, 64)),
        small=(2, 3, 3, 16),
        cases=(
            KernelCase(
                lrn_vectorized.lrn_vectorized_forward_kernel,
                "2*stored[1] int64 2*number",
                "y",
                (0, 1),
                only=("float32", "bfloat16"),
            ),
            KernelCase(
                lrn_vectorized.lrn_vectorized_backward_kernel,
                "3*stored[1] int64 3*number",
                "dx",
                (0, 4),
                only=("float32", "bfloat16"),
            ),
        ),
    ),
    "linear": KernelGroup(
        runs=of_steps(
            lambda channels: {
                "Linear": [Linear(channels, 32)],
                "Linear, ReLU": [Linear(channels, 33), ReLU()],
                "Linear, ReLU, Dropout": [Linear(channels, 32), ReLU(), Dropout(0.5)],
            }
        ),
        shapes=((3, 7), (1, 1), (130, 5)),
        small=(6, 8),
        cases=(
            # The first two update y.
            KernelCase(bias_relu.bias_kernel, "2*number[1] stored[1] int64 2*boolean", "", (0, 1)),
            KernelCase(
                bias_relu.bias_relu_dropout_kernel,
                "2*number[1] stored[1] int64 number uint64 uint64[1]",
                "",
                (0, 6),
            ),
            KernelCase(
                bias_relu.masked_gradient_kernel,
                "3*stored[1] number[1] 3*int64 boolean number boolean",
                "dz partial",
                (0, 2),
                threads=256,
            ),
            KernelCase(
                *(
                    reductions.sum_rows_kernel,
                    "stored[1] number[1] 3*int64 boolean",
                    "partial",
                    (0, 0),
                ),
                threads=256,
            ),
            KernelCase(reductions.sum_parts_kernel, "2*number[1] int64 boolean", "total", (0, 0)),
        ),
    ),
    "sum_many_parts": KernelGroup(
        runs=second_pass,
        shapes=((reductions.WIDE, 1), (reductions.WIDE + 7, 33)),
        small=(reductions.WIDE, 8),
        cases=(
            KernelCase(
                *(reductions.sum_many_parts_kernel, "number[2] number[1]", "total"), threads=1024
            ),
        ),
    ),
    "softmax_rows": KernelGroup(
        runs=lambda shape, dtype: {"softmax_rows": loss(shape, dtype, fast=True)},
        shapes=((3, 5), (1, 2), (2, 131)),
        small=(4, 40),
        cases=(
            KernelCase(
                softmax.softmax_rows_kernel,
                "number[2] int64[1] number[2] 2*number[1] number[2]",
                "probabilities losses hits dlogits",
                (1, 0),
            ),
            KernelCase(reductions.totals_kernel, "3*number[1] int32[1]", "totals", (0, 2)),
        ),
    ),
    "bfloat16": KernelGroup(
        runs=to_bfloat16_and_back,
        shapes=ELEMENTS,
        small=(2, 3, 5, 8),
        cases=(
            KernelCase(
                precision.to_bfloat16_kernel,
                "number[1] stored[1] boolean",
                "bits",
                (0, 1),
                only=BF16,
            ),
            KernelCase(
                precision.from_bfloat16_kernel,
                "stored[1] number[1] boolean",
                "x",
                (0, 0),
                only=BF16,
            ),
        ),
    ),
}
