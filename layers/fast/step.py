"""Layers that are computed together because they stand together: the plan of a net.

Most of AlexNet's layers do little with each number and read and write it all the same; on a GPU
each is also a launch, with its price on the host. Where one follows another they can share both:

    Conv2D, ReLU                conv_step.py      on the host the ReLU works in place
    the same twice              on tensor cores: the second masks dL/dy for the first
    Linear, ReLU, Dropout       linear_step.py    one pass after the product
    LocalResponseNorm           `layers/fast/lrn.py`        on a GPU: each value read once
    MaxPool2D 3×3, stride 2     `layers/fast/max_pool.py`   on a GPU: a row a thread

`plan.py` finds them. What it gives is a list of steps, some of them plain layers, some of them a
`FusedStep` that holds its layers; `tinyconv/sequential.py` walks along it. The authors' first
block, convolution, LRN, pooling and only then ReLU, has no such pair.

Fused or not, a step gives the same result: on the host the same bits; on a GPU too, except for
LRN, which adds and multiplies in another order, the bias gradients of convolutions, and in bf16
what fusing does not store in between, and so does not round.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from layers.layer import Layer


class FusedStep(ABC):
    """One or more layers that follow each other, computed together.

    It owns nothing: parameters, buffers, device and dtype are those of `layers`, and after
    `forward` each layer's `y` is the array of the step's output, since those in between are never
    stored. A subclass writes `forward` and `backward`, with the same results as its layers one by
    one.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers: list[Any] = list(layers)

    @property
    def name(self) -> str:
        """The layers' names: "conv2+relu2"."""
        return "+".join(layer.name for layer in self.layers)

    def notes(self) -> dict[str, str]:
        """What the table of a net says of these layers, by name."""
        first, *others = self.layers
        return {layer.name: f"(in {first.name})" for layer in others}

    @abstractmethod
    def forward(self, x: Any, train: bool = True) -> Any:
        """y of the last layer from x of the first."""

    @abstractmethod
    def backward(self, dy: Any) -> Any:
        """dL/dx of the first layer from dL/dy of the last; fills the parameters' gradients."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"
