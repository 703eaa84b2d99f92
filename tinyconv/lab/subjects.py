"""The project's kernels on a bench: launches ready to be checked, measured and drawn.

A kernel's arguments are made by the layer that launches it. So a layer is run once, recorded, and
each of its launches becomes a Subject: the kernel, its grid and block, and its very arguments.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from layers import activation, dropout, lrn, max_pool, simulator, softmax_cross_entropy
from layers import conv as direct
from layers.fast import bias_relu as epilogue
from layers.fast import lrn as lrn_rows
from layers.fast import max_pool as max_pool_rows
from layers.fast import precision, reductions
from layers.fast import softmax as softmax_rows
from layers.fast.conv import (
    shared_memory,
    space_to_depth,
    tensor_core,
    tensor_gradients,
    tiled,
    tiled_gradients,
)
from layers.fast.conv.tile_table import TILES
from tinyconv import sgd
from tinyconv.data import augment
from tinyconv.lab.runs import runs

TENSOR = [f"{tile}_{kind}_kernel" for kind in ("tf32", "bf16") for tile in TILES]
"""How the names of the kernels for tensor cores end."""

OUTPUTS: dict[str, tuple[str, ...]] = {
    "conv_forward_kernel": ("y",),
    "conv_input_gradient_kernel": ("dx",),
    "conv_filter_gradient_kernel": ("dw",),
    "shared_forward_kernel": ("y",),
    "shared_input_gradient_kernel": ("dx",),
    "shared_filter_gradient_kernel": ("dw",),
    "conv_bias_gradient_kernel": ("db",),
    "tiled_forward_vectorized_kernel": ("y",),
    "tiled_forward_scalar_kernel": ("y",),
    "flip_filters_kernel": ("flipped",),
    "tiled_filter_vectorized_kernel": ("partial",),
    "tiled_filter_scalar_kernel": ("partial",),
    **{f"tensor_forward_{kernel}": ("y",) for kernel in TENSOR},
    **{f"tensor_filter_{kernel}": ("partial",) for kernel in TENSOR},
    "image_to_s2d_kernel": ("x_s2d",),
    "filters_to_s2d_kernel": ("w_s2d",),
    "flipped_filters_s2d_kernel": ("flipped",),
    "image_from_s2d_kernel": ("x",),
    "filters_from_s2d_kernel": ("w",),
    "max_pool_forward_kernel": ("y", "winner"),
    "max_pool_backward_kernel": ("dx",),
    "lrn_forward_kernel": ("y", "scale"),
    "max_pool_rows_forward_kernel": ("y", "winner"),
    "max_pool_rows_backward_kernel": ("dx",),
    "lrn_backward_kernel": ("dx",),
    "lrn_rows_forward_kernel": ("y",),
    "lrn_rows_backward_kernel": ("dx",),
    "relu_forward_kernel": ("y",),
    "relu_backward_kernel": ("dx",),
    "tanh_forward_kernel": ("y",),
    "tanh_backward_kernel": ("dx",),
    "dropout_kernel": ("y",),
    "softmax_forward_kernel": ("probabilities", "losses"),
    "softmax_backward_kernel": ("dlogits",),
    "softmax_rows_kernel": ("probabilities", "losses", "hits", "dlogits"),
    "bias_kernel": (),
    "bias_relu_kernel": (),
    "bias_relu_dropout_kernel": (),
    "masked_gradient_kernel": ("dz", "partial"),
    "sum_rows_kernel": ("partial",),
    "sum_parts_kernel": ("total",),
    "totals_kernel": ("totals",),
    "to_bfloat16_kernel": ("bits",),
    "from_bfloat16_kernel": ("x",),
    "sgd_kernel": (),
    "crop_kernel": ("x",),
}
"""Parameters of each kernel that come in empty and go out full. sgd_kernel updates w and v, and the
bias kernels y: they read them before they write them."""

REWRITTEN: dict[str, dict[str, str]] = {
    "softmax_forward_kernel": {
        "probabilities": "the thread that owns the row stores the exponentials, then divides them"
    },
}
"""By kernel and output, why elements are written more than once; all others are written once."""

KERNELS: dict[str, Any] = {
    value.__name__: value
    for module in (
        *(activation, direct, tiled, tiled_gradients, tensor_core, tensor_gradients),
        *(space_to_depth, shared_memory),
        *(dropout, lrn, lrn_rows, max_pool, max_pool_rows, epilogue, precision),
        *(reductions, softmax_cross_entropy, softmax_rows, sgd, augment),
    )
    for name, value in vars(module).items()
    # The functions that make the kernels of tensor cores are called after what they make.
    if name.endswith("_kernel") and not isinstance(value, FunctionType)
}
"""Every kernel of the project, by name."""


@dataclass(frozen=True)
class Subject:
    """A launch: `kernel[grid, block](*args)`."""

    title: str
    """Of the layer and its settings, for a row of a table."""
    kernel: Any
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    args: tuple[Any, ...]
    outputs: tuple[str, ...]
    """Names of the parameters that come in empty."""

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "conv": ((2, 6, 7, 5), (1, 3, 3, 1), (3, 4, 3, 2)),
    "max_pool": ((2, 6, 7, 5), (1, 3, 3, 1), (2, 9, 4, 33)),
    "lrn": ((2, 6, 7, 5), (1, 1, 1, 1), (3, 1, 2, 130)),
    "max_pool_rows": ((2, 6, 7, 5), (1, 3, 3, 1), (2, 9, 4, 33)),
    "lrn_rows": ((2, 6, 7, 5), (1, 1, 1, 1), (3, 1, 2, 130)),
    "shared": ((2, 5, 6, 5), (1, 3, 3, 1), (1, 4, 3, 18)),
    "tiled": ((1, 3, 5, 4), (1, 2, 2, 1), (1, 4, 3, 5)),
    "tensor_tf32": ((2, 3, 5, 12),),
    "tensor_bf16": ((2, 3, 5, 12),),
    "space_to_depth": ((2, 6, 7, 5), (1, 2, 3, 1), (1, 5, 24, 14)),
    "linear": ((3, 7), (1, 1), (130, 5)),
    "relu": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "tanh": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "dropout": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "softmax": ((3, 5), (1, 2), (130, 7)),
    "softmax_rows": ((3, 5), (1, 2), (2, 131)),
    "bfloat16": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "sgd": ((5, 7), (1, 1), (257, 3)),
    "crop": ((2, 9, 9, 3), (1, 8, 8, 3), (3, 16, 16, 3)),
}
"""By name, the shapes that are hostile: sides that differ and are multiples of nothing, a single
element, one more than a block of threads; of tensor_tf32 and tensor_bf16 one alone, as their tiles
are large whatever the image. Of convolutions, max_pool, lrn, crop: (N, H, W, C). The names in
_rows, and "linear", are the fused steps of `layers/fast/`."""


def checked_shape(name: str, text: str | None) -> tuple[int, ...] | None:
    """The shape that a user gave for `name`, "2,13,13,96"; None for None.

    ValueError, in one line, for an unknown name, for text that is no shape, and for a shape of
    the wrong number of sides.
    """
    if name not in SHAPES:
        raise ValueError(f"no kernels are called {name!r}: choose from {', '.join(SHAPES)}")
    if text is None:
        return None
    try:
        shape = tuple(int(side) for side in text.split(","))
    except ValueError:
        shape = ()
    example = SHAPES[name][0]
    if len(shape) not in {len(known) for known in SHAPES[name]} or min(shape) < 1:
        sides = ",".join(map(str, example))
        raise ValueError(f"--shape of {name} is positive numbers such as {sides}, not {text!r}")
    return shape


def subjects(name: str, shape: tuple[int, ...] | None = None) -> Iterator[Subject]:
    """The launches of `name` (a key of SHAPES) for an input of `shape`; None: the hostile ones.

    KeyError for another name; ValueError for a shape that does not fit.
    """
    for one in SHAPES[name] if shape is None else (shape,):
        for title, run in runs(name, one).items():
            with simulator.record() as traces:
                run()
            for trace in traces:
                yield Subject(
                    title=f"{title}, {'×'.join(map(str, one))}",
                    kernel=KERNELS[trace.kernel],
                    grid=(trace.grid.x, trace.grid.y, trace.grid.z),
                    block=(trace.block.x, trace.block.y, trace.block.z),
                    args=trace.arguments,
                    outputs=OUTPUTS[trace.kernel],
                )
