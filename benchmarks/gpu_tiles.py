"""The cases of `gpu_report.py --autotune`: each convolution by each tile on tensor cores."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from gpu_cases import Bench
from gpu_layers import convolutions, random_conv
from gpu_runner import Case, Job

from layers import Conv2D
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile_table import TILES, layer_key
from layers.layer import Buffers

ROUNDS = 3
PRODUCTS = "forward", "input gradient", "filter gradient"
PRECISIONS = "tf32", "bf16"


def tile_cases(bench: Bench, batches: tuple[int, ...], rounds: int = ROUNDS) -> Iterator[Case]:
    """Both tiles in turn, for all products of a step: all repeats with one, then the other."""
    for count in batches:
        for place, (layer, shape) in enumerate(convolutions(bench)):
            for direction in PRODUCTS:
                if place == 0 and direction == "input gradient":
                    continue  # nothing learns from the gradient with respect to the photo
                for precision in PRECISIONS:
                    x_shape, w_shape = (count, *shape), layer.weight.value.shape
                    geometry = layer.stride, layer.before, layer.groups
                    key = layer_key(direction, precision, x_shape, w_shape, *geometry)
                    for tile in list(TILES) * rounds:
                        make = partial(one_product, bench, layer, x_shape, direction, precision)
                        yield Case("tiles", key, tile, partial(make, tile))


def one_product(
    bench: Bench, layer: Conv2D, x_shape: tuple, direction: str, precision: str, tile: str
) -> Job:
    """One product with one tile, after a check that the other one gives the same bits."""
    x = bench.stored(bench.random(*x_shape), precision)
    y_shape = x_shape[0], *layer.output_shape(x_shape[1:])
    dy = bench.stored(bench.random(*y_shape), precision)
    conv = random_conv(bench, layer, "tensor")
    w, b = conv.weight.value, conv.bias.value
    rest = layer.stride, layer.before, layer.groups, Buffers(bench.device, np.float32)
    like = {"forward": dy, "input gradient": x, "filter gradient": w}[direction]
    out = bench.device.empty(like.shape, like.dtype)

    def run(tile: str = tile) -> None:
        if direction == "forward":
            tensor_forward(x, w, b, out, *rest, relu=True, tile=tile)
        elif direction == "input gradient":
            tensor_input_gradient(dy, w, out, *rest, tile=tile)
        else:
            tensor_filter_gradient(x, dy, out, *rest, tile=tile)

    results = []
    for name in TILES:
        run(name)
        results.append(bench.device.to_host(out).copy())
    if not np.array_equal(*results):
        raise ValueError("the two tiles give different bits")
    return Job(run)
