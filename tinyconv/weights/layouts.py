"""Where the weights of our layers are in the files of other programs, and in which order.

    ours                              PyTorch, ONNX, Caffe
    Conv2D.weight (K, R, S, C/g)      (K, C/g, R, S)
    Linear.weight (out, in)           (out, in)
    ... behind Flatten (out, H·W·C)   (out, C·H·W)

All are permutations: values keep their bits in both directions.
"""

from dataclasses import dataclass

import numpy as np

from layers import Conv2D, Device, Flatten, Layer, Linear
from tinyconv.sequential import Sequential


@dataclass(frozen=True)
class Placed:
    """A layer with weights, its name in PyTorch's layout, and the map (H, W, C) it flattens."""

    layer: Layer
    name: str
    flattens: tuple[int, ...] | None


def placed(net: Sequential) -> list[Placed]:
    """The layers with weights as PyTorch names them: features.N before Flatten, classifier.N.

    N is the place in `net`, counted from 0, and again behind Flatten: for the one-column net of
    2014 the names of torchvision. ValueError without input_shape, or for weights of other kinds.
    """
    if net.input_shape is None:
        raise ValueError("the net has no input_shape (H, W, C); give it to Sequential")
    before = [net.input_shape, *net.output_shapes(net.input_shape)]
    found: list[Placed] = []
    part, first, flat = "features", 0, None
    for place, layer in enumerate(net):
        if isinstance(layer, Flatten):
            part, first, flat = "classifier", place + 1, before[place]
        elif isinstance(layer, Conv2D | Linear):
            maps = flat if isinstance(layer, Linear) and flat and len(flat) == 3 else None
            found.append(Placed(layer, f"{part}.{place - first}", maps))
            flat = None
        elif layer.parameters():
            raise ValueError(f"{layer.name}: no layout for the weights of {type(layer).__name__}")
    return found


def channels_first(each: Placed) -> tuple[np.ndarray, np.ndarray]:
    """The layer's weight and bias in PyTorch's layout, copies on the host."""
    weight, bias = (np.array(Device.to_host(p.value)) for p in each.layer.parameters())
    if weight.ndim == 4:
        weight = np.moveaxis(weight, -1, 1)
    elif each.flattens:
        maps = weight.reshape(len(weight), *each.flattens)
        weight = np.moveaxis(maps, -1, 1).reshape(len(weight), -1)
    return np.ascontiguousarray(weight), bias


def put(each: Placed, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set the layer's parameters from arrays in PyTorch's layout. ValueError for other shapes."""
    expected = [array.shape for array in channels_first(each)]
    for array, shape, what in zip((weight, bias), expected, ("weight", "bias"), strict=True):
        if array.shape != shape:
            raise ValueError(
                f"{each.layer.name}: the {what} in the file is {array.shape}, the net has {shape}"
            )
    if weight.ndim == 4:
        weight = np.moveaxis(weight, 1, -1)
    elif each.flattens:
        height, width, channels = each.flattens
        maps = weight.reshape(len(weight), channels, height, width)
        weight = np.moveaxis(maps, 1, -1).reshape(len(weight), -1)
    for parameter, array in zip(each.layer.parameters(), (weight, bias), strict=True):
        parameter.value[...] = parameter.device.array(
            np.ascontiguousarray(array), parameter.value.dtype
        )
