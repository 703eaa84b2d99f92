"""Nets by name: AlexNet, and the 2012 authors' nets for CIFAR-10's 32-pixel images.

The paper's §3.3 says of "a four-layer CNN": 13 % error on CIFAR-10 without LRN, 11 % with it. Two
public configurations of the authors (cuda-convnet, `layers-conv-local-13pct`, `-11pct`) differ in
nothing else:

    conv1   64 of 5×5×3, padding 2        24×24×64   ReLU, (LRN,) pool 3/2 -> 12×12×64
    conv2   64 of 5×5×64, padding 2       12×12×64   ReLU, (LRN,) pool 3/2 -> 6×6×64
    local3  32 of 3×3×64, padding 1       6×6×32     ReLU
    local4  32 of 3×3×32, padding 1       6×6×32     ReLU
    fc10    1152 -> 10                               softmax (in the loss)

Pooling windows hang over the right and bottom edge. LRN has size 5, k = 1, α = 0.001 / 5.
"18pct-like" follows the smaller nets of that time: three convolutions of 32, 32 and 64 filters, the
second and third followed by average pooling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from layers import (
    AvgPool2D,
    Conv2D,
    Flatten,
    Layer,
    Linear,
    LocallyConnected2D,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
)
from tinyconv.alexnet import SMALLEST_IMAGE, alexnet
from tinyconv.initialize import initialize
from tinyconv.recipes import CIFAR10, Recipe, get_recipe
from tinyconv.sequential import Sequential

KINDS = "13pct", "11pct", "18pct-like"
ONE_COLUMN = partial(alexnet, variant="one-column")


def cifar10_net(
    kind: str = "11pct",
    num_classes: int = 10,
    image_size: int = 24,
    recipe: str | Recipe = CIFAR10,
    seed: int = 0,
    init: bool = True,
) -> Sequential:
    """A net for small images, on the host in float32: "13pct", "11pct" (with LRN), "18pct-like".

    image_size: side of the square input in pixels; recipe: `CIFAR10`, or another for its first
    weights. It takes (N, H, W, 3) and gives logits (N, classes). init=False as in `alexnet`.
    ValueError for another kind, an image below 8 pixels, or fewer than 1 class.
    """
    recipe = get_recipe(recipe)
    if kind not in KINDS:
        raise ValueError(f"cifar10_net: {kind!r}, not one of {', '.join(KINDS)}")
    if image_size < 8 or num_classes < 1:
        raise ValueError(
            "cifar10_net: image_size must be at least 8 and num_classes at least 1, not "
            f"{image_size} and {num_classes}"
        )

    def lrn(name: str) -> dict[str, Layer]:
        if kind == "13pct":
            return {}
        return {name: LocalResponseNorm(5, k=1.0, alpha=recipe.lrn_alpha, beta=0.75)}

    layers: dict[str, Layer]
    if kind == "18pct-like":
        layers = {
            "conv1": Conv2D(3, 32, 5, padding=2),
            "pool1": MaxPool2D(3, 2, ceil=True),
            "relu1": ReLU(),
            **lrn("norm1"),
            "conv2": Conv2D(32, 32, 5, padding=2),
            "relu2": ReLU(),
            "pool2": AvgPool2D(3, 2, ceil=True),
            **lrn("norm2"),
            "conv3": Conv2D(32, 64, 5, padding=2),
            "relu3": ReLU(),
            "pool3": AvgPool2D(3, 2, ceil=True),
        }
    else:
        layers = {
            "conv1": Conv2D(3, 64, 5, padding=2),
            "relu1": ReLU(),
            **lrn("norm1"),
            "pool1": MaxPool2D(3, 2, ceil=True),
            "conv2": Conv2D(64, 64, 5, padding=2),
            "relu2": ReLU(),
            **lrn("norm2"),
            "pool2": MaxPool2D(3, 2, ceil=True),
        }
    input_shape = (image_size, image_size, 3)
    rows, columns, channels = Sequential(layers).output_shapes(input_shape)[-1]
    if kind != "18pct-like":
        layers["local3"] = LocallyConnected2D((rows, columns, channels), 32, 3, padding=1)
        layers["relu3"] = ReLU()
        layers["local4"] = LocallyConnected2D((rows, columns, 32), 32, 3, padding=1)
        layers["relu4"] = ReLU()
        channels = 32
    layers["flatten"] = Flatten()
    layers["fc10"] = Linear(rows * columns * channels, num_classes)
    net = Sequential(layers, input_shape)
    return initialize(net, recipe, seed) if init else net


@dataclass(frozen=True)
class Model:
    """A net that can be asked for by its name, and what goes with it."""

    name: str
    make: Callable[..., Sequential]
    """make(num_classes, width, image_size, recipe, seed): AlexNet's arguments."""
    crop: int | None
    """Side of its input unless told otherwise; None: as the device allows."""
    smallest: int
    photo: float
    """Side of the photos that crops are taken from, relative to the crop."""
    own_recipe: Recipe | None = None

    def recipe(self, name: str) -> Recipe:
        """Its own recipe, or that of the name."""
        return self.own_recipe or get_recipe(name)


def _cifar10(kind: str) -> Model:
    def make(classes: int, _: float, *rest: Any) -> Sequential:
        return cifar10_net(kind, classes, *rest)

    return Model(f"cifar10-{kind}", make, 24, 8, 32 / 24, CIFAR10)


MODELS = {
    "alexnet": Model("alexnet", alexnet, None, SMALLEST_IMAGE, 256 / 224),
    "one-column": Model("one-column", ONE_COLUMN, None, SMALLEST_IMAGE, 256 / 224),
    **{f"cifar10-{kind}": _cifar10(kind) for kind in KINDS},
}
"""All nets by name, for --model."""
