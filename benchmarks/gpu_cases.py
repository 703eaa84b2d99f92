"""The cases of `gpu_day.py` that are timed: ceilings, whole steps, layers, launches, tiles.

Ours run on `Bench.device`, PyTorch's on the same GPU, on the same stream, and on the same memory
(or both on the host, in a rehearsal). Results are checked before they are timed.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import limits
import numpy as np
from runner import Case, Job

from layers import Conv2D, Device, DeviceError, Dropout, Flatten, Linear, ReLU
from layers.device import SIMULATED
from layers.fast import graph
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile_table import TILES, layer_key
from layers.fast.gemm import multiply
from layers.fast.plan import plan
from layers.fast.precision import BITS, round_into, settle, storage_of
from layers.layer import Buffers
from tinyconv import SGD, train
from tinyconv.data.augment import Augment
from tinyconv.data.photos import PhotoSet
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.run.graph_step import GraphStep
from tinyconv.train import SingleStep

# --- launches


@contextmanager
def around_launches(around: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """Within it every launch of a kernel, and every product of a library, is made in around(name).

    There is no hook for it: the methods that make launches are replaced meanwhile.
    """
    if SIMULATED:
        from numba.cuda.simulator.kernel import FakeCUDAKernel as Kernel

        name = "__call__"
    else:
        from numba.cuda.dispatcher import CUDADispatcher as Kernel

        name = "call"
    launch, multiply = getattr(Kernel, name), graph.multiply

    def noted(self: Any, *arguments: Any) -> Any:
        if getattr(self, "_device", False):  # a simulated function that a kernel calls
            return launch(self, *arguments)
        with around(self.__name__):
            return launch(self, *arguments)

    def noted_product(*arguments: Any, **options: Any) -> None:
        with around("product"):
            multiply(*arguments, **options)

    setattr(Kernel, name, noted)
    graph.multiply = noted_product
    try:
        yield
    finally:
        setattr(Kernel, name, launch)
        graph.multiply = multiply


def each_launch(device: Device, run: Callable[[], Any], busy: Callable[[], Any]) -> list[Any]:
    """(name, seconds on the device) of every launch and product of run(), in order.

    busy: work that keeps the GPU occupied until the host has queued all of them; else the time
    between two events would be the host's.
    """
    events: list[tuple[str, Any, Any]] = []
    on_gpu = device.is_cuda and not device.is_simulated

    def event() -> Any:
        if not on_gpu:
            return time.perf_counter()
        made = device.xp.cuda.Event()
        made.record()
        return made

    @contextmanager
    def around(name: str) -> Iterator[None]:
        before = event()
        yield
        events.append((name, before, event()))

    busy()
    with around_launches(around):
        run()
    device.synchronize()
    if not on_gpu:
        return [(name, end - start) for name, start, end in events]
    elapsed = device.xp.cuda.get_elapsed_time
    return [(name, elapsed(start, end) / 1e3) for name, start, end in events]


# --- what the cases share


class Mode(NamedTuple):
    """How PyTorch computes. precision: bf16 is its autocast; last: channels last."""

    precision: str
    last: bool


MODES = {
    "PyTorch": Mode("fp32", False),
    "PyTorch, channels_last": Mode("fp32", True),
    "PyTorch, TF32": Mode("tf32", False),
    "PyTorch, TF32, channels_last": Mode("tf32", True),
    "PyTorch, BF16, channels_last": Mode("bf16", True),
}
COMPILED = {
    f"{name}, compiled": mode
    for name, mode in MODES.items()
    if mode.last and mode.precision != "fp32"
}
IN_WORDS = {"fp32": "", "tf32": ", TF32", "bf16": ", BF16"}
"""By precision, the suffix of a name."""

TOLERANCE = 1e-4
"""Relative to the largest element, for float32 sums of up to 10^5 products in another order. The
factors were rounded in the same way, so that nothing else differs in TF32 and BF16. (Tensor cores
truncate sums where float32 rounds: an error of up to 2^-23 of the sum for each 8 or 16 products,
always towards zero, 10^-4 after a thousand additions. The longest sums, those of dL/dw, are split
into partial sums of about a hundred.)"""

STORED = 2**-7
"""Added to it for a result that is stored as bfloat16: four times the error of that rounding, as
what it is computed from may have been stored, too (tanh's derivative, 1 - y^2, doubles y's)."""

DRAWN = 2**22 + 15
"""As many numbers are drawn; larger arrays repeat them. (Odd: no axis has that period.)"""


@dataclass
class Bench:
    """Where and on what the cases run. torch: the module, or None where it is not installed."""

    device: Device
    make_net: Callable[[], Any]
    """With the weights of a new net; `bare_net` has none."""
    bare_net: Callable[[], Any]
    batch: int
    copied: int
    matrix: int
    torch: Any
    rng: np.random.Generator

    @cached_property
    def host_net(self) -> Any:
        """A net on the host, for its layers and their sizes."""
        return self.bare_net()

    @property
    def precisions(self) -> list[str]:
        """Those that the device computes in."""
        known = []
        for precision in IN_WORDS:
            with suppress(DeviceError):
                known.append(settle(precision, self.device))
        return known

    def random(self, *shape: int) -> Any:
        """float32 from N(0, 1), on the device."""
        drawn = self.rng.standard_normal(min(math.prod(shape), DRAWN), np.float32)
        return self.device.xp.resize(self.device.array(drawn), shape)

    def stored(self, array: Any, precision: str) -> Any:
        """float32 numbers as a net hands them on in this precision: bf16 rounds them."""
        if precision != "bf16":
            return array
        kept = self.device.empty(array.shape, storage_of(precision, self.device, array.dtype))
        round_into(self.device, precision, array, kept)
        return kept

    def rounded(self, array: Any, precision: str) -> np.ndarray:
        """float32 numbers as the factors of a product in this precision; a float64 copy."""
        values = np.ascontiguousarray(self.device.to_host(array))
        rounding = {"tf32": round_tf32, "bf16": round_bf16}.get(precision, lambda x, out: x)
        return rounding(values, np.empty_like(values)).astype(np.float64)

    def batch_of(self, count: int) -> tuple[Any, np.ndarray]:
        """Random images on the device, and labels on the host."""
        net = self.host_net
        (classes,) = net.output_shapes(net.input_shape)[-1]
        labels = self.rng.integers(0, classes, count)
        return self.random(count, *net.input_shape), labels

    def image(self, array: Any, mode: Mode = MODES["PyTorch"]) -> Any:
        """An array (N, H, W, C) as a tensor (N, C, H, W) of its own; others as they are."""
        tensor = self.torch.from_dlpack(array)
        if mode.precision == "bf16":
            tensor = tensor.to(self.torch.bfloat16)
        if tensor.ndim != 4:
            return tensor.clone()
        formats = self.torch.contiguous_format, self.torch.channels_last
        return tensor.permute(0, 3, 1, 2).clone(memory_format=formats[mode.last])

    @contextmanager
    def mode(self, precision: str) -> Iterator[None]:
        """PyTorch on our stream, cuDNN free to choose, TF32 allowed for "tf32" alone."""
        cuda, cudnn = self.torch.backends.cuda.matmul, self.torch.backends.cudnn
        before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        with ExitStack() as stack:
            if self.device.xp is not np:
                pointer = self.device.xp.cuda.get_current_stream().ptr
                stream = self.torch.cuda.ExternalStream(pointer)
                stack.enter_context(self.torch.cuda.stream(stream))
            cuda.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
            cudnn.benchmark = True
            try:
                yield
            finally:
                cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """For "bf16" PyTorch's autocast; to be entered for each run, for it keeps what it casts."""
        if precision != "bf16":
            return nullcontext()
        kind = "cpu" if self.device.xp is np else "cuda"
        return self.torch.autocast(kind, self.torch.bfloat16)


def compare(what: str, ours: np.ndarray, right: Any, tolerance: float = TOLERANCE) -> None:
    """ValueError if two host arrays differ by more than `tolerance` of the largest element.

    ours: may be bfloat16's bits (uint16); `STORED` is allowed then as well.
    """
    if ours.dtype == BITS:
        ours, tolerance = from_bits(np.ascontiguousarray(ours)), tolerance + STORED
    difference = np.abs(ours - right)
    size = float(np.max(np.abs(right), initial=0))
    error = float(np.max(difference, initial=0))
    if not error <= tolerance * size:
        bad = ~(difference <= tolerance * size)
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{what} is wrong by {error:.2g}, its largest element is {size:.2g}; "
            f"{np.mean(bad):.1%} of {difference.shape} are wrong, the first {first}"
        )


# --- ceilings


def ceiling_cases(bench: Bench) -> Iterator[Case]:
    """Copy bandwidth, and the rate of a large matrix product in each precision."""
    library = bench.device.xp.__name__
    yield Case("ceilings", "copy bandwidth", library, partial(copy, bench))
    for precision in bench.precisions:
        name = f"matrix product{IN_WORDS[precision]}"
        yield Case("ceilings", name, library, partial(product, bench, precision))


def copy(bench: Bench) -> Job:
    x = bench.random(bench.copied)
    y = bench.device.empty(x.shape, x.dtype)
    return Job(lambda: y.__setitem__(..., x), moved=2 * x.nbytes)


def product(bench: Bench, precision: str) -> Job:
    n = bench.matrix
    abc = tuple(bench.stored(bench.random(n, n), precision) for _ in range(3))
    return Job(lambda: multiply(bench.device, abc, precision=precision), operations=2 * n**3)


# --- whole steps

LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
WAYS: dict[str, dict[str, Any]] = {
    "simple": {"kernels": "simple"},
    "fast": {},
    "fast, one graph": {"graph": "one"},
    "fast, graphs cut at products": {"graph": "cut"},
}
"""How a step of ours is made: the options of `new_step`."""
COLUMNS = {"two columns on this GPU": {"columns": True}}


def step_cases(
    bench: Bench, batches: tuple[int, ...], ways: dict[str, dict[str, Any]] = WAYS
) -> Iterator[Case]:
    """Our steps: simple in fp32 and at the first batch size, the others in everything."""
    for count in batches:
        for who, way in ways.items():
            for precision in ["fp32"] if "kernels" in way else bench.precisions:
                if "kernels" not in way or count == batches[0]:
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
    graph: str = "",
    columns: bool = False,
    lr: float = LR,
) -> SingleStep:
    """A fresh net on the device with loss and optimizer, always with the same weights.

    graph: "one" or "cut" to record it as one graph, or cut at products.
    """
    net = bench.make_net()
    if columns:
        net = Columns(net, (bench.device, bench.device))
    net.to(bench.device, precision=precision, kernels=kernels)
    net.layers[0].input_gradient = False
    if columns:
        return SingleStep(net, ColumnSGD(net.parameters(), lr, MOMENTUM, DECAY))
    optimizer = SGD(net.parameters(), lr, MOMENTUM, DECAY)
    if kernels == "simple" or not bench.device.is_cuda:
        return SingleStep(net, optimizer)
    return GraphStep(net, optimizer, bool(graph), one_graph=graph == "one")


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
        if way.get("graph"):
            found["pieces"] = getattr(step, "pieces", 0)  # on the host nothing is recorded
        return found

    work = amount(bench, count, precision)
    if way.get("graph"):  # it is recorded in the second step
        run_step(step, x, labels, next(number))
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


# --- launches


def launch_cases(bench: Bench, settings: tuple[tuple[str, int], ...]) -> Iterator[Case]:
    """The time of each launch of one step."""
    for precision, count in settings:
        if bench.device.is_cuda and precision in bench.precisions:
            make = partial(launches_of_a_step, bench, precision, count)
            yield Case("launches", f"{precision} {count}", "fast", make)


def launches_of_a_step(bench: Bench, precision: str, count: int) -> Job:
    step: Any = new_step(bench, precision)
    x, labels = bench.batch_of(count)
    abc = tuple(bench.random(bench.matrix, bench.matrix) for _ in range(3))

    def busy() -> None:
        for _ in range(4):  # of an H200 about 60 ms
            multiply(bench.device, abc)

    for number in range(2):
        run_step(step, x, labels, number)
    found = each_launch(bench.device, lambda: run_step(step, x, labels, 2), busy)
    return Job(notes=lambda: {"launches": found, "precision": precision, "batch": count})


# --- training


def training_cases(bench: Bench, main_job: list[str], batches: int) -> Iterator[Case]:
    """The README's first command; and the loop on photos that are in memory already."""
    yield Case("training", "examples/train_alexnet.py", bench.device.name, partial(job, main_job))
    for precision in bench.precisions:
        make = partial(throughput, bench, precision, batches)
        what = f"{batches} batches of {bench.batch}"
        yield Case("training", what, "tinyconv.train" + IN_WORDS[precision], make)


def job(arguments: list[str]) -> Job:
    """A process of its own, as a user starts it; its last epoch and what it says at its end."""
    script = Path(__file__).resolve().parents[1] / "examples" / "train_alexnet.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), *arguments, "--out", str(Path(folder, "run"))]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
        took = time.perf_counter() - start
    lines = done.stdout.splitlines()
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    said = [line for line in lines if re.match(r"epoch|validation top-1", line)]
    return Job(notes=lambda: {"said": said[-2:], "wall": took})


def throughput(bench: Bench, precision: str, batches: int) -> Job:
    """Images a second of the real loop, photos of Imagenette's classes and size, and its waits."""
    net = bench.make_net().to(bench.device, precision=precision)
    crop, (classes,) = net.input_shape[0], net.output_shapes(net.input_shape)[-1]
    side, count = crop * 8 // 7, bench.batch * batches
    images = bench.rng.integers(0, 256, (min(count, 2048), side, side, 3), np.uint8)
    images = np.resize(images, (count, side, side, 3))
    labels = bench.rng.integers(0, classes, count)
    photos = PhotoSet(images, labels, tuple(f"class {i}" for i in range(classes)))
    few = PhotoSet(images[: bench.batch], labels[: bench.batch], photos.class_names)
    augment = Augment(images[:256].mean(axis=0).astype(np.float32), crop)
    epochs = train(net, photos, few, augment, epochs=2, batch_size=bench.batch, lr=1e-3)
    last = epochs[-1]  # in the first one kernels are compiled, and the step is recorded
    return Job(notes=lambda: {"images a second": last.images_per_second, "waited": last.waited})


# --- convolutions and other layers

RUNGS = {"direct": ["fp32"], "shared": ["fp32"], "tiled": ["fp32"], "tensor": ["tf32", "bf16"]}
"""On a GPU, from the readable to the fast, and the precisions that each is for."""

DIRECTIONS = "forward", "filter gradient", "both gradients"
PYTORCH = "PyTorch", "PyTorch, channels_last", "PyTorch, BF16, channels_last"
"""Its modes for the other layers; TF32 makes a difference to Linear alone."""


def groups_of(net: Any) -> Iterator[tuple[list[Any], tuple[int, ...]]]:
    """The layers of a net as steps join them, without views, and the shape of one input of each."""
    layers = list(net)
    shapes = [net.input_shape, *net.output_shapes(net.input_shape)]
    joined = (Conv2D, ReLU), (Linear, ReLU, Dropout), (Linear, ReLU)
    place = 0
    while place < len(layers):
        kinds = [type(layer) for layer in layers[place:]]
        count = max([len(k) for k in joined if tuple(kinds[: len(k)]) == k], default=1)
        if kinds[0] is not Flatten:
            yield layers[place : place + count], shapes[place]
        place += count


def ways_of(bench: Bench, layers: list[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Title and options of `steps_of` for each of our ways of computing the layers."""
    first = layers[0]
    if isinstance(first, Conv2D):
        known = RUNGS if bench.device.is_cuda else {"host": list(IN_WORDS)}
        for rung, precisions in known.items():
            for precision in precisions:
                if precision in bench.precisions:
                    kernels = "simple" if rung == "direct" else "fast"
                    options = {"kernels": kernels, "precision": precision, "algorithm": rung}
                    yield rung + IN_WORDS[precision], options
        return
    yield "simple", {"kernels": "simple"}
    for precision in bench.precisions:
        if precision != "tf32" or isinstance(first, Linear):
            yield "fast" + IN_WORDS[precision], {"kernels": "fast", "precision": precision}


def copied(layers: list[Any]) -> list[Any]:
    """The same layers again. (Their device holds the module NumPy, which cannot be copied.)"""
    return deepcopy(layers, {id(np): np})


def steps_of(
    bench: Bench, layers: list[Any], kernels: str, precision: str = "fp32", algorithm: str = "auto"
) -> tuple[list[Any], list[Any]]:
    """Copies on the device, with weights for outputs of about unit size, and what computes them."""
    layers = [layer.to(bench.device, np.float32) for layer in copied(layers)]
    for layer in layers:
        if isinstance(layer, Conv2D):
            layer.algorithm = algorithm
        for p in layer.parameters():
            fan_in = p.value[0].size if p.value.ndim > 1 else 1
            p.value[...] = bench.random(*p.value.shape) / np.float32(math.sqrt(fan_in))
        layer.set_step(0)
    if kernels == "simple":
        return layers, layers
    return layers, plan(layers, bench.device, np.float32, precision, float32_ends=False)


def conv_cases(bench: Bench) -> Iterator[Case]:
    """Every convolution of the net, every rung and PyTorch's modes, in three directions."""
    for layers, shape in groups_of(bench.host_net):
        if isinstance(layers[0], Conv2D):
            for direction in DIRECTIONS:
                yield from timed(bench, "convolutions", layers[:1], shape, direction, tuple(MODES))


def layer_cases(bench: Bench) -> Iterator[Case]:
    """The other layers, as `layers/*.py` and as the plan compute them, and PyTorch's."""
    for layers, shape in groups_of(bench.host_net):
        if not isinstance(layers[0], Conv2D):
            modes = PYTORCH + ("PyTorch, TF32",) * isinstance(layers[0], Linear)
            for direction in ("forward", "backward"):
                yield from timed(bench, "layers", layers, shape, direction, modes)


def timed(
    bench: Bench, section: str, layers: list[Any], shape: tuple, direction: str, modes: tuple
) -> Iterator[Case]:
    """Some layers in one direction, by ours and by PyTorch's modules."""
    what = "+".join(layer.name for layer in layers) + " " + direction
    for who, options in ways_of(bench, layers):
        make = partial(our_job, bench, layers, shape, direction, **options)
        yield Case(section, what, who, make)
    for name in modes if bench.torch else ():
        make = partial(torch_job, bench, layers, shape, direction, name)
        yield Case(section, what, name, make)


def work(bench: Bench, layer: Any, shape: tuple, direction: str, precision: str) -> dict[str, int]:
    """Operations and bytes, as docs/limits.md counts them; ReLU behind a layer costs nothing."""
    word = limits.word_of(precision)
    passes = limits.work(layer, shape, bench.batch, direction != "filter gradient", word)
    return dict(zip(("operations", "moved"), passes[direction != "forward"], strict=True))


def our_job(bench: Bench, layers: list[Any], shape: tuple, direction: str, **options: str) -> Job:
    """Layers in one direction. Stage "kernels" has checked the results."""
    precision = options.get("precision", "fp32")
    ours, steps = steps_of(bench, layers, **options)
    ours[0].input_gradient = direction != "filter gradient"
    x = bench.stored(bench.random(bench.batch, *shape), precision)

    def forward() -> Any:
        y = x
        for step in steps:
            y = step.forward(y)
        return y

    dy = bench.stored(bench.random(*forward().shape), precision)

    def backward() -> None:
        dx = dy
        for step in reversed(steps):
            dx = step.backward(dx)

    run = forward if direction == "forward" else backward
    return Job(run, **work(bench, ours[0], shape, direction, precision))


def torch_job(bench: Bench, layers: list[Any], shape: tuple, direction: str, name: str) -> Job:
    """PyTorch's modules for the same layers, backward through its autograd.

    Padding that is not the same on all sides is done before, untimed. The arrays of a convolution
    in BF16 are bfloat16; what autocast does to other layers' is timed.
    """
    from torch_twin import modules_of

    torch, mode = bench.torch, MODES[name]
    x = bench.image(bench.random(bench.batch, *shape), mode)
    modules = [module for layer in layers for module in modules_of(layer, False)]
    if isinstance(modules[0], torch.nn.ZeroPad2d):
        x = modules.pop(0)(x)
    is_conv = isinstance(layers[0], Conv2D)
    module = torch.nn.Sequential(*modules).to(x.device, x.dtype if is_conv else None)
    if mode.last:
        module = module.to(memory_format=torch.channels_last)
    x.requires_grad_(direction != "filter gradient")

    def forward() -> Any:
        with bench.autocast(mode.precision):
            return module(x)

    with bench.mode(mode.precision):
        y = forward()
    dy = torch.randn_like(y)
    inputs = [array for array in (x, *module.parameters()) if array.requires_grad]

    def backward() -> None:
        torch.autograd.grad(y, inputs, dy, retain_graph=True)

    return Job(
        forward if direction == "forward" else backward,
        **work(bench, layers[0], shape, direction, mode.precision),
        around=partial(bench.mode, mode.precision),
    )


# --- tiles

ROUNDS = 3
PRODUCTS = "forward", "input gradient", "filter gradient"
PRECISIONS = "tf32", "bf16"


def tile_cases(bench: Bench, batches: tuple[int, ...], rounds: int = ROUNDS) -> Iterator[Case]:
    """Both tiles in turn, for all products of a step: all repeats with one, then the other."""
    for count in batches:
        groups = [(g[0], shape) for g, shape in groups_of(bench.host_net) if type(g[0]) is Conv2D]
        for place, (layer, shape) in enumerate(groups):
            for direction in PRODUCTS:
                if place == 0 and direction == "input gradient":
                    continue  # nothing learns from the gradient with respect to the photo
                for precision in PRECISIONS:
                    x_shape, w_shape = (count, *shape), layer.weight.value.shape
                    geometry = layer.stride, layer.before, layer.groups
                    key = layer_key(direction, precision, x_shape, w_shape, *geometry)
                    for tile in list(TILES) * rounds:
                        make = partial(one_product, bench, layer, x_shape, direction, precision)
                        yield Case("tiles", key, tile, partial(make, tile))


def one_product(
    bench: Bench, layer: Conv2D, x_shape: tuple, direction: str, precision: str, tile: str
) -> Job:
    """One product with one tile, after a check that the other one gives the same bits.

    For dL/dw in TF32 also of x and dy that are rounded already.
    """
    x = bench.stored(bench.random(*x_shape), precision)
    y_shape = x_shape[0], *layer.output_shape(x_shape[1:])
    dy = bench.stored(bench.random(*y_shape), precision)
    (conv,), _ = steps_of(bench, [layer], "simple")
    w, b = conv.weight.value, conv.bias.value
    rest = layer.stride, layer.before, layer.groups, Buffers(bench.device, np.float32)
    like = {"forward": dy, "input gradient": x, "filter gradient": w}[direction]
    out = bench.device.empty(like.shape, like.dtype)

    def run(tile: str = tile) -> None:
        if direction == "forward":
            tensor_forward(x, w, b, out, *rest, relu=True, tile=tile)
        elif direction == "input gradient":
            tensor_input_gradient(dy, w, out, *rest, tile=tile)
        else:
            tensor_filter_gradient(x, dy, out, *rest, tile=tile)

    results = []
    for name in TILES:
        run(name)
        results.append(bench.device.to_host(out).copy())
    if (direction, precision) == ("filter gradient", "tf32"):
        x_tf32, dy_tf32 = (
            bench.device.array(round_tf32(array, np.empty_like(array)))
            for array in (bench.device.to_host(x), bench.device.to_host(dy))
        )
        for name in TILES:
            tensor_filter_gradient(x_tf32, dy_tf32, out, *rest, tile=name, rounded=(True, True))
            results.append(bench.device.to_host(out).copy())
    if any(not np.array_equal(results[0], other) for other in results):
        raise ValueError("the tiles, or rounding before the product, give different bits")
    return Job(run)
