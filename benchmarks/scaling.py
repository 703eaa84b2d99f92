"""Several devices: bytes between them and predicted times; and a measurement.

    python benchmarks/scaling.py --paper                 # the tables of docs/scaling.md
    python benchmarks/scaling.py                         # 1 and 2 ranks of this machine, in turns
    python benchmarks/scaling.py --ranks 1,2,4 --mpi     # started by mpiexec instead of by spawn
    python benchmarks/scaling.py --devices cuda:0,cuda:1,cuda:2,cuda:3 --ranks 1,2,4

A measurement trains AlexNet on random photos: one rank with all cores (or one GPU), then several
that share the cores and the batch (on GPUs the batch grows with the ranks), in turns. The
prediction is the step of one rank with its share of cores and of the batch, plus the all-reduce of
the gradients, each measured alone: no overlap, and no contention.
"""

import argparse
import functools
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine
from measuring import table

from tinyconv import alexnet
from tinyconv.parallel.launch import cores, join, spawn, under_mpi

IMAGENET = 1_281_167
"""Training photos of ILSVRC-2012."""

HOST_THREADS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"

BATCH = 128
"""Photos a GPU and step, as in the paper."""

LINKS = {"NVLink 4": 450e9, "PCIe 5 ×16": 64e9, "100 Gb/s": 12.5e9}
"""Bytes a second in one direction. NVIDIA's H100 data sheet gives both directions together: 900
GB/s for NVLink, 128 GB/s for PCIe 5; the last is the line rate."""

MACHINE = 8
"""GPUs of a machine; machines have one link of 100 Gb/s each."""

BESIDE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
"""Where an mpiexec is looked for: first beside this Python, where the wheel `mpich` puts it."""

RATES = 1000, 4000, 16000
"""Photos a second of a single GPU: a range, since none has been measured yet."""

# --- on paper


@functools.cache
def parameters() -> dict[str, int]:
    """Learned numbers of each layer of the full net."""
    net = alexnet()
    return {x.name: sum(p.value.size for p in x.parameters()) for x in net if x.parameters()}


@functools.cache
def crossing_inputs() -> dict[str, int]:
    """Elements of one image at the inputs that need all of the layer before, and the logits."""
    net, inputs = alexnet(), {}
    shape = net.input_shape
    for layer in net:
        if layer.name in ("conv3", "fc6", "fc7", "fc8"):
            inputs[layer.name] = math.prod(shape)
        shape = layer.output_shape(shape)
    return inputs | {"logits": math.prod(shape)}


def replicas_bytes(gpus: int) -> float:
    """Sent by one GPU in a step: every gradient, twice, but for its own part."""
    return 2 * (gpus - 1) / gpus * 4 * sum(parameters().values())


def columns_bytes(batch: int) -> float:
    """Sent by one of two GPUs in a step: its half of four inputs and of the logits, both ways."""
    return 2 * 4 * batch * sum(crossing_inputs().values()) / 2


def hybrid_bytes(gpus: int, batch: int) -> float:
    """As replicas for the convolutions; what fc6 to fc8 read and give, of the whole batch."""
    convolutions = sum(n for name, n in parameters().items() if name.startswith("conv"))
    inputs = crossing_inputs()
    crossing = sum(n for name, n in inputs.items() if name != "conv3") * batch
    return 2 * (gpus - 1) / gpus * 4 * (convolutions + crossing)


def exchange_seconds(scheme, gpus: int, link: str) -> float:
    """Of one step: within machines over `link`, then between machines over 100 Gb/s."""
    inside, machines = min(gpus, MACHINE), max(1, gpus // MACHINE)
    seconds = scheme(inside) / LINKS[link]
    if machines > 1:
        seconds += scheme(machines) / LINKS["100 Gb/s"]
    return seconds


def epoch_seconds(rate: float, gpus: int, link: str) -> tuple[float, float]:
    """An epoch by replicas, 128 photos a GPU: all of the sum hidden, and none of it."""
    compute = BATCH / rate
    exchange = exchange_seconds(replicas_bytes, gpus, link) if gpus > 1 else 0.0
    steps = IMAGENET / (BATCH * gpus)
    return steps * max(compute, exchange), steps * (compute + exchange)


def left(header: list[str], rows: list[list[str]]) -> str:
    return table(header, rows, text=len(header))


def bytes_table() -> str:
    rows = []
    for gpus in (2, 4, 8, 64):
        columns = f"{columns_bytes(gpus * BATCH) / 1e6:,.1f}" if gpus == 2 else ""
        hybrid = f"{hybrid_bytes(gpus, gpus * BATCH) / 1e6:,.1f}"
        rows.append([f"{gpus}", f"{replicas_bytes(gpus) / 1e6:,.1f}", columns, hybrid])
    return left(["GPUs", "replicas", "columns", "hybrid"], rows)


def seconds_table() -> str:
    schemes = {
        "replicas": replicas_bytes(2),
        "columns": columns_bytes(2 * BATCH),
        "hybrid": hybrid_bytes(2, 2 * BATCH),
    }
    speeds = LINKS.values()
    rows = [[n, *(f"{1e3 * sent / speed:,.2f}" for speed in speeds)] for n, sent in schemes.items()]
    return left(["2 GPUs", *LINKS], rows)


def epochs_table(link: str) -> str:
    rows = []
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        found = [epoch_seconds(rate, gpus, link) for rate in RATES]
        cells = [f"{a:,.0f}" if gpus == 1 else f"{a:,.0f} to {b:,.0f}" for a, b in found]
        rows.append([f"{gpus}", *cells])
    return left([f"GPUs, {link}", *(f"{rate:,} photos/s" for rate in RATES)], rows)


def tables() -> list[str]:
    return [bytes_table(), seconds_table(), epochs_table("NVLink 4"), epochs_table("PCIe 5 ×16")]


# --- measured


def train(options, replica=None) -> int:
    """Some steps on random photos; the first rank writes the seconds of each."""
    import numpy as np

    from layers import Device
    from tinyconv import SGD
    from tinyconv.data import PhotoSet
    from tinyconv.data.augment import Augment
    from tinyconv.parallel.replicas import ReplicaStep, begin_together
    from tinyconv.run.training import step_for
    from tinyconv.train import Training, TrainingData

    device = Device(replica.device if replica else options.devices.split(",")[0])
    batch, side = options.batch_size, options.image_size + options.image_size // 7
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    labels = rng.integers(0, options.classes, batch)
    names = tuple(map(str, range(options.classes)))
    photos, val = PhotoSet(images, labels, names), PhotoSet(images[:1], labels[:1], names)
    net = alexnet(options.classes, options.width, options.image_size, "robust").to(device)
    augment = Augment(photos.mean_image(), options.image_size, 64.0)
    optimizer, share = SGD(net.parameters(), 1e-4), ()
    step = step_for(net, optimizer)
    if replica:
        step, share = ReplicaStep(net, optimizer, replica), (replica.rank, replica.size)
    data = TrainingData(photos, val, augment, batch, 0, *share)
    run = Training(net, data, step, epochs=options.warm_up + options.steps)
    if replica:
        begin_together(run)
    begun, seconds, forward_backward = [0.0], [], step.forward_backward

    def begin(*batch):
        device.synchronize()
        begun[0] = time.perf_counter()
        return forward_backward(*batch)

    def end() -> None:
        device.synchronize()
        seconds.append(time.perf_counter() - begun[0])

    step.forward_backward = begin
    run.run(on_step=end)
    sums = []
    if replica:
        for _ in range(options.warm_up + options.steps):
            replica.exchange(None)
            started = time.perf_counter()
            replica.sums.start(run.optimizer.grads)
            replica.sums.finish()
            device.synchronize()
            sums.append(time.perf_counter() - started)
    if replica is None or replica.first:
        found = {"steps": seconds[options.warm_up :], "sums": sums[options.warm_up :]}
        Path(options.found).write_text(json.dumps(found))
    return 0


def failure(error, whose=""):
    return 2, f"scaling.py: {whose}{error!r}"


def measure(options, ranks: int, batch: int, threads: int) -> dict[str, list[float]]:
    """Seconds of the steps of `ranks` ranks, in processes of their own."""
    found = Path(options.found)
    found.unlink(missing_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(ranks)]
    command += ["--batch-size", str(batch), "--found", str(found)]
    if options.mpi and ranks > 1:
        command = [*shlex.split(options.mpiexec), "-n", str(ranks), *command]
    # Not of BLAS, which has one thread in each process (`layers/process/blas.py`), as in training.
    environment = os.environ | dict.fromkeys(HOST_THREADS, str(threads))
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return json.loads(found.read_text())


def report(options) -> None:
    """Measure in turns, and print the table."""
    counts = [int(count) for count in options.ranks.split(",")]
    gpus, threads = options.devices.startswith("cuda"), options.threads or cores()
    middle = statistics.median
    batches = {count: options.batch_size * (count if gpus else 1) for count in counts}
    # Of each number of ranks, a list for each round: seconds of its steps, of its sums by
    # themselves, and of a single rank's steps with its share of the cores and of the batch.
    steps, sums, parts = ({count: [] for count in counts} for _ in range(3))
    for _ in range(options.rounds):
        for count in counts:
            share = max(1, threads // count)
            found = measure(options, count, batches[count], share)
            steps[count].append(found["steps"])
            sums[count] += found["sums"]
            if count > 1:
                found = measure(options, 1, batches[count] // count, share)
                parts[count] += found["steps"]
    print(
        f"AlexNet, width {options.width:g}, {options.image_size} pixels, {options.classes} classes,"
        f" float32, {'mpiexec' if options.mpi else 'spawn'}, {threads} threads in all; in each of "
        f"{options.rounds} rounds {options.steps} steps after {options.warm_up} to warm up\n"
        f"{machine('numba', 'numpy', 'mpi4py')}\n"
    )
    rows = []
    for count in counts:
        every = [seconds for one in steps[count] for seconds in one]
        rates = [batches[count] / middle(one) for one in steps[count]]
        bases = [batches[counts[0]] / middle(one) for one in steps[counts[0]]]
        ratios = [rate / base for rate, base in zip(rates, bases, strict=True)]
        predicted = ""
        if count > 1:
            predicted = f"{batches[count] / (middle(parts[count]) + middle(sums[count])):,.1f}"
        rows.append([
            f"{count}",
            f"{batches[count]}",
            f"{1e3 * middle(every):,.1f}",
            f"{1e3 * min(every):,.1f} to {1e3 * max(every):,.1f}",
            f"{batches[count] / middle(every):,.1f}",
            f"{middle(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            predicted,
        ])  # fmt: skip
    header = ["ranks", "batch", "ms a step", "fastest to slowest", "images/s"]
    print(left([*header, "beside the first, round by round", "predicted"], rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--paper", action="store_true", help="print the tables that need no machine")
    add("--ranks", default="1,2", help="how many, in turns; the first is what others stand beside")
    add("--devices", default="cpu", help="cpu, or the GPUs: cuda:0,cuda:1,...")
    add("--mpi", action="store_true", help="start the ranks by mpiexec")
    add("--mpiexec", default=shutil.which("mpiexec", path=BESIDE) or "mpiexec",
        help="how it is called, options included; Open MPI needs --bind-to none")  # fmt: skip
    add("--width", type=float, default=0.25)
    add("--image-size", type=int, default=96)
    add("--classes", type=int, default=10)
    add("--batch-size", type=int, default=64, help="of one GPU, or on the host of all ranks")
    add("--threads", type=int, help="of all ranks together (default: every core)")
    add("--steps", type=int, default=10)
    add("--warm-up", type=int, default=3)
    add("--rounds", type=int, default=3)
    add("--worker", type=int, help=argparse.SUPPRESS)
    add("--found", default=f"/tmp/scaling-{os.getpid()}.json", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.paper:
        print("\n\n".join(tables()))
        return 0
    if options.worker is None:
        try:
            report(options)
        finally:
            Path(options.found).unlink(missing_ok=True)
        return 0
    options.device = options.devices
    if under_mpi():
        return join(train, lambda: options, failure, "scaling.py")
    if options.worker == 1:
        return train(options)
    names = options.devices.split(",")
    devices = names[: options.worker] if len(names) > 1 else names * options.worker
    options.device = ",".join(devices)
    return spawn(train, options, failure, "scaling.py")


if __name__ == "__main__":
    sys.exit(main())
