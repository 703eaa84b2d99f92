"""The cases of `gpu_report.py` for the layers without a convolution.

Each is timed as `layers/*.py` computes it (simple) and as the step of the plan (fast); before that,
its results for two inputs are compared with the host's in float64. In BF16 the inputs and outputs
of a step are bfloat16; TF32 makes a difference to `Linear` alone. Of ReLU and Dropout, which the
plan joins to the layer before, the first one is timed alone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import limits
import numpy as np
from gpu_bench import IN_WORDS, MODES, Bench, compare
from gpu_runner import Case, Job

from layers import Conv2D, Dropout, Flatten, Linear, ReLU
from layers.fast.step import Step

PYTORCH = "PyTorch", "PyTorch, channels_last", "PyTorch, BF16, channels_last"


class Part(NamedTuple):
    """A layer, or a step, of a net on the device."""

    step: Any
    layers: list[Any]
    host: list[Any]
    """The same layers on the host; only their sizes and constants are used."""
    shape: tuple[int, ...]
    """Of one input."""
    precision: str

    @property
    def is_fast(self) -> bool:
        return isinstance(self.step, Step)

    @property
    def is_linear(self) -> bool:
        return isinstance(self.layers[0], Linear)


def simple_parts(bench: Bench, host: Any) -> list[Part]:
    """The layers one by one, without convolutions; `host`: a net."""
    net = bench.make_net().to(bench.device, precision="fp32", kernels="simple")
    shapes = shapes_of(net)
    found, seen = [], set()
    for layer in net:
        again = isinstance(layer, ReLU | Dropout) and type(layer) in seen
        if not isinstance(layer, Conv2D | Flatten) and not again:
            found.append(Part(layer, [layer], [host[layer.name]], shapes[layer], "fp32"))
        seen.add(type(layer))
    return found


def shapes_of(net: Any) -> dict[Any, tuple[int, ...]]:
    """The shape of one input of each layer."""
    return dict(zip(net, [net.input_shape, *net.output_shapes(net.input_shape)], strict=False))


def fast_parts(bench: Bench, host: Any, precision: str) -> list[Part]:
    """The steps of the plan, without those of convolutions and views; `host`: a net."""
    net = bench.make_net().to(bench.device, precision=precision)
    shapes = shapes_of(net)
    found = []
    for step in net.steps:
        stands_for = getattr(step, "layers", None)
        if stands_for and not isinstance(stands_for[0], Conv2D | Flatten):
            same = [host[layer.name] for layer in step.layers]
            found.append(Part(step, step.layers, same, shapes[step.layers[0]], precision))
    return found


def layer_cases(bench: Bench) -> Iterator[Case]:
    """Every part, both ways, in every precision, and PyTorch's."""
    host = bench.make_net()
    by_precision = [fast_parts(bench, host, precision) for precision in bench.precisions]
    simple = [[part] for part in simple_parts(bench, host)]
    for same in [*simple, *zip(*by_precision, strict=True)]:
        first = same[0]
        for direction in ("forward", "backward"):
            what = f"{first.step.name} {direction}"
            for part in same:
                if part.precision == "tf32" and not part.is_linear:
                    continue
                who = "tinyconv" if part.is_fast else "tinyconv, simple"
                who += IN_WORDS[part.precision]
                yield Case("layers", what, who, our_layer(bench, part, direction))
            if bench.torch and not first.is_fast:
                for name in (*PYTORCH, *(["PyTorch, TF32"] if first.is_linear else [])):
                    yield Case("layers", what, name, torch_layer(bench, first, direction, name))


def check_part(bench: Bench, part: Part) -> None:
    """Two inputs, forward and backward, next to the host's in float64 of what is rounded alike."""
    for theirs, ours in zip(part.host, part.layers, strict=True):
        theirs.to("cpu", np.float64)
        for right, mine in zip(theirs.parameters(), ours.parameters(), strict=True):
            is_factor = mine is ours.parameters()[0]
            right.value[...] = bench.rounded(mine.value, part.precision if is_factor else "fp32")
        ours.set_step(0)
        theirs.set_step(0)
    x = bench.random(2, *part.shape)
    y = part.step.forward(bench.stored(x, part.precision))
    dy = bench.random(*y.shape)
    dx = part.step.backward(bench.stored(dy, part.precision))
    right, d_right = (bench.rounded(array, part.precision).astype(np.float64) for array in (x, dy))
    for layer in part.host:
        right = layer.forward(right)
    for layer in reversed(part.host):
        d_right = layer.backward(d_right)
    compare("y of two inputs", bench.device.to_host(y), right)
    compare("dx of two inputs", bench.device.to_host(dx), d_right)


def layer_work(bench: Bench, part: Part, direction: str, precision: str) -> Any:
    """As docs/limits.md counts it; ReLU and dropout behind a layer cost nothing."""
    word = limits.HALF if precision == "bf16" else limits.WORD
    passes = limits.work(part.layers[0], part.shape, bench.batch, word=word)
    return passes[0] if direction == "forward" else passes[1]


def our_layer(bench: Bench, part: Part, direction: str) -> Any:
    """`make` of one part."""

    def make() -> Job:
        forward = direction == "forward"
        if forward:
            check_part(bench, part)
        x = bench.stored(bench.random(bench.batch, *part.shape), part.precision)
        dy = bench.stored(bench.random(*part.step.forward(x).shape), part.precision)
        run = (lambda: part.step.forward(x)) if forward else (lambda: part.step.backward(dy))
        work = layer_work(bench, part, direction, part.precision)
        return Job(run, work.operations, work.moved)

    return make


def torch_layer(bench: Bench, part: Part, direction: str, name: str) -> Any:
    """`make` of PyTorch's modules for the same layers."""

    def make() -> Job:
        from torch_twin import modules_of

        torch, mode = bench.torch, MODES[name]
        x = bench.image(bench.random(bench.batch, *part.shape), mode).requires_grad_()
        module = torch.nn.Sequential(
            *(m for layer in part.layers for m in modules_of(layer, False))
        )
        module = module.to(x.device)

        def forward() -> Any:
            with bench.autocast(mode.precision):
                return module(x)

        with bench.mode(mode.precision):
            y = forward()
        dy = torch.randn_like(y)
        inputs = [x, *module.parameters()]

        def backward() -> None:
            torch.autograd.grad(y, inputs, dy, retain_graph=True)

        work = layer_work(bench, part, direction, mode.precision)
        run = forward if direction == "forward" else backward
        return Job(run, work.operations, work.moved, around=lambda: bench.mode(mode.precision))

    return make
