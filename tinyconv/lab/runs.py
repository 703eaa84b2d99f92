"""What to run so that each of the project's kernels is launched, by name and input shape.

`subjects.py` records these runs; a name's first run is the one that shows most.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from layers import (
    Conv2D,
    Device,
    Dropout,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    SoftmaxCrossEntropy,
    Tanh,
)
from layers.fast.bfloat16 import to_bits
from layers.fast.conv import space_to_depth as blocks
from layers.fast.conv.shared_memory import (
    shared_filter_gradient,
    shared_forward,
    shared_input_gradient,
)
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.plan import plan, plan_loss
from layers.fast.precision import BITS, round_into, widen_into
from layers.layer import Buffers, Parameter
from tinyconv.data.augment import Augment
from tinyconv.sgd import SGD


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
    (step,) = plan(layers, Device("cuda:0"))
    x = _random(shape, 9)

    def run() -> None:
        y = step.forward(x)
        step.backward(_random(y.shape))

    return run


def _loss(shape: tuple[int, ...], fast: bool = False) -> Callable[[], None]:
    device = Device("cuda:0")
    loss = plan_loss(device) if fast else SoftmaxCrossEntropy().to(device)

    def run() -> None:
        loss.forward(_random(shape), np.arange(shape[0]) % shape[1])
        loss.backward()

    return run


def _bfloat16(shape: tuple[int, ...]) -> Callable[[], None]:
    device, x = Device("cuda:0"), _random(shape)
    bits = device.empty(shape, BITS)

    def run() -> None:
        round_into(device, "bf16", x, bits)
        widen_into(bits, device.empty(shape, np.float32))

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


def _numbers(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random activations as the kernels of "TF32" or "BF16" take them."""
    numbers = _random(shape, seed)
    return to_bits(numbers) if kind == "BF16" else numbers


def _tensor(
    kind: str, tile: str, shape: tuple[int, ...], stride: int, groups: int
) -> Callable[[], None]:
    """All directions on tensor cores, with 16 filters of 2×2. A layer would not take both tiles."""
    conv = Conv2D(shape[-1], 16, 2, stride, (1, 0), groups)
    y_shape = shape[0], *conv.output_shape(shape[1:])
    device = Device("cuda:0")
    x, dy = _numbers(kind, shape, 0), _numbers(kind, y_shape, 1)
    w, b = _random(conv.weight.value.shape, 2), _random(conv.bias.value.shape, 3)
    y, dx = device.empty(y_shape, x.dtype), device.empty(shape, x.dtype)
    dw = device.empty(w.shape, w.dtype)
    geometry = stride, conv.before, groups, Buffers(device, w.dtype)

    def run() -> None:
        tensor_forward(x, w, b, y, *geometry, relu=True, tile=tile)
        tensor_input_gradient(dy, w, dx, *geometry, mask=x, tile=tile)
        tensor_filter_gradient(x, dy, dw, *geometry, tile=tile)

    return run


def _shared(conv: Conv2D, shape: tuple[int, ...]) -> Callable[[], None]:
    """All directions with tiles in shared memory, for a convolution like `conv`."""
    device = Device("cuda:0")
    x, dy = _random(shape, 0), _random((shape[0], *conv.output_shape(shape[1:])), 1)
    w, b = _random(conv.weight.value.shape, 2), _random(conv.bias.value.shape, 3)
    y, dx, dw = (device.empty(like.shape, like.dtype) for like in (dy, x, w))
    geometry = conv.stride, conv.before, conv.groups

    def run() -> None:
        shared_forward(x, w, b, y, *geometry)
        shared_input_gradient(dy, w, dx, *geometry)
        shared_filter_gradient(x, dy, dw, *geometry)

    return run


def _blocks(kind: str, shape: tuple[int, ...], groups: int) -> Callable[[], None]:
    """To squares of 2×2 and back, for filters of 3×3."""
    conv = Conv2D(shape[-1], 4, 3, 2, 1, groups)
    y_shape = shape[0], *conv.output_shape(shape[1:])
    device = Device("cuda:0")
    buffer = Buffers(device, np.float32)
    x, w = _numbers(kind, shape, 0), _random(conv.weight.value.shape, 1)
    dx, dw = device.empty(shape, x.dtype), device.empty(w.shape, w.dtype)

    def run() -> None:
        image = blocks.image_blocks("x", x, y_shape, 3, 2, 2, 1, groups, buffer)
        blocks.image_from_blocks(image, dx, 2, 1, groups, mask=x)
        filters = blocks.filter_blocks(w, 2, x, buffer)
        if kind == "TF32":  # dw's blocks are float32 in either
            blocks.filter_from_blocks(filters, dw, 2)
        blocks.turned_blocks(w, 2, groups, x, buffer)

    return run


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
    if name in ("tensor_tf32", "tensor_bf16"):
        kind, groups = name[-4:].upper(), 2 - channels % 2
        return {
            f"{kind}, large tiles": _tensor(kind, "large", shape, 1, 1),
            f"{kind}, small tiles, stride 2, groups {groups}": _tensor(
                kind, "small", shape, 2, groups
            ),
        }
    if name == "blocks":
        return {
            f"{kind} in squares of 2×2": _blocks(kind, shape, 2 - channels % 2)
            for kind in ("TF32", "BF16")
        }
    if name == "shared":
        groups = 2 - channels % 2
        return {
            "Conv2D 3×3, 16 filters": _shared(Conv2D(channels, 16, 3), shape),
            f"Conv2D 2×2, stride 2, padding (0, 1), 6 filters, groups {groups}": _shared(
                Conv2D(channels, 6, 2, 2, (0, 1), groups), shape
            ),
        }
    if name == "conv":
        layers = {
            "Conv2D 3×3, padding 1": Conv2D(channels, 4, 3, padding=1),
            "Conv2D 3×3, stride 2, padding (0, 2)": Conv2D(channels, 3, 3, 2, (0, 2)),
            "Conv2D 2×2, stride 3, a group for each channel": Conv2D(
                channels, 2 * channels, 2, 3, 1, groups=channels
            ),
        }
    elif name == "tiled":
        convolutions = {
            "Conv2D 2×2, padding (0, 1), 4 filters": Conv2D(
                channels, 4, 2, padding=(0, 1), algorithm="tiled"
            ),
            "Conv2D 2×2, stride 2, padding 1, 3 filters": Conv2D(
                channels, 3, 2, 2, 1, algorithm="tiled"
            ),
        }
        return {title: _step([conv], shape) for title, conv in convolutions.items()}
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
        return {name: _loss(shape, fast=True)}
    elif name == "crop":
        return _crops(shape)
    else:
        other = {"softmax": _loss, "sgd": _sgd, "bfloat16": _bfloat16}
        return {name: other[name](shape)}
    return {title: _both_ways(layer, shape) for title, layer in layers.items()}
