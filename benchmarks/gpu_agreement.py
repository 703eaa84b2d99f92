"""The cases of `gpu_report.py` that are not timed: are the results of whole steps right?"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gpu_bench import IN_WORDS, Bench, Mode, compare
from gpu_runner import Case, Job
from gpu_steps import Way, batch_of, on_device, torch_training

STEPS, LR = 20, 1e-4
"""On one and the same batch, so that the loss falls and a wrong gradient shows. At ten times the
rate it falls further, and any two ways of rounding part: a ReLU or a maximum decides otherwise."""

LOSS_TOLERANCE = {"fp32": 2e-3, "tf32": 1e-2, "bf16": 2e-2}
"""Relative, in every step. Both sides round, at different places, float32 to 2^-24, TF32 to 2^-11,
BF16 to 2^-9 of each number, and each update begins from the differences of the last. On the host,
where 8 photos took the full net from 7.4 to 5.3, the largest differences were 3e-4, 1e-3 (TF32
beside float32) and 3e-3; at ten times the rate float32's alone were 7e-2."""


def agreement_cases(bench: Bench, count: int) -> Iterator[Case]:
    """In each precision: losses beside PyTorch's, and a replayed step beside a plain one."""
    for precision in bench.precisions:
        name = f"losses of {STEPS} steps{IN_WORDS[precision]}"
        if bench.torch:
            make = losses_beside_torch(bench, count, precision)
            yield Case("agreement", name, "tinyconv and PyTorch", make)
        if bench.device.is_cuda:
            make = bits_of_a_graph(bench, count, precision)
            name = f"weights after 4 steps{IN_WORDS[precision]}"
            yield Case("agreement", name, "tinyconv, plain and graph", make)


def losses_beside_torch(bench: Bench, count: int, precision: str) -> Any:
    """`make`: both from the same weights, with the same batch and masks, in one precision.

    PyTorch has channels last, and on the host no TF32: float32 there.
    """

    def make() -> Job:
        torch, step = bench.torch, on_device(bench, Way(), precision, LR)
        module, optimizer = torch_training(bench, bench.make_net(), True, last=True, lr=LR)
        x, labels = batch_of(bench, step.net, count)
        images = bench.image(x, Mode("fp32", last=True))
        target = torch.from_numpy(labels).to(images.device)
        ours, theirs = [], []
        with bench.mode(precision):
            for number in range(STEPS):
                step.run(x, labels, number)
                ours.append(step.loss.value())
                optimizer.zero_grad(set_to_none=True)
                with bench.autocast(precision):
                    loss = torch.nn.functional.cross_entropy(module(images), target)
                loss.backward()
                optimizer.step()
                theirs.append(loss.item())
        for number, pair in enumerate(zip(ours, theirs, strict=True), start=1):
            mine, right = (np.array([value]) for value in pair)
            compare(f"the loss of step {number}", mine, right, LOSS_TOLERANCE[precision])
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        found = {"ours": ours, "theirs": theirs, "largest relative difference": worst}
        return Job(notes=lambda: found)

    return make


def bits_of_a_graph(bench: Bench, count: int, precision: str) -> Any:
    """`make`: a step replayed from a graph changes the weights to the same bits as a plain one."""

    def make() -> Job:
        values = []
        batches = [batch_of(bench, bench.make_net(), count)] * 4
        for graph in (False, True):
            step = on_device(bench, Way(graph=graph), precision)
            for number, (x, labels) in enumerate(batches):
                step.run(x, labels, number)
            values.append(bench.device.to_host(step.optimizer.values).copy())
        if graph and not step.replayed:
            raise ValueError("the step was not replayed: no graph could be recorded")
        if not np.array_equal(*values):
            raise ValueError("a replayed step gives other bits than a plain one")
        return Job(notes=lambda: {"equal bits": True})

    return make
