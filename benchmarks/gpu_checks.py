"""The cases of `gpu_day.py` that check: every kernel beside the host, losses, a replay's bits.

    kernels    every layer and step, in every way of computing it, at hostile sizes and AlexNet's,
               each by itself, beside the host in float64; update, augmentation and loss
    losses     twenty steps of the whole net, simple and fast, launched and replayed, and PyTorch's
    sanitizer  the hostile ones of "kernels" again, under compute-sanitizer

Everything that `Device.empty` gives out is poisoned before, with NaN or the largest integer: an
element that no thread has written is found.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gpu_cases
import numpy as np
import sass
from gpu_bench import IN_WORDS, TOLERANCE, Bench, compare, copied, groups_of, steps_of, ways_of
from runner import Case, Dropped, Job

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    SoftmaxCrossEntropy,
)
from layers.fast.bfloat16 import from_bits, to_bits
from layers.fast.conv.steps import TensorConv
from layers.fast.plan import plan, plan_loss
from layers.fast.precision import BITS, round_into, widen_into
from tinyconv import SGD, Sequential
from tinyconv.data.augment import Augment
from tinyconv.lab.cases import CASES
from tinyconv.lab.cases.book import gradient_cases, small_net
from tinyconv.train import SingleStep

BY_CUBLAS = 5e-3
"""The tolerance of a Linear in TF32: how cuBLAS converts float32 is not documented. If it cuts bits
off, each factor is too small by up to 2^-10."""

EXACT = 1e-11
"""That of float64, for the few sums of hostile sizes."""

JOINED = 2e-2
"""That of two convolutions joined by a ReLU in TF32 and BF16: what is between them is rounded where
the host does not round."""


@contextmanager
def poisoned() -> Iterator[None]:
    """New arrays hold what no result may depend on."""
    empty = Device.empty

    def with_poison(self: Device, shape: tuple[int, ...], dtype: Any) -> Any:
        array, dtype = empty(self, shape, dtype), np.dtype(dtype)
        # Of bfloat16's bits 0x7fff is a NaN as well.
        array.fill(np.nan if dtype.kind == "f" else 0x7FFF if dtype == BITS else 127)
        return array

    Device.empty = with_poison  # type: ignore[method-assign]
    try:
        yield
    finally:
        Device.empty = empty  # type: ignore[method-assign]


# --- layers and steps


def check(
    bench: Bench,
    layers: list[Any],
    shape: tuple[int, ...],
    tolerance: float = TOLERANCE,
    **options: str,
) -> None:
    """Forward and backward of one input or several beside the host; ValueError says what differs.

    shape: of x. What the ReLU of the host lets through is what the device's has let through: a sum
    next to 0 may fall on either side, and what it masks would be another gradient.
    """
    device, precision = bench.device, options.get("precision", "fp32")
    dtype = options.get("dtype", "float32")
    ours, steps = steps_of(bench, layers, **options)
    rounds = isinstance(layers[0], Conv2D | Linear)
    if isinstance(layers[0], Linear) and precision == "tf32" and not device.is_simulated:
        tolerance = BY_CUBLAS
    if dtype == "float64":
        tolerance = EXACT
    factors = precision if rounds or precision == "bf16" else "fp32"
    theirs = [layer.to("cpu", np.float64) for layer in copied(layers)]
    for host, gpu in zip(theirs, ours, strict=True):
        host.set_step(0)
        for number, (right, p) in enumerate(zip(host.parameters(), gpu.parameters(), strict=True)):
            right.value[...] = bench.rounded(p.value, "fp32" if number else factors)
    # BLAS for products; one step for each layer, so that the ReLUs can be told what to let through.
    oracles = [
        plan([layer], Device("cpu"), np.float64)[0] if isinstance(layer, Conv2D | Linear) else layer
        for layer in theirs
    ]
    x = bench.random(*shape).astype(dtype)
    y, right = bench.stored(x, precision), bench.rounded(x, factors)
    for step in steps:
        y = step.forward(y)
    for oracle in oracles:
        right = oracle.forward(right)
    compare("y", device.to_host(y).copy(), right, tolerance)
    for oracle, gpu in zip(oracles, ours, strict=True):
        if isinstance(oracle, ReLU):
            values = device.to_host(gpu.y)
            # In an array of its own: the next layer remembers the old one as its x.
            oracle.y = ((from_bits(values) if values.dtype == BITS else values) > 0) * 1.0
    dy = bench.random(*y.shape).astype(dtype)
    dx, right = bench.stored(dy, precision), bench.rounded(dy, factors)
    for step in reversed(steps):
        dx = step.backward(dx)
    for oracle in reversed(oracles):
        right = oracle.backward(right)
    compare("dx", device.to_host(dx), right, tolerance)
    for host, gpu in zip(theirs, ours, strict=True):
        for name, p, value in zip(("dw", "db"), gpu.parameters(), host.parameters(), strict=False):
            # dL/db isn't a product: what it adds up is rounded only where it is stored so.
            loose = 2**-9 if (name, precision) == ("db", "tf32") else 0
            compare(name, device.to_host(p.grad), value.grad, tolerance + loose)


def two_convs() -> tuple[list[Any], tuple[int, ...]]:
    """Convolutions of which the second masks its dL/dx with the first one's ReLU; x's shape."""
    convs = Conv2D(5, 8, 3, padding=1), ReLU(), Conv2D(8, 8, 2, stride=2, groups=2), ReLU()
    return [*convs, Conv2D(8, 128, 1), ReLU()], (2, 6, 7, 5)


def in_float64(bench: Bench, layers: list[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The ways of computing layers that also have kernels for float64."""
    if bench.device.is_cuda:
        is_conv = isinstance(layers[0], Conv2D)
        yield "simple, float64", {"kernels": "simple", "dtype": "float64"}
        rung = {"algorithm": "shared"} if is_conv else {}
        yield "fast, float64", {"kernels": "fast", "dtype": "float64", **rung}


def of_gradients() -> Iterator[tuple[str, list[Any], tuple[int, ...]]]:
    """The layers whose derivatives `python -m tinyconv gradcheck` checks, and shapes of x."""
    for title, layer, x, labels in gradient_cases():
        if labels is None and not isinstance(layer, Flatten | Sequential):
            yield title, [layer], x.shape


def more_layers() -> Iterator[tuple[str, list[Any], tuple[int, ...]]]:
    """What is launched for AlexNet or for hostile sizes, and by none of `gradient_cases`."""
    yield "Linear, ReLU", [Linear(7, 33), ReLU()], (3, 7)
    yield "Linear, ReLU, Dropout", [Linear(5, 40), ReLU(), Dropout(0.5)], (130, 5)
    yield "Linear, ReLU, many rows", [Linear(2, 4), ReLU()], (4200, 2)
    yield "MaxPool2D 3, stride 2, 8 channels", [MaxPool2D(3, 2)], (2, 7, 8, 8)
    yield "LocalResponseNorm 5, 16 channels", [LocalResponseNorm(alpha=0.5)], (2, 3, 4, 16)
    yield "Conv2D 2×2, 8 channels, ReLU", [Conv2D(8, 12, 2), ReLU()], (2, 4, 3, 8)
    yield "Conv2D 1×1, 128 filters, ReLU", [Conv2D(3, 128, 1), ReLU()], (3, 3, 2, 3)


def check_cases(bench: Bench, hostile: bool = False) -> Iterator[Case]:
    """Every layer in every way, and what is outside of layers. hostile: at hostile sizes alone."""
    device, net = bench.device, () if hostile else groups_of(bench.host_net)
    of_net = [(f"{'+'.join(x.name for x in g)} of AlexNet", g, (2, *shape)) for g, shape in net]
    tensor_cores = device.is_cuda and bench.precisions[-1] != "fp32"
    tiled = [*more_layers(), *([] if device.is_simulated else of_net)]
    checks: list[tuple[str, str, Callable[[], Any]]] = [
        (title, who, partial(check, bench, layers, shape, **options))
        for title, layers, shape in [*of_gradients(), *more_layers(), *of_net]
        for who, options in [*ways_of(bench, layers), *in_float64(bench, layers)]
        if "dtype" not in options or "AlexNet" not in title
    ]
    for title, (conv, *_), shape in tiled if tensor_cores else ():
        for direction, precision in product(gpu_cases.PRODUCTS, gpu_cases.PRECISIONS):
            if isinstance(conv, Conv2D):
                args = bench, conv, shape, direction, precision, "128x128"
                run = partial(gpu_cases.one_product, *args)
                checks.append((f"{title}, {direction}", f"all tiles, {precision}", run))
    for precision in bench.precisions if device.is_cuda else ():
        if precision != "fp32":
            run = partial(check, bench, *two_convs(), JOINED, kernels="fast", precision=precision)
            checks.append(("two convolutions and their ReLUs", "fast" + IN_WORDS[precision], run))
            run = partial(check_s2d_crops, bench, precision)
            checks.append(("crops for conv1", "fast" + IN_WORDS[precision], run))
    sizes = (5, 7), (bench.batch, 4 if bench.batch < 9 else 1000)
    for dtype in ("float32", "float64") if device.is_cuda else ("float32",):
        for who, (rows, classes) in product(("simple", "fast"), sizes):
            run = partial(check_loss, bench, who == "fast", rows, classes, dtype)
            checks.append((f"loss, {rows}×{classes}", f"{who}, {dtype}", run))
        checks.append(("sgd", dtype, partial(check_update, bench, dtype)))
        checks.append(("augmentation", dtype, partial(check_crops, bench, dtype)))
    if "bf16" in bench.precisions and device.is_cuda:
        checks.append(("conversions", "fast, BF16", partial(check_conversions, bench)))

    def make(run: Callable[[], Any]) -> Job:
        with poisoned():
            run()
        return Job()

    for what, who, run in checks:
        yield Case("kernels", what, who, partial(make, run))


def check_loss(bench: Bench, fast: bool, rows: int, classes: int, dtype: str) -> None:
    """Loss, probabilities and gradient; with two equal largest logits, and one of a large row."""
    device = bench.device
    ours = plan_loss(device, dtype) if fast else SoftmaxCrossEntropy().to(device, dtype)
    theirs = SoftmaxCrossEntropy().to("cpu", np.float64)
    logits = device.to_host(bench.random(rows, classes)).astype(dtype)
    logits[0] += 80
    logits[1, :2] = 5
    labels = bench.rng.integers(0, classes, rows)
    loss = ours.forward(device.array(logits), labels)
    right = theirs.forward(logits.astype(np.float64), labels)
    compare("loss", np.array([loss]), np.array([right]))
    compare("probabilities", device.to_host(ours.probabilities), theirs.probabilities)
    compare("dlogits", device.to_host(ours.backward()), theirs.backward())
    if fast and device.is_cuda:
        pending, hits = ours.pending()
        compare("pending loss", np.array([float(pending)]), np.array([right]))
        if float(hits) != np.sum(logits.argmax(axis=1) == labels):
            raise ValueError(f"{float(hits)} hits counted")


def check_update(bench: Bench, dtype: str) -> None:
    """Three updates of a small net's parameters with random gradients."""
    results = []
    for place in (bench.device, Device("cpu")):
        net = small_net(np.random.default_rng(0)).to(place, dtype)
        rng = np.random.default_rng(5)
        optimizer = SGD(net.parameters(), 0.01, 0.9, 5e-4)
        for _ in range(3):
            for p in net.parameters():
                p.grad[...] = place.array(rng.standard_normal(p.grad.shape).astype(dtype))
            optimizer.step(1.0)
        results.append(place.to_host(optimizer.values).copy())
    compare("weights", *results, tolerance=1e-6)


def check_crops(bench: Bench, dtype: str) -> None:
    """Training's crops and ten views: the host's bits."""
    images = bench.rng.integers(0, 256, (3, 11, 11, 3), np.uint8)
    mean = images.mean(axis=0).astype(np.float32)
    results = []
    for place in (bench.device, Device("cpu")):
        augment = Augment(mean, 8, 2.0, 7, 20 * np.eye(3)).to(place, dtype)
        crops = augment.random(images, np.arange(3), 1)
        results.append([place.to_host(crops).copy(), place.to_host(augment.ten_views(images))])
    for what, ours, right in zip(("random crops", "ten views"), *results, strict=True):
        if not np.array_equal(ours, right):
            compare(what, ours, right, 0)


def check_s2d_crops(bench: Bench, precision: str) -> None:
    """Crops written as a convolution multiplies them: the bits of two passes."""
    images = bench.rng.integers(0, 256, (3, 17, 17, 3), np.uint8)
    found = []
    for direct in (True, False):
        steps = plan([Conv2D(3, 8, 11, 4, 2).to(bench.device)], bench.device, precision=precision)
        augment = Augment(images.mean(axis=0), 15, 2.0, 7, 20 * np.eye(3))
        augment.to(bench.device, np.float32, steps[0] if direct else None)
        x = augment.random(images, np.arange(3), 1)
        for step in steps:
            x = step.forward(x)
        (conv,) = (step for step in steps if isinstance(step, TensorConv))
        found.append(bench.device.to_host(conv.x_s2d).copy())
    if not np.array_equal(*found):
        raise ValueError("crops in space-to-depth form have other bits than by two passes")


def check_conversions(bench: Bench) -> None:
    """To bfloat16 and back: the host's bits, infinities and numbers next to 0 among them."""
    x = bench.random(1031)
    x[:6] = bench.device.array(np.float32([np.inf, -np.inf, 0, -0.0, 1e-40, 3.4e38]))
    bits = bench.device.empty(x.shape, BITS)
    back = bench.device.empty(x.shape, np.float32)
    round_into(bench.device, "bf16", x, bits)
    widen_into(bits, back)
    right = to_bits(bench.device.to_host(x))
    if not np.array_equal(bench.device.to_host(bits), right):
        raise ValueError("the bits of bfloat16 are not the host's")
    if not np.array_equal(bench.device.to_host(back), from_bits(right)):
        raise ValueError("bfloat16 widened is not the host's")


# --- whole steps

STEPS, SLOWLY = 20, 1e-4
"""On one and the same batch, so that the loss falls and a wrong gradient shows. At ten times the
rate it falls further, and any two ways of rounding part: a ReLU or a maximum decides otherwise."""

LOSS_TOLERANCE = {"fp32": 2e-3, "tf32": 1e-2, "bf16": 2e-2}
"""Relative, in every step. Both sides round, at different places, float32 to 2^-24, TF32 to 2^-11,
BF16 to 2^-9 of each number, and each update begins from the differences of the last. On the host,
where 8 photos took the full net from 7.4 to 5.3, the largest differences were 3e-4, 1e-3 (TF32
beside float32) and 3e-3; at ten times the rate float32's alone were 7e-2."""


class Losses:
    """Twenty steps from the same weights on the same batch, by everything that computes them.

    Ours are compared with the simple kernels in float32, PyTorch's with ours of one precision; what
    is replayed also with what was launched one by one, bit by bit.
    """

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.batch, self.steps = bench, bench.batch_of(bench.batch), steps
        self.found: dict[tuple[str, str], tuple[list[float], np.ndarray]] = {}

    def cases(self) -> Iterator[Case]:
        """The reference first."""
        bench = self.bench
        what = f"{self.steps} losses"
        yield Case("losses", f"small net, {what}", "simple, host", self.small_net)
        for who, precision in gpu_cases.our_ways(bench, gpu_cases.WAYS):
            if bench.device.is_cuda or "graph" not in gpu_cases.WAYS[who]:
                make = partial(self.ours, who, precision)
                yield Case("losses", what, who + IN_WORDS[precision], make)
        for precision in bench.precisions if bench.torch else ():
            make = partial(self.pytorch, precision)
            yield Case("losses", what, "PyTorch" + IN_WORDS[precision], make)

    def small_net(self) -> Job:
        """A small net with every kind of layer: the device's losses beside the host's."""
        x = self.bench.rng.standard_normal((3, 9, 8, 3)).astype(np.float32)
        losses: list[list[float]] = []
        for place in (self.bench.device, Device("cpu")):
            net = small_net(np.random.default_rng(0)).to(place, np.float32, kernels="simple")
            step = SingleStep(net, SGD(net.parameters(), 0.01))
            losses.append([])
            for number in range(self.steps):
                gpu_cases.run_step(step, place.array(x), np.array([3, 0, 2]), number)
                losses[-1].append(step.loss.value())
        return self.agree(*losses, tolerance=1e-4)

    def losses(self, who: str, precision: str) -> tuple[list[float], np.ndarray]:
        """Of one way, and its weights afterwards; computed once."""
        if (who, precision) not in self.found:
            way = gpu_cases.WAYS[who]
            step: Any = gpu_cases.new_step(self.bench, precision, **way, lr=SLOWLY)
            losses = []
            for number in range(self.steps):
                gpu_cases.run_step(step, *self.batch, number)
                losses.append(step.loss.value())
            if "graph" in way and not step.replayed:
                raise ValueError("the step was not replayed: no graph could be recorded")
            if way.get("graph") == "one" and self.bench.on_gpu and step.pieces != 1:
                raise ValueError(f"recorded in {step.pieces} pieces: products are not captured")
            values = self.bench.device.to_host(step.optimizer.values).copy()
            self.found[who, precision] = losses, values
        return self.found[who, precision]

    def ours(self, who: str, precision: str) -> Job:
        """Beside the simple kernels; a replay also beside the same launches."""
        losses, values = self.losses(who, precision)
        equal = {}
        if graph := gpu_cases.WAYS[who].get("graph"):
            equal["equal bits"] = bool(np.array_equal(values, self.losses("fast", precision)[1]))
            if not equal["equal bits"] and graph != "one":
                raise ValueError("a replayed step gives other bits than a plain one")
        right, _ = self.losses("simple", "fp32")
        return self.agree(losses, right, LOSS_TOLERANCE[precision], **equal)

    def pytorch(self, precision: str) -> Job:
        """PyTorch, channels last, with our masks; on the host it has no TF32: float32 there."""
        rest = self.batch, precision, True, True
        run = gpu_cases.torch_training(self.bench, *rest, lr=SLOWLY)
        right, _ = self.losses("fast", precision)
        return self.agree([run().item() for _ in right], right, LOSS_TOLERANCE[precision])

    @staticmethod
    def agree(found: list[float], right: list[float], tolerance: float, **notes: Any) -> Job:
        """The largest relative difference; ValueError if that is too large."""
        differences = [abs(a - b) / abs(b) for a, b in zip(found, right, strict=True)]
        for number, difference in enumerate(differences, start=1):
            if not difference <= tolerance:
                raise ValueError(f"the loss of step {number} differs by {difference:.2g}")
        notes |= {"losses": found, "beside": right, "largest difference": max(differences)}
        return Job(notes=lambda: notes)


# --- compute-sanitizer

FOUND = 86
"""Exit status that compute-sanitizer is told to end with if it has found something."""

OPTIONS = (
    *("--destroy-on-device-error", "kernel"),  # the launches after a faulty one can still be made
    *("--demangle", "no", "--report-api-errors", "no", "--print-limit", "0"),
    *("--error-exitcode", str(FOUND)),
)


def reports(log: str, kernels: set[str]) -> tuple[Counter[str], list[str]]:
    """What a tool has written: reports about each kernel, and those that name none of them.

    A report is a line that begins right behind the tool's mark, and the indented lines below it.
    """
    found: Counter[str] = Counter()
    nameless = []
    for text in re.split(r"^=+ (?=\S)", log, flags=re.MULTILINE)[1:]:
        if text.startswith(("COMPUTE-SANITIZER", "ERROR SUMMARY", "RACECHECK SUMMARY")):
            continue
        # In a mangled name the length stands before it, and something in capitals behind it.
        named = [k for k in kernels if re.search(rf"(?<![A-Za-z_]){k}(?![a-z_])", text)]
        found.update(named)
        if not named:
            nameless.append(text.partition("\n")[0])
    return found, nameless


def sanitizer_cases(bench: Bench, options: Any) -> Iterator[Case]:
    """The hostile checks of stage "kernels" again, under its tools."""
    for tool in ("memcheck", "racecheck", "synccheck"):
        make = partial(under_sanitizer, bench, options, tool)
        yield Case("sanitizer", tool, "hostile checks", make)


def under_sanitizer(bench: Bench, options: Any, tool: str) -> Job:
    """What the tool reports; ValueError if that is anything, or if a check fails under it."""
    program = sass.find_tool("compute-sanitizer")
    if program is None or not bench.on_gpu:
        missing = f"compute-sanitizer is missing: {sass.INSTALL['compute-sanitizer']}"
        raise Dropped("there is no GPU" if program else missing)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.touch()
        day = str(Path(__file__).with_name("gpu_day.py"))
        command = [program, "--tool", tool, *OPTIONS, "--log-file", str(log)]
        libraries = Path(program).resolve().parents[1] / "lib"
        if (libraries / "libsanitizer-collection.so").exists():  # CUDA 12's wheel has them apart
            command += ["--injection-path", str(libraries)]
        command += [sys.executable, day, "--child", "b", "--alone", "--only", "hostile"]
        command += ["--seed", str(options.seed), "--device", options.device]
        command += ["--limit", f"{options.limit / 2:.0f}"]
        done = subprocess.run(command, capture_output=True, text=True)
        found, nameless = reports(log.read_text(), set(CASES))
    if found or nameless or done.returncode == FOUND:
        said = [f"{name}: {count}" for name, count in found.items()] + nameless
        raise ValueError(f"{sum(found.values()) + len(nameless)} reports: {', '.join(said)}")
    if done.returncode:
        (why,) = done.stderr.strip().splitlines()[-1:] or [""]
        raise ValueError(f"exit status {done.returncode}: {why}")
    return Job(notes=lambda: {"checks": done.stdout.count('"section"')})
