"""A training step on the host, layer by layer, compared with PyTorch's.

    python benchmarks/host_step.py                              # the full net, batch 64
    python benchmarks/host_step.py --width 0.25 --image-size 96 --classes 10 --steps 10
    python benchmarks/host_step.py --width 0.25 --image-size 96 --classes 10 --simple

Forward, loss, backward and SGD of one AlexNet (recipe robust: ReLU, LRN, groups, dropout) in
float32. Each contestant has a process of its own with the same number of threads, and only one of
them works at a time: they take turns, several rounds of them, and medians are compared. A machine
that slows down slows all. PyTorch's net is built from its own modules with our weights; that both
give the same logits is checked before anything is timed. PyTorch runs twice: with channels first,
as its modules expect, and with its `channels_last` memory format, which is our order. The second
table goes through the net as `Sequential` does: layers that share a step are one row, beside the
sum of PyTorch's, and each ratio is against the faster of its two. Without PyTorch only ours is
timed. `--simple` times the step of the book (`layers/*.py`, kernels="simple") in turn with the
others.

Each median is printed with the lower and the upper quartile. The last lines list the rows without a
convolution in which PyTorch is faster, and by more than the spread if the quartile ranges do not
overlap; then the same for layers, with both passes added up.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2
OURS = "tinyconv"
SIMPLE = "tinyconv, simple"
CONTESTANTS = OURS, "PyTorch", "PyTorch, channels_last"
THREADS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"
ENVIRONMENT = dict(os.environ)  # before `layers` says in it how our threads should wait


def make(options):
    """The net and one batch, the same in every process."""
    # Imported in here, so that each worker loads first what it measures: `layers` tells the
    # threads of NumPy and Numba how to wait, and PyTorch's must not be told.
    import numpy as np

    from tinyconv import alexnet

    net = alexnet(options.classes, options.width, options.image_size, "robust")
    net.to("cpu", kernels="simple" if options.worker == SIMPLE else "fast")
    net.layers[0].input_gradient = False
    rng = np.random.default_rng(0)
    side = options.image_size
    x = rng.standard_normal((options.batch_size, side, side, 3)).astype(np.float32)
    return net, x, rng.integers(0, options.classes, options.batch_size)


class Stopwatch:
    """Seconds by name; `timed` calls a function and notes how long it took."""

    def __init__(self):
        self.seconds = {}

    def timed(self, name, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[name] = time.perf_counter() - start
        return result


def our_step(options):
    """Two functions: a step, and a step part by part on a stopwatch."""
    from tinyconv import SGD

    net, x, labels = make(options)
    loss, optimizer = net.loss(), SGD(net.parameters(), lr=1e-4)

    def step():
        loss.forward(net.forward(x), labels)
        net.backward(loss.backward())
        optimizer.step()

    def by_part(watch):
        y = x
        for part in net.steps:
            y = watch.timed(f"{part.name} forward", part.forward, y, True)
        watch.timed("loss forward", loss.forward, y, labels)
        dy = watch.timed("loss backward", loss.backward)
        for part in reversed(net.steps):
            dy = watch.timed(f"{part.name} backward", part.backward, dy)
        watch.timed("sgd", optimizer.step)

    return step, by_part


def torch_step(options):
    """The same of PyTorch, with its own dropout."""
    import torch
    from torch_twin import by_step, channels_first, twin

    torch.set_num_threads(options.threads)
    net, x, labels = make(options)
    module = twin(net, our_masks=False)
    named = by_step(net, module)
    del net
    x, labels = channels_first(x), torch.from_numpy(labels)
    if options.worker != "PyTorch":
        module = module.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    cross_entropy = torch.nn.functional.cross_entropy

    def step():
        loss = cross_entropy(module(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def by_part(watch):
        optimizer.zero_grad(set_to_none=True)
        y, passed = x, []
        for name, part in named.items():
            # Cut off from the layer before, so that its backward pass is this layer's alone.
            start = y.detach().requires_grad_(bool(passed))
            y = watch.timed(f"{name} forward", part, start)
            passed.append((name, start, y))
        start = y.detach().requires_grad_()
        loss = watch.timed("loss forward", cross_entropy, start, labels)
        watch.timed("loss backward", loss.backward)
        dy = start.grad
        for name, start, y in reversed(passed):
            watch.timed(f"{name} backward", y.backward, dy)
            dy = start.grad
        watch.timed("sgd", optimizer.step)

    return step, by_part


def work(options):
    """In a child process: for each line of input a round, its seconds printed as JSON."""
    step, by_part = (our_step if options.worker in (OURS, SIMPLE) else torch_step)(options)
    for _ in range(WARM_UP):
        step()
        by_part(Stopwatch())
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        watch, seconds = Stopwatch(), []
        for _ in range(options.steps):
            watch.timed("step", step)
            by_part(watch)
            seconds.append(dict(watch.seconds))
        print(json.dumps(seconds), flush=True)


def check(options):
    """Both nets give the same logits in test mode, or there is nothing to compare."""
    import numpy as np
    from torch_twin import channels_first, torch, twin

    net, x, _ = make(options)
    x = x[:2]
    with torch.no_grad():
        theirs = twin(net).eval()(channels_first(x)).numpy()
    np.testing.assert_allclose(net.forward(x, train=False), theirs, rtol=1e-3, atol=1e-4)


def measure(contestants, options):
    """By contestant and by what was timed, the seconds of every step of every round."""
    environment = ENVIRONMENT | dict.fromkeys(THREADS, str(options.threads))
    paths = [str(ROOT), ENVIRONMENT.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    settings = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(options).items()
        if name not in ("worker", "simple")
    ]
    workers, seconds = {}, {name: {} for name in contestants}
    try:
        for name in contestants:
            command = [sys.executable, __file__, *settings, "--worker", name]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            workers[name] = subprocess.Popen(command, env=environment, text=True, **pipes)
            answer(name, workers[name])
        for _ in range(options.rounds):
            for name, worker in workers.items():
                worker.stdin.write("go\n")
                worker.stdin.flush()
                for step in answer(name, worker):
                    for what, took in step.items():
                        seconds[name].setdefault(what, []).append(took)
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return seconds


def answer(name, worker):
    """The next line of a worker, read as JSON."""
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"host_step.py: the process of {name} ended early; its error is above")
    return json.loads(line)


def step_table(seconds, batch_size):
    """Lines of Markdown: the whole step of each contestant."""
    yield "| | ms a step | fastest to slowest | images/s | theirs / ours |"
    yield "|---|---:|---:|---:|---:|"
    ours = statistics.median(seconds[OURS]["step"])
    for name, times in seconds.items():
        took, middle = times["step"], statistics.median(times["step"])
        yield (
            f"| {name} | {1e3 * middle:,.1f} | {1e3 * min(took):,.1f} to {1e3 * max(took):,.1f} | "
            f"{batch_size / middle:,.1f} | {middle / ours:.2f} |"
        )


def quartiles(took):
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(took if len(took) > 1 else took * 2, n=4, method="inclusive")


def compared(seconds):
    """What the rows of the second table are: all that was timed but the step and the views."""
    return [what for what in seconds[OURS] if what != "step" and not what.startswith("flatten")]


def faster_of_pytorchs(seconds, what):
    """Quartiles of that PyTorch whose median is the smaller; None without PyTorch."""
    theirs = [quartiles(times[what]) for name, times in seconds.items() if name != OURS]
    return min(theirs, key=lambda three: three[1], default=None)


def part_table(seconds):
    """Lines of Markdown: every layer or pair, forward and backward; the loss; the optimizer."""
    with_others = len(seconds) > 1
    yield "| ms | " + " | ".join(seconds) + (" | theirs / ours |" if with_others else " |")
    yield "|---|" + "---:|" * (len(seconds) + with_others)
    for what in compared(seconds):
        row = []
        for times in seconds.values():
            low, median, high = (1e3 * took for took in quartiles(times[what]))
            row.append(f"{median:,.2f} ({low:,.2f} to {high:,.2f})")
        if with_others:
            ratio = faster_of_pytorchs(seconds, what)[1] / quartiles(seconds[OURS][what])[1]
            row.append(f"{ratio:.2f}")
        yield f"| {what} | " + " | ".join(row) + " |"


def both_ways(seconds):
    """`seconds` of whole layers: forward and backward passes of each step added up."""
    layers = [what.removesuffix(" forward") for what in seconds[OURS] if what.endswith("forward")]

    def added(times, layer):
        passes = times[f"{layer} forward"], times[f"{layer} backward"]
        return [sum(both) for both in zip(*passes, strict=True)]

    return {name: {x: added(times, x) for x in layers} for name, times in seconds.items()}


def verdict(seconds, what="rows"):
    """Lines: the rows without a convolution whose median is behind the faster PyTorch's."""
    rows = [row for row in compared(seconds) if not row.startswith("conv")]
    beyond, within = [], []
    for row in rows:
        low, median, _ = quartiles(seconds[OURS][row])
        _, their_median, their_high = faster_of_pytorchs(seconds, row)
        if median > their_median:
            (beyond if low > their_high else within).append(row)
    yield f"Of {len(rows)} {what} without a convolution, behind PyTorch"
    yield f"by more than the spread: {len(beyond)}" + "".join(f"; {row}" for row in beyond)
    yield f"within the spread: {len(within)}" + "".join(f"; {row}" for row in within)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--simple", action="store_true", help='time kernels="simple" as well')
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--worker", choices=(*CONTESTANTS, SIMPLE), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return work(options)

    contestants = CONTESTANTS
    if importlib.util.find_spec("torch"):
        check(options)
    else:
        contestants = (OURS,)
        print("PyTorch is not installed: timing ours alone", file=sys.stderr)
    seconds = measure((*contestants, SIMPLE) if options.simple else contestants, options)
    print(
        f"AlexNet, width {options.width:g}, {options.image_size} pixels, {options.classes} classes,"
        f" batch {options.batch_size}, float32, {options.threads} threads; medians of "
        f"{options.rounds * options.steps} steps each, in {options.rounds} turns\n"
        f"{machine('numba', 'numpy', 'torch')}\n"
    )
    print("\n".join(step_table(seconds, options.batch_size)))
    seconds.pop(SIMPLE, None)  # it goes through the net in other steps
    print("\n" + "\n".join(part_table(seconds)))
    if len(contestants) > 1:
        print("\n" + "\n".join(verdict(seconds)))
        print("\n" + "\n".join(verdict(both_ways(seconds), "layers, forward and backward,")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
