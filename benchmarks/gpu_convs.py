"""The cases of `gpu_report.py` for convolutions: rungs, precisions, directions, and PyTorch's.

Before a case of ours is timed its results are compared: at small size with the host's loops in
float64, at full size with PyTorch's in float32; both get factors that are rounded as our kernel
rounds them (`TOLERANCE` in `gpu_bench.py`).
"""

from collections.abc import Iterator
from typing import Any

import limits
import numpy as np
from gpu_bench import IN_WORDS, MODES, Bench, compare
from gpu_runner import Case, Job

from layers import Conv2D
from layers.fast.plan import plan

RUNGS = {"direct": ["fp32"], "shared": ["fp32"], "tiled": ["fp32"], "tensor": ["tf32", "bf16"]}
"""On a GPU, from the readable to the fast, and the precisions that each is for."""

RESULTS = "y", "dx", "dw", "db"
DIRECTIONS = "forward", "filter gradient", "both gradients"


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


def random_conv(bench: Bench, layer: Conv2D, algorithm: str = "auto") -> Conv2D:
    """The same with weights for outputs of about unit size, on the device."""
    conv = same_conv(layer, algorithm).to(bench.device)
    w, b = conv.weight.value, conv.bias.value
    w[...] = bench.random(*w.shape) / np.sqrt(w[0].size).astype(np.float32)
    b[...] = bench.random(*b.shape)
    return conv


def planned(bench: Bench, conv: Conv2D, precision: str) -> Any:
    """What computes `conv` by its algorithm: itself, or a step."""
    (step,) = plan([conv], bench.device, np.float32, precision, float32_ends=False)
    return step


# --- checks


def conv_results(step: Any, conv: Conv2D, x: Any, dy: Any) -> list[np.ndarray]:
    """y, dx, dw, db of `step`, which computes `conv`, on the host."""
    y = step.forward(x).copy()
    arrays = y, step.backward(dy), conv.weight.grad, conv.bias.grad
    return [conv.device.to_host(array) for array in arrays]


def check(bench: Bench, what: str, step: Any, conv: Conv2D, x: Any, dy: Any, oracle: Any) -> None:
    """Our results for x and dy, float32, next to the oracle's of the rounded ones.

    oracle(x, w, b, dy), all on the host, gives y, dx and dw.
    """
    precision = getattr(step, "precision", "fp32")
    mine = conv_results(step, conv, bench.stored(x, precision), bench.stored(dy, precision))
    factors = [bench.rounded(array, precision) for array in (x, conv.weight.value, dy)]
    right = oracle(*factors[:2], bench.device.to_host(conv.bias.value), factors[2])
    # dL/db is no product: what it adds up is rounded only where it is stored so.
    summed = factors[2] if precision == "bf16" else bench.device.to_host(dy)
    right = [*right, summed.sum(axis=(0, 1, 2), dtype=np.float64)]
    for name, ours, theirs in zip(RESULTS, mine, right, strict=True):
        compare(f"{name} of {what}", ours, theirs)


def check_against_host(bench: Bench, step: Any, conv: Conv2D) -> None:
    """A few windows, next to the host's in float64."""

    def oracle(x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
        host = same_conv(conv, "auto").to("cpu", np.float64)
        host.weight.value[...], host.bias.value[...] = w, b
        return conv_results(host, host, x.astype(np.float64), dy.astype(np.float64))[:3]

    height, width = (conv.kernel_size + steps * conv.stride for steps in (2, 3))
    x = bench.random(3, height, width, conv.in_channels)
    dy = bench.random(3, *conv.output_shape(x.shape[1:]))
    check(bench, "a small image", step, conv, x, dy, oracle)


def check_against_torch(bench: Bench, step: Any, conv: Conv2D, x: Any, dy: Any) -> None:
    """This batch, next to PyTorch's in float32."""

    def oracle(x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
        torch, pads = bench.torch, (conv.before, conv.after) * 2
        x, w, b, dy = (bench.image(bench.device.array(array)) for array in (x, w, b, dy))
        with bench.mode("fp32"):
            for leaf in (x, w):
                leaf.requires_grad_()
            padded = torch.nn.functional.pad(x, pads)
            y = torch.conv2d(padded, w, b, conv.stride, groups=conv.groups)
            y.backward(dy)
            results = y.detach(), x.grad, w.grad
            return [result.permute(0, 2, 3, 1).cpu().numpy() for result in results]

    check(bench, "the batch", step, conv, x, dy, oracle)


# --- cases


def rungs(bench: Bench) -> list[tuple[str, str]]:
    """(algorithm, precision) of ours on this device."""
    known = RUNGS if bench.device.is_cuda else {"host": list(IN_WORDS)}
    return [
        (algorithm, precision)
        for algorithm, precisions in known.items()
        for precision in precisions
        if precision in bench.precisions
    ]


def convolutions(bench: Bench) -> Iterator[tuple[Conv2D, tuple[int, ...]]]:
    """Those of the net, with the shape of an image that each sees."""
    net = bench.make_net()
    shape = net.input_shape
    for layer in net:
        if isinstance(layer, Conv2D):
            yield layer, shape
        shape = layer.output_shape(shape)


def conv_cases(bench: Bench) -> Iterator[Case]:
    """Every convolution of the net, every rung and PyTorch's modes, in three directions."""
    for layer, shape in convolutions(bench):
        for direction in DIRECTIONS:
            for rung in rungs(bench):
                make = our_conv(bench, layer, shape, rung, direction)
                who = f"{rung[0]}{IN_WORDS[rung[1]]}"
                yield Case("convolutions", f"{layer.name} {direction}", who, make)
            for mode in MODES if bench.torch else ():
                make = torch_conv(bench, layer, shape, mode, direction)
                yield Case("convolutions", f"{layer.name} {direction}", mode, make)


def conv_work(
    bench: Bench, layer: Conv2D, shape: tuple, direction: str, precision: str
) -> dict[str, int]:
    """Operations and bytes of a direction, as docs/limits.md counts them."""
    word = limits.HALF if precision == "bf16" else limits.WORD
    passes = limits.work(layer, shape, bench.batch, direction == "both gradients", word)
    work = passes[0] if direction == "forward" else passes[1]
    return {"operations": work.operations, "moved": work.moved}


def our_conv(
    bench: Bench, layer: Conv2D, shape: tuple, rung: tuple[str, str], direction: str
) -> Any:
    """`make` of one rung."""

    def make() -> Job:
        algorithm, precision = rung
        conv = random_conv(bench, layer, algorithm)
        step = planned(bench, conv, precision)
        x = bench.random(bench.batch, *shape)
        dy = bench.random(bench.batch, *layer.output_shape(shape))
        if direction == "forward":
            check_against_host(bench, step, conv)
            if bench.torch:
                check_against_torch(bench, step, conv, x, dy)
        x, dy = (bench.stored(array, precision) for array in (x, dy))
        step.forward(x)
        conv.input_gradient = direction == "both gradients"
        run = (lambda: step.forward(x)) if direction == "forward" else (lambda: step.backward(dy))
        return Job(run, **conv_work(bench, layer, shape, direction, precision))

    return make


def torch_conv(bench: Bench, layer: Conv2D, shape: tuple, name: str, direction: str) -> Any:
    """`make` of PyTorch; padding that is not the same on all sides is done before, untimed.

    In BF16 all arrays are bfloat16 before: what autocast does besides is not timed.
    """

    def make() -> Job:
        torch, mode = bench.torch, MODES[name]
        even = layer.before == layer.after
        pads = [layer.before if even else 0] * 2
        x = bench.image(bench.random(bench.batch, *shape), mode)
        if not even:
            x = torch.nn.functional.pad(x, (layer.before, layer.after) * 2)
        conv = random_conv(bench, layer)
        w, b = (bench.image(parameter.value, mode) for parameter in conv.parameters())
        stride, ones = [layer.stride] * 2, [1, 1]
        dy = bench.image(bench.random(bench.batch, *layer.output_shape(shape)), mode)
        mask = [direction == "both gradients", True, True]

        def forward() -> None:
            torch.conv2d(x, w, b, stride, pads, ones, layer.groups)

        def backward() -> None:
            torch.ops.aten.convolution_backward(
                dy, x, w, [b.numel()], stride, pads, ones, False, [0, 0], layer.groups, mask
            )

        run = forward if direction == "forward" else backward
        work = conv_work(bench, layer, shape, direction, mode.precision)
        return Job(run, **work, around=lambda: bench.mode(mode.precision))

    return make
