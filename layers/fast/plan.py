"""Which of a net's layers are computed together: the pairs of `layers/fast/step.py`."""

from collections.abc import Sequence
from typing import Any

from layers.activation import ReLU
from layers.conv import Conv2D
from layers.dropout import Dropout
from layers.fast.conv_relu import ConvStep
from layers.fast.linear import LinearStep
from layers.fast.lrn import LRNRowsStep
from layers.fast.max_pool import MaxPoolRowsStep
from layers.fast.step import FusedStep
from layers.layer import Layer
from layers.linear import Linear
from layers.lrn import LocalResponseNorm
from layers.max_pool import MaxPool2D


def plan(layers: Sequence[Layer]) -> list[Layer | FusedStep]:
    """The steps that compute `layers` in order; each layer is in one of them.

    It looks at the device that the layers are on: plan again when they have moved.
    """
    steps: list[Layer | FusedStep] = []
    place = 0
    while place < len(layers):
        layer: Any = layers[place]
        # A subclass may compute something else: only the layers themselves are replaced.
        kinds = tuple(type(following) for following in layers[place : place + 3])
        count, step = 1, layer
        if kinds[:2] == (Conv2D, ReLU):
            count, step = 2, ConvStep(layer, layers[place + 1])
            step.follow(steps[-1] if steps else None)
        elif kinds == (Linear, ReLU, Dropout):
            count, step = 3, LinearStep(*layers[place : place + 3])
        elif kinds[:2] == (Linear, ReLU):
            count, step = 2, LinearStep(layer, layers[place + 1])
        elif kinds[0] is Linear and layer.device.is_cuda:
            step = LinearStep(layer)
        elif kinds[0] is LocalResponseNorm and LRNRowsStep.fits(layer):
            step = LRNRowsStep([layer])
        elif kinds[0] is MaxPool2D and MaxPoolRowsStep.fits(layer):
            step = MaxPoolRowsStep([layer])
        steps.append(step)
        place += count
    return steps
