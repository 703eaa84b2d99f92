"""The cases of `gpu_report.py` for whole training steps: timed, and checked loss by loss.

Ours in every precision and way of launching, and PyTorch's.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import limits
import numpy as np
from gpu_cases import COMPILED, IN_WORDS, MODES, Bench, Mode
from gpu_runner import Case, Job

from tinyconv import SGD
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.run.training import step_for
from tinyconv.train import SingleStep

LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
OURS = {
    "tinyconv, simple": {"kernels": "simple"},
    "tinyconv": {},
    "tinyconv, graph": {"graph": True},
    "tinyconv, two columns on this GPU": {"columns": True},
}
"""How a step of ours is made: the options of `new_step`."""


def step_cases(bench: Bench, batches: tuple[int, ...]) -> Iterator[Case]:
    """Our steps: simple in fp32, two columns at the first batch size, the others in everything."""
    for count in batches:
        for who, way in OURS.items():
            for precision in ["fp32"] if "kernels" in way else bench.precisions:
                if "columns" not in way or count == batches[0]:
                    make = partial(our_step, bench, count, precision, **way)
                    yield Case("steps", f"{count:,}", who + IN_WORDS[precision], make)


def torch_step_cases(
    bench: Bench, batches: tuple[int, ...], modes: dict[str, Mode] = MODES
) -> Iterator[Case]:
    """PyTorch's steps, as they come or, for COMPILED, through torch.compile."""
    for count in batches if bench.torch else ():
        for who, mode in modes.items():
            make = partial(torch_step, bench, count, mode, compiled=modes is COMPILED)
            yield Case("steps", f"{count:,}", who, make)


def new_step(
    bench: Bench,
    precision: str,
    kernels: str = "fast",
    graph: bool = False,
    columns: bool = False,
    lr: float = LR,
) -> SingleStep:
    """A fresh net on the device with loss and optimizer, always with the same weights."""
    net = bench.make_net()
    if columns:
        net = Columns(net, (bench.device, bench.device))
    net.to(bench.device, precision=precision, kernels=kernels)
    net.layers[0].input_gradient = False
    if columns:
        return SingleStep(net, ColumnSGD(net.parameters(), lr, MOMENTUM, DECAY))
    return step_for(net, SGD(net.parameters(), lr, MOMENTUM, DECAY), graph)


def run_step(step: SingleStep, x: Any, labels: np.ndarray, number: int) -> None:
    loss, _, _ = step.forward_backward(x, labels, number)
    step.optimizer.step(loss)


def amount(bench: Bench, count: int, precision: str) -> dict[str, int]:
    """What a step has to do, as docs/limits.md counts it."""
    word = limits.word_of(precision)
    operations, moved = limits.sums(limits.step_work(bench.host_net, count, word=word))
    return {"operations": operations, "moved": moved, "images": count}


def our_step(bench: Bench, count: int, precision: str, **way: Any) -> Job:
    step: Any = new_step(bench, precision, **way)
    x, labels = bench.batch_of(count)
    number = iter(range(2**31))

    def notes() -> dict[str, Any]:
        if not np.isfinite(step.loss.value()):
            raise ValueError("the loss is not finite")
        pool = getattr(bench.device.xp, "get_default_memory_pool", None)
        found = {"peak bytes": pool().total_bytes()} if pool else {}
        if "graph" in way:
            found["replayed"] = getattr(step, "replayed", False)  # on the host nothing is recorded
        return found

    work = amount(bench, count, precision)
    return Job(lambda: run_step(step, x, labels, next(number)), **work, notes=notes)


def torch_training(
    bench: Bench, mode: Mode, batch: tuple, our_masks=False, compiled=False, lr: float = LR
) -> Callable[[], Any]:
    """A function that makes a step of PyTorch, with our weights and rates, and returns the loss."""
    from torch_twin import twin

    torch, net = bench.torch, bench.make_net()
    images = bench.image(batch[0], Mode("fp32", mode.last))
    labels = torch.from_numpy(batch[1]).to(images.device)
    formats = torch.contiguous_format, torch.channels_last
    module = twin(net, our_masks).to(images.device, memory_format=formats[mode.last])
    groups = [
        {
            "params": [theirs],
            "lr": lr * ours.lr_multiplier,
            "weight_decay": DECAY * ours.decay_multiplier,
        }
        for ours, theirs in zip(net.parameters(), module.parameters(), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr, MOMENTUM)
    forward = torch.compile(module) if compiled else module

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with bench.autocast(mode.precision):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def torch_step(bench: Bench, count: int, mode: Mode, compiled: bool) -> Job:
    """A step of PyTorch, with its own dropout."""
    run = torch_training(bench, mode, bench.batch_of(count), compiled=compiled)
    work, cuda = amount(bench, count, mode.precision), bench.torch.cuda
    around = partial(bench.mode, mode.precision)
    if bench.device.xp is np:
        return Job(run, **work, around=around)
    cuda.reset_peak_memory_stats()
    return Job(
        run, **work, notes=lambda: {"peak bytes": cuda.max_memory_allocated()}, around=around
    )


# --- agreement of whole steps, not timed

STEPS, SLOWLY = 20, 1e-4
"""On one and the same batch, so that the loss falls and a wrong gradient shows. At ten times the
rate it falls further, and any two ways of rounding part: a ReLU or a maximum decides otherwise."""

LOSS_TOLERANCE = {"fp32": 2e-3, "tf32": 1e-2, "bf16": 2e-2}
"""Relative, in every step. Both sides round, at different places, float32 to 2^-24, TF32 to 2^-11,
BF16 to 2^-9 of each number, and each update begins from the differences of the last. On the host,
where 8 photos took the full net from 7.4 to 5.3, the largest differences were 3e-4, 1e-3 (TF32
beside float32) and 3e-3; at ten times the rate float32's alone were 7e-2."""


def agreement_cases(bench: Bench) -> Iterator[Case]:
    """In each precision: losses beside PyTorch's, and a replayed step beside a plain one."""
    for precision in bench.precisions:
        words = IN_WORDS[precision]
        if bench.torch:
            make = partial(losses_beside_torch, bench, precision)
            yield Case("agreement", f"losses of {STEPS} steps{words}", "tinyconv, PyTorch", make)
        if bench.device.is_cuda:
            make = partial(bits_of_a_graph, bench, precision)
            yield Case("agreement", f"weights after 4 steps{words}", "tinyconv, plain, graph", make)


def losses_beside_torch(bench: Bench, precision: str) -> Job:
    """Both from the same weights, with the same batch and masks.

    PyTorch has channels last, and on the host no TF32: float32 there.
    """
    step = new_step(bench, precision, lr=SLOWLY)
    batch, mode = bench.batch_of(bench.batch), Mode(precision, last=True)
    run = torch_training(bench, mode, batch, our_masks=True, lr=SLOWLY)
    ours, theirs = [], []
    with bench.mode(precision):
        for number in range(STEPS):
            run_step(step, *batch, number)
            ours.append(step.loss.value())
            theirs.append(run().item())
    differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    for number, difference in enumerate(differences, start=1):
        if not difference <= LOSS_TOLERANCE[precision]:
            raise ValueError(f"the loss of step {number} differs by {difference:.2g}")
    found = {"ours": ours, "theirs": theirs, "largest relative difference": max(differences)}
    return Job(notes=lambda: found)


def bits_of_a_graph(bench: Bench, precision: str) -> Job:
    """A step replayed from a graph changes the weights to the same bits as a plain one."""
    values, batch = [], bench.batch_of(bench.batch)
    for graph in (False, True):
        step: Any = new_step(bench, precision, graph=graph)
        for number in range(4):
            run_step(step, *batch, number)
        values.append(bench.device.to_host(step.optimizer.values).copy())
    if not step.replayed:
        raise ValueError("the step was not replayed: no graph could be recorded")
    if not np.array_equal(*values):
        raise ValueError("a replayed step gives other bits than a plain one")
    return Job(notes=lambda: {"equal bits": True})
