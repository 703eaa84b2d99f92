"""The cases of `gpu_report.py` for whole training steps: ours, PyTorch's, their agreement."""

from collections.abc import Iterator
from typing import Any

import limits
import numpy as np
from gpu_bench import MODES, Bench, compare
from gpu_runner import Case, Job

from layers import SoftmaxCrossEntropy
from tinyconv import SGD
from tinyconv.step import TrainingStep

LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
STEPS = 20  # of the agreement
LOSS_TOLERANCE = 1e-3
"""Relative, in every step: rounding errors of float32 grow with each update of the weights."""

OURS = {
    # fused, recorded as a graph
    "tinyconv, layer by layer": (False, False),
    "tinyconv": (True, False),
    "tinyconv, graph": (True, True),
}
COMPILED = "PyTorch, compiled", "PyTorch, compiled, TF32"


def on_device(bench: Bench, fuse: bool, graph: bool) -> TrainingStep:
    """A fresh net with loss and optimizer, always with the same weights."""
    net = bench.make_net().to(bench.device, fuse=fuse)
    net.layers[0].input_gradient = False
    loss = SoftmaxCrossEntropy(fuse=fuse).to(bench.device)
    return TrainingStep(net, loss, SGD(net.parameters(), LR, MOMENTUM, DECAY), graph)


def batch_of(bench: Bench, net: Any, count: int) -> tuple[Any, np.ndarray]:
    """Random images on the device, and labels on the host."""
    (classes,) = net.output_shapes(net.input_shape)[-1]
    labels = bench.rng.integers(0, classes, count)
    return bench.random(count, *net.input_shape), labels


def step_cases(bench: Bench, batches: tuple[int, ...], tf32: bool) -> Iterator[Case]:
    """Our steps; tf32: with CUPY_TF32 set, where only products of Linear differ."""
    for count in batches:
        for who, ways in OURS.items():
            if not tf32:
                yield Case("steps", f"{count:,}", who, our_step(bench, count, *ways))
            elif ways == (True, True):
                yield Case("steps", f"{count:,}", f"{who}, TF32", our_step(bench, count, *ways))


def torch_step_cases(bench: Bench, batches: tuple[int, ...], compiled: bool) -> Iterator[Case]:
    """PyTorch's steps, as they come or through torch.compile."""
    modes = dict(zip(COMPILED, ((False, False), (True, False)), strict=True)) if compiled else MODES
    for count in batches:
        for who, (tf32, last) in modes.items():
            yield Case("steps", f"{count:,}", who, torch_step(bench, count, tf32, last, compiled))


def amount(bench: Bench, net: Any, count: int) -> dict[str, int]:
    """What a step has to do, as docs/limits.md counts it."""
    passes = limits.step_work(net, count)
    operations, moved = (sum(column) for column in zip(*passes, strict=True))
    return {"operations": operations, "moved": moved, "images": count}


def our_step(bench: Bench, count: int, fuse: bool, graph: bool) -> Any:
    """`make` of a step of ours."""

    def make() -> Job:
        step = on_device(bench, fuse, graph)
        x, labels = batch_of(bench, step.net, count)
        number = iter(range(2**31))

        def run() -> None:
            step.run(x, labels, next(number))

        def notes() -> dict[str, Any]:
            if not np.isfinite(step.loss.value()):
                raise ValueError("the loss is no longer a number")
            pool = getattr(bench.device.xp, "get_default_memory_pool", None)
            found: dict[str, Any] = {} if pool is None else {"peak bytes": pool().total_bytes()}
            if graph:
                found["replayed"] = step.replayed
            return found

        return Job(run, **amount(bench, step.net, count), notes=notes)

    return make


def torch_training(bench: Bench, net: Any, our_masks: bool, last: bool = False) -> Any:
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
            rates = {"lr": LR * ours.lr_multiplier, "weight_decay": DECAY * ours.decay_multiplier}
            groups.append({"params": [theirs], **rates})
    return module, torch.optim.SGD(groups, LR, MOMENTUM)


def torch_step(bench: Bench, count: int, tf32: bool, last: bool, compiled: bool) -> Any:
    """`make` of a step of PyTorch, with its own dropout."""

    def make() -> Job:
        torch, net = bench.torch, bench.make_net()
        module, optimizer = torch_training(bench, net, our_masks=False, last=last)
        x, labels = batch_of(bench, net, count)
        x, labels = bench.image(x, last), torch.from_numpy(labels)
        labels = labels.to(x.device)
        forward = torch.compile(module) if compiled else module
        on_gpu = x.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(forward(x), labels).backward()
            optimizer.step()

        def notes() -> dict[str, Any]:
            return {"peak bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}

        return Job(run, **amount(bench, net, count), notes=notes, around=lambda: bench.mode(tf32))

    return make


# --- agreement


def agreement_cases(bench: Bench, count: int) -> Iterator[Case]:
    """Nothing to time: losses beside PyTorch's, and a replayed step beside a plain one."""
    if bench.torch:
        make = losses_beside_torch(bench, count)
        yield Case("agreement", f"losses of {STEPS} steps", "tinyconv and PyTorch", make)
    if bench.device.is_cuda:
        make = bits_of_a_graph(bench, count)
        yield Case("agreement", "weights after 4 steps", "tinyconv, plain and graph", make)


def losses_beside_torch(bench: Bench, count: int) -> Any:
    """`make`: both from the same weights, with the same batches and masks; no TF32."""

    def make() -> Job:
        torch, step = bench.torch, on_device(bench, fuse=True, graph=False)
        module, optimizer = torch_training(bench, bench.make_net(), our_masks=True)
        ours, theirs = [], []
        with bench.mode(tf32=False):
            for number in range(STEPS):
                x, labels = batch_of(bench, step.net, count)
                step.run(x, labels, number)
                ours.append(step.loss.value())
                optimizer.zero_grad(set_to_none=True)
                logits = module(bench.image(x))
                target = torch.from_numpy(labels).to(logits.device)
                loss = torch.nn.functional.cross_entropy(logits, target)
                loss.backward()
                optimizer.step()
                theirs.append(loss.item())
        for number, pair in enumerate(zip(ours, theirs, strict=True), start=1):
            mine, right = (np.array([value]) for value in pair)
            compare(f"the loss of step {number}", mine, right, LOSS_TOLERANCE)
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        found = {"ours": ours, "theirs": theirs, "largest relative difference": worst}
        return Job(notes=lambda: found)

    return make


def bits_of_a_graph(bench: Bench, count: int) -> Any:
    """`make`: a step replayed from a graph changes the weights to the same bits as a plain one."""

    def make() -> Job:
        values = []
        batches = [batch_of(bench, bench.make_net(), count)] * 4
        for graph in (False, True):
            step = on_device(bench, fuse=True, graph=graph)
            for number, (x, labels) in enumerate(batches):
                step.run(x, labels, number)
            values.append(bench.device.to_host(step.optimizer.values).copy())
        if graph and not step.replayed:
            raise ValueError("the step was not replayed: no graph could be recorded")
        if not np.array_equal(*values):
            raise ValueError("a replayed step gives other bits than a plain one")
        return Job(notes=lambda: {"equal bits": True})

    return make
