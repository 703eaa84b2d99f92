"""The project's kernels on a bench: launches ready to be checked, measured and drawn.

A kernel's arguments are made by the layer that launches it. So a layer is run once, recorded, and
each of its launches becomes a Subject: the kernel, its grid and block, and its very arguments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from layers import (
    Conv2D,
    Dropout,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    SoftmaxCrossEntropy,
    Tanh,
    activation,
    dropout,
    lrn,
    lrn_rows,
    max_pool,
    max_pool_rows,
    reductions,
    simulator,
    softmax_cross_entropy,
    softmax_rows,
)
from layers.conv import blocks, direct, tensor_core, tiled, tiled_gradients
from layers.fused import epilogue
from layers.fused.plan import plan
from layers.layer import Parameter
from tinyconv import sgd
from tinyconv.data import augment
from tinyconv.data.augment import Augment
from tinyconv.lab.tensor_runs import tensor_runs
from tinyconv.sgd import SGD

OUTPUTS: dict[str, tuple[str, ...]] = {
    "conv_forward_kernel": ("y",),
    "conv_input_gradient_kernel": ("dx",),
    "conv_filter_gradient_kernel": ("dw",),
    "conv_bias_gradient_kernel": ("db",),
    "tiled_forward_wide_kernel": ("y",),
    "tiled_forward_narrow_kernel": ("y",),
    "turn_filters_kernel": ("turned",),
    "tiled_filter_wide_kernel": ("partial",),
    "tiled_filter_narrow_kernel": ("partial",),
    "tensor_forward_large_tf32_kernel": ("y",),
    "tensor_forward_small_tf32_kernel": ("y",),
    "tensor_forward_large_bf16_kernel": ("y",),
    "tensor_forward_small_bf16_kernel": ("y",),
    "image_blocks_kernel": ("blocks",),
    "filter_blocks_kernel": ("filters",),
    "turned_blocks_kernel": ("turned",),
    "image_from_blocks_kernel": ("x",),
    "filter_from_blocks_kernel": ("w",),
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
    "softmax_rows_kernel": ("probabilities", "losses", "dlogits"),
    "bias_kernel": (),
    "bias_relu_kernel": (),
    "bias_relu_dropout_kernel": (),
    "masked_gradient_kernel": ("dz", "partial"),
    "sum_rows_kernel": ("partial",),
    "sum_parts_kernel": ("total",),
    "mean_kernel": ("mean",),
    "sgd_kernel": (),
    "crop_kernel": ("x",),
}
"""Parameters of each kernel that come in empty and go out full. sgd_kernel updates w and v, and
the bias kernels y: they read them before they write them."""

REWRITTEN: dict[str, dict[str, str]] = {
    "softmax_forward_kernel": {
        "probabilities": "the thread that owns the row stores the exponentials, then divides them"
    },
}
"""By kernel and output, why elements are written more than once; all others are written once."""

KERNELS: dict[str, Any] = {
    name: value
    for module in (
        *(activation, direct, tiled, tiled_gradients, tensor_core, blocks, dropout, lrn, lrn_rows),
        *(max_pool, max_pool_rows, epilogue),
        *(reductions, softmax_cross_entropy, softmax_rows, sgd, augment),
    )
    for name, value in vars(module).items()
    if name.endswith("_kernel")
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


def _random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _both_ways(layer: Layer, shape: tuple[int, ...]) -> Callable[[], None]:
    layer.to("cuda:0")
    for number, parameter in enumerate(layer.parameters()):
        parameter.value[...] = _random(parameter.value.shape, number)
    # Shuffled multiples of 0.01: pooling windows without ties.
    order = np.random.default_rng(1).permutation(int(np.prod(shape)))
    x = (order.reshape(shape) * 0.01 - 1).astype(np.float32)

    def run() -> None:
        y = layer.forward(x)
        layer.backward(_random(y.shape))

    return run


def _step(layers: list[Layer], shape: tuple[int, ...]) -> Callable[[], None]:
    """Both ways through the one step that these layers make on a GPU."""
    for layer in layers:
        layer.to("cuda:0")
        for number, parameter in enumerate(layer.parameters()):
            parameter.value[...] = _random(parameter.value.shape, number)
    (step,) = plan(layers)
    x = _random(shape, 9)

    def run() -> None:
        y = step.forward(x)
        step.backward(_random(y.shape))

    return run


def _loss(shape: tuple[int, ...], fuse: bool = False) -> Callable[[], None]:
    loss = SoftmaxCrossEntropy(fuse).to("cuda:0")

    def run() -> None:
        loss.forward(_random(shape), np.arange(shape[0]) % shape[1])
        loss.backward()

    return run


def _sgd(shape: tuple[int, ...]) -> Callable[[], None]:
    weight, bias = Parameter("weight", shape), Parameter("bias", shape[:1])
    for parameter in (weight, bias):
        parameter.to("cuda:0", "float32")
        parameter.value[...] = parameter.grad[...] = _random(parameter.value.shape)
    return SGD([weight, bias]).step


def _crops(shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean = images.mean(axis=0).astype(np.float32)
    training = Augment(mean, max(1, shape[1] * 7 // 8), colour=20 * np.eye(3))
    testing = Augment(mean, max(1, shape[1] // 2))
    for cutter in (training, testing):
        cutter.to("cuda:0", "float32")
    return {
        "crop": lambda: training.random(images, np.arange(shape[0]), 0),
        "crop, ten views": lambda: testing.ten_views(images),
    }


def runs(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """What to run for `name` on an input of `shape`, by title; ValueError if it does not fit."""
    channels = shape[-1]
    layers: dict[str, Layer]
    if name in ("linear", "lrn_rows", "max_pool_rows"):
        steps: dict[str, dict[str, list[Layer]]] = {
            "linear": {
                "Linear": [Linear(channels, 40)],
                "Linear, ReLU": [Linear(channels, 33), ReLU()],
                "Linear, ReLU, Dropout": [Linear(channels, 40), ReLU(), Dropout(0.5)],
            },
            "lrn_rows": {
                "LocalResponseNorm 5": [LocalResponseNorm(5, alpha=0.5)],
                "LocalResponseNorm 9, β 1": [LocalResponseNorm(9, alpha=0.5, beta=1.0)],
            },
            "max_pool_rows": {"MaxPool2D 3, stride 2": [MaxPool2D(3, 2)]},
        }
        return {title: _step(parts, shape) for title, parts in steps[name].items()}
    if name == "tensor":
        return tensor_runs(shape)
    if name == "conv":
        layers = {
            "Conv2D 3×3, padding 1": Conv2D(channels, 4, 3, padding=1),
            "Conv2D 3×3, stride 2, padding (0, 2)": Conv2D(channels, 3, 3, 2, (0, 2)),
            "Conv2D 2×2, stride 3, a group for each channel": Conv2D(
                channels, 2 * channels, 2, 3, 1, groups=channels
            ),
        }
    elif name == "tiled":
        layers = {
            "Conv2D 2×2, padding (0, 1), 4 filters": Conv2D(
                channels, 4, 2, padding=(0, 1), algorithm="tiled"
            ),
            "Conv2D 2×2, stride 2, padding 1, 3 filters": Conv2D(
                channels, 3, 2, 2, 1, algorithm="tiled"
            ),
        }
    elif name == "max_pool":
        layers = {
            "MaxPool2D 3, stride 2": MaxPool2D(3, 2),
            "MaxPool2D 2, stride 3": MaxPool2D(2, 3),
        }
    elif name == "lrn":
        layers = {
            "LocalResponseNorm 5": LocalResponseNorm(5, alpha=0.5),
            "LocalResponseNorm 3, a group for each channel": LocalResponseNorm(
                3, alpha=0.5, groups=channels
            ),
        }
    elif name == "relu":
        layers = {"ReLU": ReLU()}
    elif name == "tanh":
        layers = {"Tanh": Tanh()}
    elif name == "dropout":
        layers = {"Dropout 0.5": Dropout(0.5)}
    elif name == "softmax_rows":
        return {name: _loss(shape, fuse=True)}
    elif name == "crop":
        return _crops(shape)
    else:
        other = {"softmax": _loss, "sgd": _sgd}
        return {name: other[name](shape)}
    return {title: _both_ways(layer, shape) for title, layer in layers.items()}


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "conv": ((2, 6, 7, 5), (1, 3, 3, 1), (3, 4, 3, 2)),
    "max_pool": ((2, 6, 7, 5), (1, 3, 3, 1), (2, 9, 4, 33)),
    "lrn": ((2, 6, 7, 5), (1, 1, 1, 1), (3, 1, 2, 130)),
    "max_pool_rows": ((2, 6, 7, 5), (1, 3, 3, 1), (2, 9, 4, 33)),
    "lrn_rows": ((2, 6, 7, 5), (1, 1, 1, 1), (3, 1, 2, 130)),
    "tiled": ((1, 3, 5, 4), (1, 2, 2, 1), (1, 4, 3, 5)),
    "tensor": ((1, 3, 5, 4), (1, 2, 2, 1)),
    "linear": ((3, 7), (1, 1), (130, 5)),
    "relu": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "tanh": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "dropout": ((2, 6, 7, 5), (1, 1), (1, 129)),
    "softmax": ((3, 5), (1, 2), (130, 7)),
    "softmax_rows": ((3, 5), (1, 2), (2, 131)),
    "sgd": ((5, 7), (1, 1), (257, 3)),
    "crop": ((2, 9, 9, 3), (1, 8, 8, 3), (3, 16, 16, 3)),
}
"""By name, the shapes that are hostile: sides that differ and are multiples of nothing, a single
element, one more than a block of threads. Of conv, tiled, tensor, max_pool, lrn, crop: (N, H, W,
C). The names in _rows, and "linear", are the fused steps of `layers/fused/`."""


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
