"""Floating-point operations of the project's kernels, which no recording of memory can show.

Each function takes the arguments of a launch and counts + − · / and powers as one each, those of
the formula in the layer's docstring as the kernel computes it. Comparisons, index arithmetic and
type conversions are not counted; so kernels that only compare (pooling, ReLU) or spend their time
in functions of the library (tanh, softmax) are not listed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def _in_windows(x: Any, width: int, half: int) -> int:
    """How many elements the LRN windows of all of x hold together; they are cut at the ends."""
    i = np.arange(width)
    of_group = np.minimum(width, i + half + 1) - np.maximum(0, i - half)
    return int(of_group.sum()) * (x.size // width)


def _lrn_forward(x: Any, y: Any, scale: Any, width: int, half: int, *_: Any) -> int:
    # · and + for each neighbour; then α ·, k +, the power, x ·
    return 2 * _in_windows(x, width, half) + 4 * x.size


def _lrn_backward(x: Any, y: Any, s: Any, dy: Any, dx: Any, width: int, half: int, *_: Any) -> int:
    # ·, / and + for each neighbour; then the power, dy ·, 2αβ ·, x ·, −
    return 3 * _in_windows(x, width, half) + 5 * x.size


FLOPS: dict[str, Callable[..., int]] = {
    "conv_forward_kernel": lambda x, w, b, y, *_: 2 * y.size * w[0].size,
    "conv_input_gradient_kernel": lambda dy, w, dx, *_: 2 * dy.size * w[0].size,
    "conv_filter_gradient_kernel": lambda x, dy, dw, *_: 2 * dy.size * dw[0].size,
    "shared_forward_kernel": lambda x, w, b, y, *_: 2 * y.size * w[0].size,
    "shared_input_gradient_kernel": lambda dy, w, dx, *_: 2 * dy.size * w[0].size,
    "shared_filter_gradient_kernel": lambda x, dy, dw, *_: 2 * dy.size * dw[0].size,
    "conv_bias_gradient_kernel": lambda dy, db: dy.size,
    "lrn_forward_kernel": _lrn_forward,
    "lrn_backward_kernel": _lrn_backward,
    "sgd_kernel": lambda w, dw, v, *_: 8 * w.size,
}
"""By kernel. Convolutions are counted as everywhere, 2 N P Q K R S C / groups: padding too, as if
it were multiplied."""
