"""The cases of `gpu_report.py` for convolutions and other layers.

Before one of ours is timed, its results for two inputs are compared with the host's in float64; the
factors of products are rounded before as our kernel rounds them.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import limits
import numpy as np
from gpu_cases import IN_WORDS, MODES, Bench, compare
from gpu_runner import Case, Job

from layers import Conv2D, Device, Dropout, Flatten, Linear, ReLU
from layers.fast.plan import plan
from layers.fast.step import Step


class Part(NamedTuple):
    """What computes `layers`, on the device: a step, or the one layer itself."""

    step: Any
    layers: list[Any]
    shape: tuple[int, ...]
    """Of one input."""
    precision: str


RUNGS = {"direct": ["fp32"], "shared": ["fp32"], "tiled": ["fp32"], "tensor": ["tf32", "bf16"]}
"""On a GPU, from the readable to the fast, and the precisions that each is for."""

DIRECTIONS = "forward", "filter gradient", "both gradients"
PYTORCH = "PyTorch", "PyTorch, channels_last", "PyTorch, BF16, channels_last"
"""Its modes for the other layers; TF32 makes a difference to Linear alone."""


def rungs(bench: Bench) -> list[tuple[str, str]]:
    """(algorithm, precision) of ours on this device."""
    known = RUNGS if bench.device.is_cuda else {"host": list(IN_WORDS)}
    return [(rung, p) for rung, many in known.items() for p in many if p in bench.precisions]


def convolutions(bench: Bench) -> Iterator[tuple[Conv2D, tuple[int, ...]]]:
    """Those of the net, with the shape of an image that each sees."""
    for layer, shape in shapes_of(bench.host_net).items():
        if isinstance(layer, Conv2D):
            yield layer, shape


def shapes_of(net: Any) -> dict[Any, tuple[int, ...]]:
    """The shape of one input of each layer."""
    return dict(zip(net, [net.input_shape, *net.output_shapes(net.input_shape)], strict=False))


def same_conv(layer: Conv2D, algorithm: str = "auto") -> Conv2D:
    """A new Conv2D of the same sizes."""
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
    return Conv2D(*sizes, (layer.before, layer.after), layer.groups, algorithm)


def random_conv(bench: Bench, layer: Conv2D, algorithm: str) -> Conv2D:
    """The same with weights for outputs of about unit size, on the device."""
    conv = same_conv(layer, algorithm).to(bench.device)
    w, b = conv.weight.value, conv.bias.value
    w[...] = bench.random(*w.shape) / np.sqrt(w[0].size).astype(np.float32)
    b[...] = bench.random(*b.shape)
    return conv


def conv_part(bench: Bench, layer: Conv2D, shape: tuple, algorithm: str, precision: str) -> Part:
    """A new convolution of those sizes, and what computes it by this algorithm."""
    conv = random_conv(bench, layer, algorithm)
    (step,) = plan([conv], bench.device, np.float32, precision, float32_ends=False)
    return Part(step, [conv], shape, precision)


def conv_job(bench: Bench, layer: Conv2D, shape: tuple, rung: Any, direction: str) -> Job:
    return our_job(bench, conv_part(bench, layer, shape, *rung), direction)


def conv_cases(bench: Bench) -> Iterator[Case]:
    """Every convolution of the net, every rung and PyTorch's modes, in three directions."""
    for layer, shape in convolutions(bench):
        for direction in DIRECTIONS:
            what = f"{layer.name} {direction}"
            for rung in rungs(bench):
                make = partial(conv_job, bench, layer, shape, rung, direction)
                yield Case("convolutions", what, f"{rung[0]}{IN_WORDS[rung[1]]}", make)
            for name in MODES if bench.torch else ():
                make = partial(torch_job, bench, [layer], shape, direction, name)
                yield Case("convolutions", what, name, make)


def parts(bench: Bench, kernels: str, precision: str) -> list[Part]:
    """The steps of a net on the device, without convolutions, views and conversions.

    kernels "fast": without the layers that the plan leaves to the book; "simple": of ReLU and
    Dropout, which the plan joins to the layer before, the first one alone.
    """
    net = bench.make_net().to(bench.device, precision=precision, kernels=kernels)
    shapes, seen, found = shapes_of(net), set(), []
    for step in net.steps:
        layers = step.layers if isinstance(step, Step) else [step]
        again = isinstance(step, ReLU | Dropout) and type(step) in seen
        seen.add(type(step))
        if layers and not isinstance(layers[0], Conv2D | Flatten) and not again:
            found.append(Part(step, layers, shapes[layers[0]], precision))
    return [part for part in found if isinstance(part.step, Step) == (kernels == "fast")]


def layer_cases(bench: Bench) -> Iterator[Case]:
    """The other layers, as `layers/*.py` and as the plan compute them, and PyTorch's."""
    for kernels, precision in [("simple", "fp32"), *(("fast", p) for p in bench.precisions)]:
        who = ("tinyconv" if kernels == "fast" else "tinyconv, simple") + IN_WORDS[precision]
        for part in parts(bench, kernels, precision):
            linear = isinstance(part.layers[0], Linear)
            for direction in ("forward", "backward") if linear or precision != "tf32" else ():
                what = f"{part.step.name} {direction}"
                yield Case("layers", what, who, partial(our_job, bench, part, direction))
                if bench.torch and kernels == "simple":
                    for name in (*PYTORCH, "PyTorch, TF32") if linear else PYTORCH:
                        make = partial(torch_job, bench, part.layers, part.shape, direction, name)
                        yield Case("layers", what, name, make)


def check_part(bench: Bench, part: Part) -> None:
    """Two inputs, forward and backward, beside the host's in float64 of what is rounded alike."""
    device, is_conv = bench.device, isinstance(part.layers[0], Conv2D)
    if is_conv:
        layers: list[Any] = [same_conv(part.layers[0])]
    else:
        layers = [bench.host_net[layer.name] for layer in part.layers]
    for theirs, ours in zip(layers, part.layers, strict=True):
        theirs.to("cpu", np.float64)
        for right, value in zip(theirs.parameters(), ours.parameters(), strict=True):
            is_factor = value is ours.parameters()[0]
            right.value[...] = bench.rounded(value.value, part.precision if is_factor else "fp32")
        ours.set_step(0)
        theirs.set_step(0)
    x = bench.random(2, *part.shape)
    y = device.to_host(part.step.forward(bench.stored(x, part.precision))).copy()
    dy = bench.random(*y.shape)
    dx = device.to_host(part.step.backward(bench.stored(dy, part.precision)))
    right, d_right = (bench.rounded(array, part.precision) for array in (x, dy))
    steps = plan(layers, Device("cpu"), np.float64) if is_conv else layers  # BLAS for products
    for step in steps:
        right = step.forward(right)
    for step in reversed(steps):
        d_right = step.backward(d_right)
    compare("y of two inputs", y, right)
    compare("dx of two inputs", dx, d_right)
    if is_conv:
        w, b = part.layers[0].parameters()
        compare("dw of two inputs", device.to_host(w.grad), layers[0].weight.grad)
        # dL/db is not a product: what it adds up is rounded only where it is stored so.
        summed = bench.rounded(dy, "bf16" if part.precision == "bf16" else "fp32")
        compare("db of two inputs", device.to_host(b.grad), summed.sum(axis=(0, 1, 2)))


def work(bench: Bench, layer: Any, shape: tuple, direction: str, precision: str) -> dict[str, int]:
    """Operations and bytes, as docs/limits.md counts them; ReLU behind a layer costs nothing."""
    word = limits.word_of(precision)
    passes = limits.work(layer, shape, bench.batch, direction != "filter gradient", word)
    return dict(zip(("operations", "moved"), passes[direction != "forward"], strict=True))


def our_job(bench: Bench, part: Part, direction: str) -> Job:
    """One part in one direction."""
    step, layer = part.step, part.layers[0]
    if direction == "forward":
        check_part(bench, part)
    x = bench.stored(bench.random(bench.batch, *part.shape), part.precision)
    dy = bench.stored(bench.random(*step.forward(x).shape), part.precision)
    layer.input_gradient = direction != "filter gradient"
    run = (lambda: step.forward(x)) if direction == "forward" else (lambda: step.backward(dy))
    return Job(run, **work(bench, layer, part.shape, direction, part.precision))


def torch_job(bench: Bench, layers: list[Any], shape: tuple, direction: str, name: str) -> Job:
    """PyTorch's modules for the same layers, backward through its autograd.

    Padding that is not the same on all sides is done before, untimed. The arrays of a convolution
    in BF16 are bfloat16; what autocast does to other layers' is timed.
    """
    from torch_twin import modules_of

    torch, mode = bench.torch, MODES[name]
    x = bench.image(bench.random(bench.batch, *shape), mode)
    modules = [module for layer in layers for module in modules_of(layer, False)]
    if isinstance(modules[0], torch.nn.ZeroPad2d):
        x = modules.pop(0)(x)
    is_conv = isinstance(layers[0], Conv2D)
    module = torch.nn.Sequential(*modules).to(x.device, x.dtype if is_conv else None)
    if mode.last:
        module = module.to(memory_format=torch.channels_last)
    x.requires_grad_(direction != "filter gradient")

    def forward() -> Any:
        with bench.autocast(mode.precision):
            return module(x)

    with bench.mode(mode.precision):
        y = forward()
    dy = torch.randn_like(y)
    inputs = [array for array in (x, *module.parameters()) if array.requires_grad]

    def backward() -> None:
        torch.autograd.grad(y, inputs, dy, retain_graph=True)

    return Job(
        forward if direction == "forward" else backward,
        **work(bench, layers[0], shape, direction, mode.precision),
        around=partial(bench.mode, mode.precision),
    )
