"""What is run so that kernels are launched: layers, steps and the loss, forward and backward."""

from collections.abc import Callable
from typing import Any

import numpy as np

from layers import Device, Layer, SoftmaxCrossEntropy
from layers.fast.bfloat16 import to_bits
from layers.fast.plan import plan, plan_loss
from tinyconv.lab.cases.case import Runs, Shape

Run = Callable[[], Any]


def random(shape: Shape, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def activations(shape: Shape, dtype: str, seed: int = 0) -> np.ndarray:
    """The same numbers, stored as `dtype`."""
    numbers = random(shape, seed)
    return to_bits(numbers) if dtype == "bfloat16" else numbers.astype(dtype)


def ready(layer: Layer, dtype: str) -> None:
    """Move the layer to the GPU and give it random weights."""
    layer.to("cuda:0", dtype)
    for number, parameter in enumerate(layer.parameters()):
        parameter.value[...] = random(parameter.value.shape, number)


def of_layers(make: Callable[[int], dict[str, Layer]]) -> Runs:
    """Both ways through each layer by itself. make: from the channels of an input, by title."""

    def runs(shape: Shape, dtype: str) -> dict[str, Run]:
        return {title: both_ways(layer, shape, dtype) for title, layer in make(shape[-1]).items()}

    return runs


def of_steps(make: Callable[[int], dict[str, list[Layer]]]) -> Runs:
    """Both ways through the one step that layers make on a GPU. make: as in `of_layers`."""

    def runs(shape: Shape, dtype: str) -> dict[str, Run]:
        return {title: step(layers, shape, dtype) for title, layers in make(shape[-1]).items()}

    return runs


def both_ways(layer: Layer, shape: Shape, dtype: str) -> Run:
    """`forward` and `backward` of a layer, with a random dy."""
    ready(layer, dtype)
    # Shuffled multiples of 0.01: pooling windows without ties.
    order = np.random.default_rng(1).permutation(int(np.prod(shape)))
    x = (order.reshape(shape) * 0.01 - 1).astype(dtype)

    def run() -> None:
        layer.backward(activations(layer.forward(x).shape, dtype))

    return run


def step(layers: list[Layer], shape: Shape, dtype: str) -> Run:
    """The same of the one step that `layers` make on a GPU."""
    number, precision = ("float32", "bf16") if dtype == "bfloat16" else (dtype, "fp32")
    for layer in layers:
        ready(layer, number)
    (one,) = plan(layers, Device("cuda:0"), number, precision, float32_ends=False)
    x = activations(shape, dtype, 9)

    def run() -> None:
        one.backward(activations(one.forward(x).shape, dtype))

    return run


def loss(shape: Shape, dtype: str, fast: bool = False) -> Run:
    """The loss of (N, classes) logits, by the kernels of one tier."""
    device = Device("cuda:0")
    made = plan_loss(device, dtype) if fast else SoftmaxCrossEntropy().to(device, dtype)

    def run() -> None:
        made.forward(activations(shape, dtype), np.arange(shape[0]) % shape[1])
        made.backward()

    return run
