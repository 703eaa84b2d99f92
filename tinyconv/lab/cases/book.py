"""The readable tier, `layers/*.py`: its kernels, and the layers whose derivatives are checked."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from layers import (
    AvgPool2D,
    Conv2D,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocallyConnected2D,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
    activation,
    conv,
    dropout,
    lrn,
    max_pool,
    softmax_cross_entropy,
)
from layers.cifar10 import avg_pool, locally_connected
from tinyconv.initialize import initialize
from tinyconv.lab.cases.case import KernelCase, KernelGroup, Shape
from tinyconv.lab.cases.runs import Run, both_ways, loss, of_layers
from tinyconv.sequential import Sequential

IMAGES = (2, 6, 7, 5)
POOLED = IMAGES, (1, 3, 3, 1), (2, 9, 4, 33)
ROWS = IMAGES, (1, 1, 1, 1), (3, 1, 2, 130)
ELEMENTS = IMAGES, (1, 1), (1, 129)


def in_windows(x: Any, width: int, half: int) -> int:
    """How many elements the LRN windows of all of x hold together; they are cut at the ends."""
    i = np.arange(width)
    of_group = np.minimum(width, i + half + 1) - np.maximum(0, i - half)
    return int(of_group.sum()) * (x.size // width)


def lrn_forward_operations(x: Any, y: Any, scale: Any, width: int, half: int, *_: Any) -> int:
    """A · and + for each neighbour; then α ·, k +, the power, x ·."""
    return 2 * in_windows(x, width, half) + 4 * x.size


def lrn_backward_operations(
    x: Any, y: Any, scale: Any, dy: Any, dx: Any, width: int, half: int, *_: Any
) -> int:
    """A ·, / and + for each neighbour; then the power, dy ·, 2αβ ·, x ·, −."""
    return 3 * in_windows(x, width, half) + 5 * x.size


def local(shape: Shape, dtype: str) -> dict[str, Run]:
    """Both ways through locally connected layers, which belong to a shape of image."""
    layers = {
        "LocallyConnected2D 3×3, padding 1": LocallyConnected2D(shape[1:], 4, 3, padding=1),
        "LocallyConnected2D 2×2, stride 3": LocallyConnected2D(shape[1:], 2, 2, 3),
    }
    return {title: both_ways(layer, shape, dtype) for title, layer in layers.items()}


GROUPS = {
    "conv": KernelGroup(
        runs=of_layers(
            lambda channels: {
                "Conv2D 3×3, padding 1": Conv2D(channels, 4, 3, padding=1),
                "Conv2D 3×3, stride 2, padding (0, 2)": Conv2D(channels, 3, 3, 2, (0, 2)),
                "Conv2D 2×2, stride 3, a group for each channel": Conv2D(
                    channels, 2 * channels, 2, 3, 1, groups=channels
                ),
            }
        ),
        shapes=(IMAGES, (1, 3, 3, 1), (3, 4, 3, 2)),
        small=(1, 5, 6, 8),
        largest=5_000,
        cases=(
            KernelCase(
                *(conv.conv_forward_kernel, "2*number[4] number[1] number[4] 3*int64", "y", (0, 2)),
                operations=lambda x, w, b, y, *_: 2 * y.size * w[0].size,
            ),
            KernelCase(
                *(conv.conv_input_gradient_kernel, "3*number[4] 3*int64", "dx", (0, 1)),
                operations=lambda dy, w, dx, *_: 2 * dy.size * w[0].size,
            ),
            KernelCase(
                *(conv.conv_filter_gradient_kernel, "3*number[4] 3*int64", "dw", (0, 1)),
                operations=lambda x, dy, dw, *_: 2 * dy.size * dw[0].size,
            ),
            KernelCase(
                *(conv.conv_bias_gradient_kernel, "number[2] number[1]", "db", (0, 2)),
                operations=lambda dy, db: dy.size,
            ),
        ),
    ),
    "max_pool": KernelGroup(
        runs=of_layers(
            lambda channels: {
                "MaxPool2D 3, stride 2": MaxPool2D(3, 2),
                "MaxPool2D 2, stride 3": MaxPool2D(2, 3),
                "MaxPool2D 3, stride 2, over the edge": MaxPool2D(3, 2, ceil=True),
            }
        ),
        shapes=POOLED,
        small=(1, 7, 9, 8),
        cases=(
            KernelCase(
                max_pool.max_pool_forward_kernel, "2*number[4] int32[4] 2*int64", "y winner", (0, 4)
            ),
            KernelCase(
                max_pool.max_pool_backward_kernel,
                "number[4] int32[4] number[4] 2*int64",
                "dx",
                (0, 0),
            ),
        ),
    ),
    "avg_pool": KernelGroup(
        runs=of_layers(
            lambda channels: {
                "AvgPool2D 3, stride 2, over the edge": AvgPool2D(3, 2, ceil=True),
                "AvgPool2D 2, stride 3": AvgPool2D(2, 3),
            }
        ),
        shapes=POOLED,
        small=(1, 7, 9, 8),
        cases=(
            KernelCase(
                *(avg_pool.avg_pool_forward_kernel, "2*number[4] 2*int64", "y"),
                operations=lambda x, y, size, stride: y.size * size * size,
            ),
            KernelCase(
                *(avg_pool.avg_pool_backward_kernel, "2*number[4] 2*int64", "dx"),
                operations=lambda dy, dx, size, stride: 2 * dy.size * size * size,
            ),
        ),
    ),
    "locally_connected": KernelGroup(
        runs=local,
        shapes=(IMAGES, (1, 3, 3, 1), (3, 4, 3, 2)),
        small=(1, 5, 6, 8),
        largest=5_000,
        cases=(
            KernelCase(
                *(locally_connected.unfold_kernel, "number[4] number[6] 2*int64", "u"),
            ),
            KernelCase(
                *(locally_connected.fold_kernel, "number[6] number[4] 2*int64", "dx"),
                operations=lambda du, *_: du.size,
            ),
        ),
    ),
    "lrn": KernelGroup(
        runs=of_layers(
            lambda channels: {
                "LocalResponseNorm 5": LocalResponseNorm(5, alpha=0.5),
                "LocalResponseNorm 3, a group for each channel": LocalResponseNorm(
                    3, alpha=0.5, groups=channels
                ),
            }
        ),
        shapes=ROWS,
        small=(2, 3, 3, 16),
        cases=(
            KernelCase(
                *(lrn.lrn_forward_kernel, "3*number[2] 2*int64 3*number", "y scale", (0, 2)),
                operations=lrn_forward_operations,
            ),
            KernelCase(
                *(lrn.lrn_backward_kernel, "5*number[2] 2*int64 2*number", "dx", (0, 4)),
                operations=lrn_backward_operations,
            ),
        ),
    ),
    "relu": KernelGroup(
        runs=of_layers(lambda channels: {"ReLU": ReLU()}),
        shapes=ELEMENTS,
        small=(2, 3, 5, 8),
        cases=(
            KernelCase(activation.relu_forward_kernel, "2*number[1]", "y", (0, 0)),
            KernelCase(activation.relu_backward_kernel, "3*number[1]", "dx", (0, 1)),
        ),
    ),
    "tanh": KernelGroup(
        runs=of_layers(lambda channels: {"Tanh": Tanh()}),
        shapes=ELEMENTS,
        small=(2, 3, 5, 8),
        cases=(
            KernelCase(activation.tanh_forward_kernel, "2*number[1]", "y", (0, 1)),
            KernelCase(activation.tanh_backward_kernel, "3*number[1]", "dx", (0, 0)),
        ),
    ),
    "dropout": KernelGroup(
        runs=of_layers(lambda channels: {"Dropout 0.5": Dropout(0.5)}),
        shapes=ELEMENTS,
        small=(2, 3, 5, 8),
        cases=(
            KernelCase(dropout.dropout_kernel, "2*number[1] number uint64 uint64[1]", "y", (0, 1)),
        ),
    ),
    "softmax": KernelGroup(
        runs=lambda shape, dtype: {"softmax": loss(shape, dtype)},
        shapes=((3, 5), (1, 2), (130, 7)),
        small=(40, 8),
        cases=(
            KernelCase(
                softmax_cross_entropy.softmax_forward_kernel,
                "number[2] int64[1] number[2] number[1]",
                "probabilities losses",
                (0, 2),
                rewritten={
                    "probabilities": "the thread that owns the row stores the exponentials, "
                    "then divides them"
                },
            ),
            KernelCase(
                softmax_cross_entropy.softmax_backward_kernel,
                "number[2] int64[1] number[2]",
                "dlogits",
                (0, 0),
            ),
        ),
    ),
}


# --- gradient cases: layers, and a small net, for `gradcheck` and the tests
#
# All sides of a shape differ, so that swapped or rounded indices are found. Constants are large
# where small ones would hide an error: with the paper's α = 1e-4 an LRN over a wrong window is
# almost right, with α = 0.5 it is not. Inputs avoid the points where a function has no derivative:
# ReLU at 0, ties in pooling.


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of both signs, none within 0.1 of 0."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.1, 2.0, shape)


def without_ties(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Shuffled multiples of 0.01, without equal ones."""
    return (rng.permutation(int(np.prod(shape))) * 0.01).reshape(shape)


def with_weights(layer: Layer, rng: np.random.Generator) -> Layer:
    """`layer` with random weights and biases of about unit size."""
    for parameter in layer.parameters():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    return layer


def small_net(rng: np.random.Generator) -> Sequential:
    """Every kind of layer of AlexNet in one net with groups; input (9, 8, 3), 4 classes."""
    net = Sequential(
        {
            "conv1": Conv2D(3, 6, 3, padding=(0, 1)),
            "relu1": ReLU(),
            "norm1": LocalResponseNorm(size=3, alpha=0.5),
            "pool1": MaxPool2D(3, 2),
            "conv2": Conv2D(6, 4, 3, padding=1, groups=2),
            "tanh2": Tanh(),
            "flatten": Flatten(),
            "fc3": Linear(36, 5),
            "relu3": ReLU(),
            "drop3": Dropout(0.3),
            "fc4": Linear(5, 4),
        },
        input_shape=(9, 8, 3),
    )
    initialize(net, "robust", seed=1)
    for parameter in net.parameters():
        if parameter.name.endswith("bias"):
            parameter.value[...] = rng.uniform(0.1, 0.3, parameter.value.shape)
    return net


def gradient_cases() -> Iterator[tuple[str, Layer | Sequential, np.ndarray, np.ndarray | None]]:
    """(title, layer or net on the host, input, labels or None) for each check."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(IMAGES)
    for title, layer in {
        "Conv2D 3×3": Conv2D(5, 4, 3),
        "Conv2D 3×3, stride 2, padding (0, 2)": Conv2D(5, 4, 3, stride=2, padding=(0, 2)),
        "Conv2D 2×2, stride 3, padding 1": Conv2D(5, 4, 2, stride=3, padding=1),
    }.items():
        yield title, with_weights(layer, rng), normal, None
    grouped = with_weights(Conv2D(6, 9, 3, padding=1, groups=3), rng)
    yield "Conv2D 3×3, 3 groups, padding 1", grouped, rng.standard_normal((2, 4, 5, 6)), None
    yield "MaxPool2D 3, stride 2", MaxPool2D(3, 2), without_ties(rng, IMAGES), None
    yield "MaxPool2D 2, stride 3", MaxPool2D(2, 3), without_ties(rng, IMAGES), None
    hanging = MaxPool2D(3, 2, ceil=True)
    yield "MaxPool2D 3, stride 2, over the edge", hanging, without_ties(rng, IMAGES), None
    yield "AvgPool2D 3, stride 2, over the edge", AvgPool2D(3, 2, ceil=True), normal, None
    for title, rest in {"3×3, padding 1": (4, 3, 1, 1), "2×2, stride 3": (2, 2, 3)}.items():
        local = with_weights(LocallyConnected2D(IMAGES[1:], *rest), rng)
        yield f"LocallyConnected2D {title}", local, normal, None
    for size, k, alpha, beta, groups in (
        (5, 2.0, 0.5, 0.75, 1),
        (3, 1.0, 0.9, 1.3, 5),
        (13, 2.0, 0.5, 0.75, 1),
        (5, 2.0, 1e-4, 0.75, 1),
    ):
        title = f"LocalResponseNorm {size}, k {k}, α {alpha}, β {beta}, groups {groups}"
        yield title, LocalResponseNorm(size, k, alpha, beta, groups), normal, None
    yield "ReLU", ReLU(), away_from_zero(rng, IMAGES), None
    yield "Tanh", Tanh(), normal, None
    yield "Dropout 0.4, paper", Dropout(0.4), normal, None
    yield "Dropout 0.4, inverted", Dropout(0.4, mode="inverted"), normal, None
    yield "Flatten", Flatten(), normal, None
    yield "Linear", with_weights(Linear(7, 5), rng), rng.standard_normal((3, 7)), None
    # Flatten's derivative is 1, so this checks the loss.
    logits = rng.standard_normal((3, 5))
    yield "SoftmaxCrossEntropy", Flatten(), logits, np.array([4, 0, 2])
    x = rng.standard_normal((3, 9, 8, 3))
    yield "small net with its loss", small_net(rng), x, np.array([3, 0, 2])
