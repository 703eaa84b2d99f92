"""What `sanitize.py` launches: every kernel of the project, by the layers that use it.

The launches of `tinyconv/lab/cases/` are mostly float32's, on hostile shapes. Here stand beside
them: every tile of the tensor-core kernels, with channels that are no whole chunks,
and a net with every kind of layer in bfloat16.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from layers import (  # noqa: E402
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from layers.fast.bfloat16 import to_bits  # noqa: E402
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient  # noqa: E402
from layers.fast.conv.tensor_gradients import tensor_filter_gradient  # noqa: E402
from layers.fast.conv.tile_table import TILES  # noqa: E402
from layers.layer import Buffers  # noqa: E402
from tinyconv import SGD, Sequential  # noqa: E402
from tinyconv.initialize import initialize  # noqa: E402
from tinyconv.lab.cases import GROUPS, launches, recorded  # noqa: E402
from tinyconv.lab.cases.case import CaseLaunch  # noqa: E402
from tinyconv.step import TrainingStep  # noqa: E402


def every_launch() -> Iterator[CaseLaunch]:
    """All launches, recorded in the simulator one after the other."""
    for name in GROUPS:
        yield from launches(name)
    for kind, values in (("TF32", np.copy), ("BF16", to_bits)):
        for tile in TILES:
            yield from recorded(f"tensor cores, {kind}, {tile} tile", tensor_run(values, tile))
    for kernels, precision in (("simple", "fp32"), ("fast", "fp32"), ("fast", "bf16")):
        run = step_run(kernels, precision)
        yield from recorded(f"a step, {kernels} kernels, {precision}", run)


def tensor_run(values: Callable[[np.ndarray], np.ndarray], tile: str) -> Callable[[], None]:
    """All products of a convolution that needs every rearrangement; `values`: of float32."""
    rng = np.random.default_rng(3)
    conv = Conv2D(6, 10, 3, stride=2, padding=(0, 1), groups=2)
    x = values(rng.standard_normal((2, 5, 4, 6), np.float32))
    dy = values(rng.standard_normal((2, *conv.output_shape(x.shape[1:])), np.float32))
    w = rng.standard_normal(conv.weight.value.shape, np.float32)
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    rest = conv.stride, conv.before, conv.groups, Buffers(Device("cuda:0"), np.float32)

    def run() -> None:
        tensor_forward(x, w, conv.bias.value, y, *rest, relu=True, tile=tile)
        tensor_input_gradient(dy, w, dx, *rest, mask=x, tile=tile)
        tensor_filter_gradient(x, dy, dw, *rest, tile=tile)

    return run


def step_run(kernels: str, precision: str) -> Callable[[], None]:
    """A training step and a test of a net with every kind of layer."""
    layers = {
        "conv1": Conv2D(8, 5, 2),
        "relu1": ReLU(),
        "norm1": LocalResponseNorm(3),
        "pool1": MaxPool2D(3, 2),
        "tanh2": Tanh(),
        "flatten": Flatten(),
        "fc3": Linear(20, 7),
        "relu3": ReLU(),
        "drop3": Dropout(0.3),
        "fc4": Linear(7, 4),
    }
    net = initialize(Sequential(layers, (7, 6, 8)))
    net.to("cuda:0", precision=precision, kernels=kernels)
    step = TrainingStep(net, net.loss(), SGD(net.parameters()), graph=False)
    x = np.random.default_rng(4).standard_normal((2, 7, 6, 8), np.float32)

    def run() -> None:
        step.run(x, np.array([1, 3]), 0)
        net.forward(x, train=False)

    return run
