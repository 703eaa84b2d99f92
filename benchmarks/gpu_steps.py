"""The cases of `gpu_report.py` for whole training steps: ours in every precision, and PyTorch's."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import limits
import numpy as np
from gpu_bench import IN_WORDS, MODES, Bench, Mode
from gpu_runner import Case, Job

from tinyconv import SGD
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.run.training import step_for
from tinyconv.train import SingleStep

LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


class Way(NamedTuple):
    """How a step of ours is made."""

    kernels: str = "fast"
    graph: bool = False


OURS = {
    "tinyconv, simple": (Way("simple"), ["fp32"]),
    "tinyconv": (Way(), list(IN_WORDS)),
    "tinyconv, graph": (Way(graph=True), list(IN_WORDS)),
}
"""The ways, and the precisions in which each is timed."""

COLUMNS = "tinyconv, two columns on this GPU"
COLUMNS_IN = tuple(IN_WORDS)
COMPILED = {
    "PyTorch, compiled, TF32": MODES["PyTorch, TF32, channels_last"],
    "PyTorch, compiled, BF16": MODES["PyTorch, BF16, channels_last"],
}


def on_device(bench: Bench, way: Way, precision: str, lr: float = LR) -> SingleStep:
    """A fresh net with loss and optimizer, always with the same weights."""
    net = bench.make_net().to(bench.device, precision=precision, kernels=way.kernels)
    net.layers[0].input_gradient = False
    return step_for(net, SGD(net.parameters(), lr, MOMENTUM, DECAY), way.graph)


def batch_of(bench: Bench, net: Any, count: int) -> tuple[Any, np.ndarray]:
    """Random images on the device, and labels on the host."""
    (classes,) = net.output_shapes(net.input_shape)[-1]
    labels = bench.rng.integers(0, classes, count)
    return bench.random(count, *net.input_shape), labels


def step_cases(bench: Bench, batches: tuple[int, ...]) -> Iterator[Case]:
    """Our steps; those of two columns on one GPU at the first batch size, beside `tinyconv`'s."""
    for count in batches:
        for who, (way, precisions) in OURS.items():
            for precision in precisions:
                if precision in bench.precisions:
                    make = our_step(bench, count, way, precision)
                    yield Case("steps", f"{count:,}", f"{who}{IN_WORDS[precision]}", make)
    for precision in COLUMNS_IN:
        if precision in bench.precisions:
            make = column_step(bench, batches[0], precision)
            yield Case("steps", f"{batches[0]:,}", f"{COLUMNS}{IN_WORDS[precision]}", make)


def torch_step_cases(
    bench: Bench, batches: tuple[int, ...], modes: dict[str, Mode] = MODES
) -> Iterator[Case]:
    """PyTorch's steps, as they come or, for COMPILED, through torch.compile."""
    for count in batches:
        for who, mode in modes.items():
            make = torch_step(bench, count, mode, compiled=modes is COMPILED)
            yield Case("steps", f"{count:,}", who, make)


def amount(net: Any, count: int, precision: str) -> dict[str, int]:
    """What a step has to do, as docs/limits.md counts it."""
    word = limits.HALF if precision == "bf16" else limits.WORD
    passes = limits.step_work(net, count, word=word)
    operations, moved = (sum(column) for column in zip(*passes, strict=True))
    return {"operations": operations, "moved": moved, "images": count}


def afterwards(bench: Bench, loss: Any) -> dict[str, Any]:
    """Peak memory; ValueError if the loss is no longer a number."""
    if not np.isfinite(loss.value()):
        raise ValueError("the loss is no longer a number")
    pool = getattr(bench.device.xp, "get_default_memory_pool", None)
    return {} if pool is None else {"peak bytes": pool().total_bytes()}


def our_step(bench: Bench, count: int, way: Way, precision: str) -> Any:
    """`make` of a step of ours."""

    def make() -> Job:
        step = on_device(bench, way, precision)
        x, labels = batch_of(bench, step.net, count)
        number = iter(range(2**31))

        def run() -> None:
            loss, _, _ = step.forward_backward(x, labels, next(number))
            step.optimizer.step(loss)

        def notes() -> dict[str, Any]:
            found = afterwards(bench, step.loss)
            return {**found, "replayed": step.replayed} if way.graph else found

        return Job(run, **amount(step.net, count, precision), notes=notes)

    return make


def column_step(bench: Bench, count: int, precision: str) -> Any:
    """`make` of a step of the two-column net with both columns on this device."""

    def make() -> Job:
        grouped = bench.make_net()
        net = Columns(grouped, (bench.device, bench.device))
        net.to(bench.device, precision=precision)
        net.layers[0].input_gradient = False
        loss = net.loss()
        optimizer = ColumnSGD(net.parameters(), LR, MOMENTUM, DECAY)
        x, labels = batch_of(bench, grouped, count)
        (logits,) = grouped.output_shapes(grouped.input_shape)[-1]
        number = iter(range(2**31))

        def run() -> None:
            net.set_step(next(number))
            loss.load_labels(labels, (count, logits))
            loss.compute(net.forward(x, train=True))
            net.backward(loss.backward())
            optimizer.step()

        work = amount(grouped, count, precision)
        return Job(run, **work, notes=lambda: afterwards(bench, loss))

    return make


def torch_training(
    bench: Bench, net: Any, our_masks: bool, last: bool = False, lr: float = LR
) -> Any:
    """PyTorch's module and optimizer with the weights of `net` (on the host) and its rates."""
    from torch_twin import learned, twin

    torch = bench.torch
    where = bench.tensor(bench.random(1)).device
    module = twin(net, our_masks).to(where)
    if last:
        module = module.to(memory_format=torch.channels_last)
    groups = []
    with_weights = [layer for layer in net if layer.parameters()]
    for layer, part in zip(with_weights, learned(module), strict=True):
        for ours, theirs in zip(layer.parameters(), (part.weight, part.bias), strict=True):
            rates = {"lr": lr * ours.lr_multiplier, "weight_decay": DECAY * ours.decay_multiplier}
            groups.append({"params": [theirs], **rates})
    return module, torch.optim.SGD(groups, lr, MOMENTUM)


def torch_step(bench: Bench, count: int, mode: Mode, compiled: bool) -> Any:
    """`make` of a step of PyTorch, with its own dropout."""

    def make() -> Job:
        torch, net = bench.torch, bench.make_net()
        module, optimizer = torch_training(bench, net, our_masks=False, last=mode.last)
        x, labels = batch_of(bench, net, count)
        x, labels = bench.image(x, Mode("fp32", mode.last)), torch.from_numpy(labels)
        labels = labels.to(x.device)
        forward = torch.compile(module) if compiled else module
        on_gpu = x.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with bench.autocast(mode.precision):
                loss = torch.nn.functional.cross_entropy(forward(x), labels)
            loss.backward()
            optimizer.step()

        def notes() -> dict[str, Any]:
            return {"peak bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}

        work = amount(net, count, mode.precision)
        return Job(run, **work, notes=notes, around=lambda: bench.mode(mode.precision))

    return make
