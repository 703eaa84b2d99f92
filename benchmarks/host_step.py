"""A whole training step on the host, ours beside PyTorch's: images a second.

    python benchmarks/host_step.py                              # the full net, batch 64
    python benchmarks/host_step.py --width 0.5 --image-size 128

Forward, loss, backward and SGD of one AlexNet (recipe robust: ReLU, LRN, groups, dropout) in
float32. The two take turns, each in a process of its own with the same number of threads, and
medians are compared: a machine that slows down slows both. PyTorch's net is built from its own
modules with our weights; that both give the same logits is checked before anything is timed.
Without PyTorch only ours is timed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

from machine import machine

WARM_UP = 2


def make(options):
    """The net and one batch, the same in every process."""
    # Imported in here, so that each worker loads first what it measures: `layers` tells the
    # threads of NumPy and Numba how to wait, and PyTorch's must not be told.
    import numpy as np

    from tinyconv import alexnet

    net = alexnet(options.classes, options.width, options.image_size, "robust")
    net.layers[0].input_gradient = False
    rng = np.random.default_rng(0)
    side = options.image_size
    x = rng.standard_normal((options.batch_size, side, side, 3)).astype(np.float32)
    return net, x, rng.integers(0, options.classes, options.batch_size)


def our_step(options):
    """A function that runs one step and adds the seconds of each layer to its second result."""
    from layers import SoftmaxCrossEntropy
    from tinyconv import SGD

    net, x, labels = make(options)
    loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters(), lr=1e-4)
    spent: dict[str, list[float]] = {}

    def timed(name, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        spent.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def step():
        y = x
        for layer in net:
            y = timed(f"{layer.name} forward", layer.forward, y, True)
        timed("loss forward", loss.forward, y, labels)
        dy = timed("loss backward", loss.backward)
        for layer in reversed(net.layers):
            dy = timed(f"{layer.name} backward", layer.backward, dy)
        timed("sgd", optimizer.step)

    return step, spent


def torch_step(options):
    """The same of PyTorch, with its own dropout."""
    import torch
    from torch_twin import channels_first, twin

    torch.set_num_threads(options.threads)
    net, x, labels = make(options)
    module = twin(net, our_masks=False)
    x, labels = channels_first(x), torch.from_numpy(labels)
    if options.worker == "PyTorch, channels_last":
        module = module.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def step():
        loss = torch.nn.functional.cross_entropy(module(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, {}


def work(options):
    """In a child process: print the seconds of each step, and of each layer, as JSON."""
    step, spent = (our_step if options.worker == "tinyconv" else torch_step)(options)
    seconds = []
    for _ in range(WARM_UP + options.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    layers = {name: statistics.median(times[WARM_UP:]) for name, times in spent.items()}
    print(json.dumps({"seconds": seconds[WARM_UP:], "layers": layers}))


def check(options):
    """Both nets give the same logits in test mode, or there is nothing to compare."""
    import numpy as np
    import torch
    from torch_twin import channels_first, twin

    net, x, _ = make(options)
    x = x[:2]
    with torch.no_grad():
        theirs = twin(net).eval()(channels_first(x)).numpy()
    np.testing.assert_allclose(net.forward(x, train=False), theirs, rtol=1e-3, atol=1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)

    threads = str(options.threads)
    names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
    environment = os.environ | dict.fromkeys(names, threads)
    contestants = ["tinyconv"]
    if importlib.util.find_spec("torch"):
        check(options)
        contestants += ["PyTorch", "PyTorch, channels_last"]
    else:
        print("PyTorch is not installed: timing ours alone", file=sys.stderr)

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    layers: dict[str, float] = {}
    for _ in range(options.rounds):
        for name in contestants:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
            run = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            result = json.loads(run.stdout.splitlines()[-1])
            seconds[name] += result["seconds"]
            layers = result["layers"] or layers

    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"AlexNet, width {options.width:g}, {options.image_size} pixels, {options.classes} classes,"
        f" batch {options.batch_size}, float32, {threads} threads\n"
        f"{machine('numba', 'numpy', 'torch')}\n"
    )
    print("| | ms a step | fastest to slowest | images/s | ours / theirs |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        print(
            f"| {name} | {1e3 * median[name]:,.0f} | {1e3 * min(times):,.0f} to "
            f"{1e3 * max(times):,.0f} | {options.batch_size / median[name]:,.1f} | "
            f"{median[name] / median['tinyconv']:.2f} |"
        )
    print("\n| tinyconv | ms | share |\n|---|---|---|")
    for name, took in sorted(layers.items(), key=lambda item: -item[1])[:12]:
        print(f"| {name} | {1e3 * took:,.1f} | {took / median['tinyconv']:.0%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
