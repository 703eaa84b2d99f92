"""The cases of `gpu_report.py` for single layers: convolutions in every rung, and the others.

Before a case of ours is timed its results are compared: at small size with the host's loops in
float64, and convolutions at full size with PyTorch's as well.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import limits
import numpy as np
from gpu_bench import MODES, Bench, compare
from gpu_runner import Case, Job

from layers import Conv2D, Flatten, Linear
from layers.fused import FusedStep

RUNGS = "direct", "tiled", "tensor_core"
"""From the readable to the fast; those that there are yet."""


# --- convolutions


def same_conv(layer: Conv2D, algorithm: str) -> Conv2D:
    """A new Conv2D of the same sizes."""
    return Conv2D(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        (layer.before, layer.after),
        layer.groups,
        algorithm,
    )


def with_random_weights(bench: Bench, conv: Conv2D) -> Conv2D:
    """Weights for outputs of about unit size."""
    w, b = conv.weight.value, conv.bias.value
    w[...] = bench.random(*w.shape) / np.sqrt(w[0].size).astype(np.float32)
    b[...] = bench.random(*b.shape)
    return conv


def conv_results(conv: Conv2D, x: Any, dy: Any) -> list[np.ndarray]:
    """y, dx, dw, db, on the host."""
    y = conv.forward(x).copy()
    arrays = y, conv.backward(dy), conv.weight.grad, conv.bias.grad
    return [conv.device.to_host(array) for array in arrays]


def check_against_host(bench: Bench, layer: Conv2D, rung: str) -> None:
    """A few windows of this convolution, next to the host's in float64."""
    conv = with_random_weights(bench, same_conv(layer, rung).to(bench.device))
    host = same_conv(layer, "host").to("cpu", np.float64)
    for mine, theirs in zip(conv.parameters(), host.parameters(), strict=True):
        theirs.value[...] = bench.device.to_host(mine.value)
    height, width = (layer.kernel_size + steps * layer.stride for steps in (2, 3))
    x = bench.random(3, height, width, layer.in_channels)
    dy = bench.random(*conv.forward(x).shape)
    exact = (bench.device.to_host(array).astype(np.float64) for array in (x, dy))
    results = conv_results(conv, x, dy), conv_results(host, *exact)
    for what, mine, right in zip(("y", "dx", "dw", "db"), *results, strict=True):
        compare(f"{what} of a small image", mine, right)


def check_against_torch(bench: Bench, conv: Conv2D, x: Any, dy: Any) -> None:
    """This batch, next to PyTorch's without TF32."""
    torch, pads = bench.torch, (conv.before, conv.after) * 2
    leaves = bench.image(x), bench.image(conv.weight.value), bench.tensor(conv.bias.value).clone()
    with bench.mode(tf32=False):
        for leaf in leaves:
            leaf.requires_grad_()
        padded = torch.nn.functional.pad(leaves[0], pads)
        y = torch.conv2d(padded, *leaves[1:], conv.stride, groups=conv.groups)
        y.backward(bench.image(dy))
        right = [y.detach(), *(leaf.grad for leaf in leaves)]
        right = [(t.permute(0, 2, 3, 1) if t.ndim == 4 else t).cpu().numpy() for t in right]
    for what, mine, theirs in zip(
        ("y", "dx", "dw", "db"), conv_results(conv, x, dy), right, strict=True
    ):
        compare(f"{what} of the batch", mine, theirs)


def rungs(bench: Bench, layer: Conv2D) -> list[str]:
    """The algorithms that Conv2D knows for this device."""
    found = []
    for rung in RUNGS if bench.device.is_cuda else ("host",):
        with contextlib.suppress(ValueError):
            same_conv(layer, rung)
            found.append(rung)
    return found


DIRECTIONS = "forward", "filter gradient", "both gradients"


def conv_cases(bench: Bench) -> Iterator[Case]:
    """Every convolution of the net, every rung and PyTorch's modes, in three directions."""
    net = bench.make_net()
    shape = net.input_shape
    for layer in net:
        if isinstance(layer, Conv2D):
            for direction in DIRECTIONS:
                for rung in rungs(bench, layer):
                    make = our_conv(bench, layer, shape, rung, direction)
                    yield Case("convolutions", f"{layer.name} {direction}", rung, make)
                for mode in MODES if bench.torch else ():
                    make = torch_conv(bench, layer, shape, mode, direction)
                    yield Case("convolutions", f"{layer.name} {direction}", mode, make)
        shape = layer.output_shape(shape)


def conv_work(bench: Bench, layer: Conv2D, shape: tuple, direction: str) -> dict[str, int]:
    """Operations and bytes of a direction, as docs/limits.md counts them."""
    forward, backward = limits.work(layer, shape, bench.batch, direction == "both gradients")
    work = forward if direction == "forward" else backward
    return {"operations": work.operations, "moved": work.moved}


def our_conv(bench: Bench, layer: Conv2D, shape: tuple, rung: str, direction: str) -> Any:
    """`make` of one rung."""

    def make() -> Job:
        if direction == DIRECTIONS[0]:
            check_against_host(bench, layer, rung)
        conv = with_random_weights(bench, same_conv(layer, rung).to(bench.device))
        x = bench.random(bench.batch, *shape)
        dy = bench.random(*conv.forward(x).shape)
        if bench.torch and direction == DIRECTIONS[0]:
            check_against_torch(bench, conv, x, dy)
        conv.input_gradient = direction == "both gradients"
        run = (lambda: conv.forward(x)) if direction == "forward" else (lambda: conv.backward(dy))
        return Job(run, **conv_work(bench, layer, shape, direction))

    return make


def torch_conv(bench: Bench, layer: Conv2D, shape: tuple, mode: str, direction: str) -> Any:
    """`make` of PyTorch; padding that is not the same on all sides is done before, untimed."""

    def make() -> Job:
        torch, (tf32, last) = bench.torch, MODES[mode]
        even = layer.before == layer.after
        pads = [layer.before if even else 0] * 2
        x = bench.image(bench.random(bench.batch, *shape), last)
        if not even:
            x = torch.nn.functional.pad(x, (layer.before, layer.after) * 2)
        weights = with_random_weights(bench, same_conv(layer, "auto").to(bench.device))
        w, b = bench.image(weights.weight.value, last), bench.tensor(weights.bias.value)
        stride, ones = [layer.stride] * 2, [1, 1]
        dy = bench.image(bench.random(bench.batch, *layer.output_shape(shape)), last)
        mask = [direction == "both gradients", True, True]

        def forward() -> None:
            torch.conv2d(x, w, b, stride, pads, ones, layer.groups)

        def backward() -> None:
            torch.ops.aten.convolution_backward(
                dy, x, w, [b.numel()], stride, pads, ones, False, [0, 0], layer.groups, mask
            )

        run = forward if direction == "forward" else backward
        work = conv_work(bench, layer, shape, direction)
        return Job(run, **work, around=lambda: bench.mode(tf32))

    return make


# --- the other layers


def layer_cases(bench: Bench) -> Iterator[Case]:
    """Every layer without a convolution, alone and as the step it is computed in, and PyTorch's."""
    reference = {layer.name: layer for layer in bench.make_net()}
    net = bench.make_net().to(bench.device, fuse=False)
    shapes = dict(zip(net, [net.input_shape, *net.output_shapes(net.input_shape)], strict=False))
    alone = [layer for layer in net if not isinstance(layer, Conv2D | Flatten)]
    net.fuse = True
    steps = [
        step
        for step in net.steps
        if isinstance(step, FusedStep) and not isinstance(step.layers[0], Conv2D)
    ]
    for part in (*alone, *steps):
        fused = isinstance(part, FusedStep)
        first = part.layers[0] if fused else part
        parts = part.layers if fused else [part]
        who = ["tinyconv, as in the net" if fused else "tinyconv, layer alone"]
        who += list(MODES)[:2] if bench.torch and not fused else []
        if bench.torch and not fused and isinstance(first, Linear):
            who.append("PyTorch, TF32")
        for place, direction in enumerate(("forward", "backward")):
            work = limits.work(first, shapes[first], bench.batch)[place]
            for name in who:
                arguments = bench, parts, shapes[first], direction, work
                if name in MODES:
                    make = torch_layer(*arguments, name)
                else:
                    make = our_layer(*arguments, part, [reference[layer.name] for layer in parts])
                yield Case("layers", f"{part.name} {direction}", name, make)


def check_layer(bench: Bench, part: Any, parts: list, host: list, shape: tuple) -> None:
    """Two inputs through the part, forward and backward, next to the host's in float64."""
    for layer in (*host, *parts):
        layer.set_step(0)
    x = bench.random(2, *shape)
    y = part.forward(x)
    dy = bench.random(*y.shape)
    mine = [bench.device.to_host(array).copy() for array in (y, part.backward(dy))]
    right, d_right = (bench.device.to_host(array).astype(np.float64) for array in (x, dy))
    for layer in host:
        right = layer.to("cpu", np.float64).forward(right)
    for layer in reversed(host):
        d_right = layer.backward(d_right)
    compare("y of two inputs", mine[0], right)
    compare("dx of two inputs", mine[1], d_right)


def our_layer(
    bench: Bench, parts: list, shape: tuple, direction: str, work: Any, part: Any, host: list
) -> Any:
    """`make` of `part`, which computes the layers `parts`, as those in `host` do on the host."""

    def make() -> Job:
        check_layer(bench, part, parts, host, shape)
        x = bench.random(bench.batch, *shape)
        dy = bench.random(*part.forward(x).shape)
        run = (lambda: part.forward(x)) if direction == "forward" else (lambda: part.backward(dy))
        return Job(run, work.operations, work.moved)

    return make


def torch_layer(
    bench: Bench, parts: list, shape: tuple, direction: str, work: Any, mode: str
) -> Any:
    """`make` of PyTorch's modules for the same layers."""

    def make() -> Job:
        from torch_twin import modules_of

        torch, (tf32, last) = bench.torch, MODES[mode]
        x = bench.image(bench.random(bench.batch, *shape), last).requires_grad_()
        module = torch.nn.Sequential(*(m for layer in parts for m in modules_of(layer, False)))
        module = module.to(x.device)
        with bench.mode(tf32):
            y = module(x)
        dy = torch.randn_like(y)
        inputs = [x, *module.parameters()]

        def backward() -> None:
            torch.autograd.grad(y, inputs, dy, retain_graph=True)

        run = (lambda: module(x)) if direction == "forward" else backward
        return Job(run, work.operations, work.moved, around=lambda: bench.mode(tf32))

    return make
