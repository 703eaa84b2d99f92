"""A training step on the host, layer by layer, compared with PyTorch's.

    python benchmarks/host_step.py                              # the full net, batch 64
    python benchmarks/host_step.py --width 0.25 --image-size 96 --classes 10 --steps 10
    python benchmarks/host_step.py --width 0.25 --image-size 96 --classes 10 --simple

Forward, loss, backward and SGD of one AlexNet (recipe robust: ReLU, LRN, groups, dropout) in
float32. Each contestant has a process of its own with the same number of threads, and only one of
them works at a time: they take turns, several rounds of them, and medians are compared. PyTorch's
net is built from its own modules with our weights; that both give the same logits is checked before
anything is timed. PyTorch runs four times: with channels first, as its modules expect, and with its
`channels_last` memory format, which is our order; each as it comes and by `torch.compile` (which
needs a C++ compiler). The second table goes through the net as `Sequential` does: layers that share
a step are one row, beside the sum of PyTorch's as it comes, and each ratio is against the faster of
its two; a net compiled as a whole has no rows. Without PyTorch only ours is timed. `--simple` times
the step of the book (`layers/*.py`, kernels="simple") in turn with the others.

Each median is printed with the lower and the upper quartile; "both" is a layer's forward and
backward pass added up, step by step, and the last row is all convolutions. "of BLAS" is the share
of the rate of NumPy's BLAS in one large product, of effective operations: those of the formula
(`benchmarks/limits.py`), although Winograd's algorithm computes fewer. So it may exceed 100 %.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from machine import machine
from measuring import in_turns, seconds, table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
WARM_UP, SQUARE = 2, 2048
PASSES, CONVOLUTIONS = ("forward", "backward"), "all convolutions"
OURS = "tinyconv"
SIMPLE = "tinyconv, simple"
EAGER = "PyTorch", "PyTorch, channels_last"
COMPILED = tuple(f"{name}, compiled" for name in EAGER)
CONTESTANTS = OURS, *EAGER, *COMPILED
AGAINST = {"eager": EAGER, "compiled": COMPILED}
THREADS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"


def make(options, kernels="fast"):
    """The net and one batch, the same in every process."""
    # Imported in here, so that each process loads first what it measures: `layers` tells the
    # threads of NumPy and Numba how to wait, and PyTorch's must not be told.
    import numpy as np

    from tinyconv import alexnet

    net = alexnet(options.classes, options.width, options.image_size, "robust")
    net.to("cpu", kernels=kernels)
    net.layers[0].input_gradient = False
    rng = np.random.default_rng(0)
    side = options.image_size
    x = rng.standard_normal((options.batch_size, side, side, 3)).astype(np.float32)
    return net, x, rng.integers(0, options.classes, options.batch_size)


class Stopwatch(dict):
    """Seconds by name."""

    def timed(self, name, function, *arguments):
        """The result of function(*arguments), whose time becomes that of `name`."""
        result = []
        self[name] = seconds(lambda: result.append(function(*arguments)), *CLOCK)
        return result[0]


def our_step(name, options):
    """Two functions: a step, and a step part by part on a stopwatch."""
    from tinyconv import SGD

    net, x, labels = make(options, "simple" if name == SIMPLE else "fast")
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


def torch_step(name, options):
    """The same of PyTorch, with its own dropout."""
    import torch
    from torch_twin import by_step, channels_first, twin

    torch.set_num_threads(options.threads)
    net, x, labels = make(options)
    module = twin(net, our_masks=False)
    x, labels = channels_first(x), torch.from_numpy(labels)
    if "channels_last" in name:
        module = module.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    named = by_step(net, module)
    del net
    run = module
    if name in COMPILED:
        run = torch.compile(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    cross_entropy = torch.nn.functional.cross_entropy

    def step():
        loss = cross_entropy(run(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def by_part(watch):
        if name in COMPILED:
            return  # a net compiled as a whole has no parts
        optimizer.zero_grad(set_to_none=True)
        y, passed = x, []
        for part_name, part in named.items():
            # Cut off from the layer before, so that its backward pass is this layer's alone.
            start = y.detach().requires_grad_(bool(passed))
            y = watch.timed(f"{part_name} forward", part, start)
            passed.append((part_name, start, y))
        start = y.detach().requires_grad_()
        loss = watch.timed("loss forward", cross_entropy, start, labels)
        watch.timed("loss backward", loss.backward)
        dy = start.grad
        for part_name, start, y in reversed(passed):
            watch.timed(f"{part_name} backward", y.backward, dy)
            dy = start.grad
        watch.timed("sgd", optimizer.step)

    return step, by_part


READY, CLOCK = [], []
"""In a contestant's process, the two functions that it measures, and the clock if it is special."""


def prepare(name, options):
    """In a new process: make the step and warm up. Returns the seconds of its first run."""
    os.environ.update(dict.fromkeys(THREADS, str(options.threads)))
    CLOCK[:] = [time.process_time] if options.cpu_time else []
    READY[:] = (our_step if name in (OURS, SIMPLE) else torch_step)(name, options)
    first = seconds(READY[0], *CLOCK)
    for _ in range(WARM_UP):
        turn(1)
    return first


def turn(steps):
    """In a contestant's process: for each step, the seconds by name."""
    step, by_part = READY
    found = []
    for _ in range(steps):
        watch = Stopwatch(step=seconds(step, *CLOCK))
        by_part(watch)
        layers = [name.removesuffix(" forward") for name in watch if name.endswith(" forward")]
        both = {f"{x} both": watch[f"{x} forward"] + watch[f"{x} backward"] for x in layers}
        if convolutions := [took for name, took in both.items() if name.startswith("conv")]:
            both[CONVOLUTIONS] = sum(convolutions)
        found.append({**watch, **both})
    return found


def yardsticks(options):
    """In a new process: BLAS's operations a second, and by name those that each pass has to do."""
    os.environ.update(dict.fromkeys(THREADS, str(options.threads)))
    from limits import work  # which loads `layers` before NumPy

    from layers.fast.host.threads import multiply

    net, x, _ = make(options)
    import numpy as np

    a, b, out = np.ones((3, SQUARE, SQUARE), np.float32)
    clock = [time.process_time] if options.cpu_time else []
    fastest = min(seconds(lambda: multiply(net.device, (a, b, out)), *clock) for _ in range(9))
    rate = 2 * SQUARE**3 / fastest
    found, shape = {}, net.input_shape
    for part in net.steps:
        counts = [0, 0]
        for layer in getattr(part, "layers", [part]):
            passes = work(layer, shape, len(x), layer is not net.layers[0])
            counts = [count + one.operations for count, one in zip(counts, passes, strict=True)]
            shape = layer.output_shape(shape)
        for name, count in zip(
            ("forward", "backward", "both"), (*counts, sum(counts)), strict=True
        ):
            if count:
                found[f"{part.name} {name}"] = count
    found[CONVOLUTIONS] = sum(n for x, n in found.items() if x[:4] == "conv" and x[-4:] == "both")
    return rate, found


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
    """By contestant and by what was timed, the seconds of every step of every round.

    And by contestant the seconds of its first step, which compiles what no cache has; and what
    `yardsticks` returns.
    """
    with ExitStack() as stack:

        def process():
            return stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))

        if set(contestants) - {OURS, SIMPLE}:
            process().submit(check, options).result()
        turns, first, ceiling = {}, {}, process().submit(yardsticks, options).result()
        for name in contestants:
            pool = process()
            first[name] = pool.submit(prepare, name, options).result()
            turns[name] = lambda pool=pool: pool.submit(turn, options.steps).result()
        found = in_turns(turns, options.rounds)
    steps = {name: [step for one in turns for step in one] for name, turns in found.items()}
    times = {name: {x: [step[x] for step in each] for x in each[0]} for name, each in steps.items()}
    return times, first, ceiling


# --- tables; `times`: what `measure` returns


def step_table(times, batch_size):
    """The whole step of each contestant."""
    rows, ours = [], statistics.median(times[OURS]["step"])
    for name, each in times.items():
        took, middle = each["step"], statistics.median(each["step"])
        spread = f"{1e3 * min(took):,.1f} to {1e3 * max(took):,.1f}"
        rates = f"{batch_size / middle:,.1f}", f"{middle / ours:.2f}"
        rows.append([name, f"{1e3 * middle:,.1f}", spread, *rates])
    return table(["", "ms a step", "fastest to slowest", "images/s", "theirs / ours"], rows)


def quartiles(took):
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(took if len(took) > 1 else took * 2, n=4, method="inclusive")


def part_table(times, rate, operations):
    """Every layer or pair, each pass and both; the loss; the optimizer. Views are left out.

    rate: operations a second of BLAS; operations: by name, those of a row.
    """
    times = {name: each for name, each in times.items() if name not in COMPILED}
    rows, with_others = [], len(times) > 1
    for what in times[OURS]:
        if what == "step" or what.startswith("flatten"):
            continue
        row, medians = [what], []
        for each in times.values():
            low, median, high = (1e3 * took for took in quartiles(each[what]))
            row.append(f"{median:,.2f} ({low:,.2f} to {high:,.2f})")
            medians.append(median)
        if with_others:
            row.append(f"{min(medians[1:]) / medians[0]:.2f}")
        counted = what in operations
        row.append(f"{operations[what] / (medians[0] / 1e3) / rate:.0%}" if counted else "")
        rows.append(row)
    return table(["ms", *times, *["theirs / ours"] * with_others, "of BLAS"], rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--simple", action="store_true", help='time kernels="simple" as well')
    parser.add_argument("--only", choices=AGAINST, help="a shorter run: PyTorch one way of the two")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time in place of the clock's, for --threads 1 on a machine that others use",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a round")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    options = parser.parse_args(arguments)
    contestants = (OURS, *AGAINST[options.only]) if options.only else CONTESTANTS
    if not importlib.util.find_spec("torch"):
        contestants = (OURS,)
        print("PyTorch is not installed: timing ours alone", file=sys.stderr)
    try:
        times, first, ceiling = measure((*contestants, *[SIMPLE] * options.simple), options)
    except (ValueError, BrokenProcessPool) as error:
        parser.error(str(error))
    clock = ", processor time" * options.cpu_time
    print(
        f"AlexNet, width {options.width:g}, {options.image_size} pixels, {options.classes} classes,"
        f" batch {options.batch_size}, float32, {options.threads} threads{clock}; "
        f"medians of {options.rounds * options.steps} steps each, in {options.rounds} turns\n"
        f"{machine('numba', 'numpy', 'torch')}\n\n{step_table(times, options.batch_size)}"
    )
    took = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in first.items())
    print(f"\nThe first step, with what no cache held compiled: {took}")
    times.pop(SIMPLE, None)  # it goes through the net in other steps
    print(f"BLAS, in one product of {SQUARE}³: {ceiling[0] / 1e9:.0f} GFLOP/s")
    print(f"\n{part_table(times, *ceiling)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
