"""The layers, and a small net, whose derivatives `python -m tinyconv gradcheck` checks.

All sides of a shape differ, so that swapped or rounded indices are found. Constants are large
where small ones would hide an error: with the paper's α = 1e-4 an LRN over a wrong window is almost
right, with α = 0.5 it is not. Inputs avoid the points where a function has no derivative: ReLU at
0, ties in pooling.
"""

from collections.abc import Iterator

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
)
from tinyconv.initialize import initialize
from tinyconv.sequential import Sequential

SHAPE = (2, 6, 7, 5)


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
    normal = rng.standard_normal(SHAPE)
    for title, conv in {
        "Conv2D 3×3": Conv2D(5, 4, 3),
        "Conv2D 3×3, stride 2, padding (0, 2)": Conv2D(5, 4, 3, stride=2, padding=(0, 2)),
        "Conv2D 2×2, stride 3, padding 1": Conv2D(5, 4, 2, stride=3, padding=1),
    }.items():
        yield title, with_weights(conv, rng), normal, None
    grouped = with_weights(Conv2D(6, 9, 3, padding=1, groups=3), rng)
    yield "Conv2D 3×3, 3 groups, padding 1", grouped, rng.standard_normal((2, 4, 5, 6)), None
    yield "MaxPool2D 3, stride 2", MaxPool2D(3, 2), without_ties(rng, SHAPE), None
    yield "MaxPool2D 2, stride 3", MaxPool2D(2, 3), without_ties(rng, SHAPE), None
    hanging = MaxPool2D(3, 2, ceil=True)
    yield "MaxPool2D 3, stride 2, over the edge", hanging, without_ties(rng, SHAPE), None
    yield "AvgPool2D 3, stride 2, over the edge", AvgPool2D(3, 2, ceil=True), normal, None
    for title, rest in {"3×3, padding 1": (4, 3, 1, 1), "2×2, stride 3": (2, 2, 3)}.items():
        local = with_weights(LocallyConnected2D(SHAPE[1:], *rest), rng)
        yield f"LocallyConnected2D {title}", local, normal, None
    for size, k, alpha, beta, groups in (
        (5, 2.0, 0.5, 0.75, 1),
        (3, 1.0, 0.9, 1.3, 5),
        (13, 2.0, 0.5, 0.75, 1),
        (5, 2.0, 1e-4, 0.75, 1),
    ):
        title = f"LocalResponseNorm {size}, k {k}, α {alpha}, β {beta}, groups {groups}"
        yield title, LocalResponseNorm(size, k, alpha, beta, groups), normal, None
    yield "ReLU", ReLU(), away_from_zero(rng, SHAPE), None
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
