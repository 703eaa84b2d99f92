"""The cases of `gpu_day.py` that are timed: ceilings, steps, training, layers, launches, tiles.

What they compute has been checked by stage "kernels" (`gpu_checks.py`); of tiles, before each is
timed.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product as all_pairs
from pathlib import Path
from typing import Any

import limits
import numpy as np
from gpu_bench import IN_WORDS, Bench, each_launch, groups_of, steps_of, ways_of
from runner import Case, Job

from layers import Conv2D, Linear
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile_table import TILES, layer_key
from layers.fast.gemm import multiply
from layers.layer import Buffers
from tinyconv import SGD, train
from tinyconv.data.augment import Augment
from tinyconv.data.photos import PhotoSet
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.run.graph_step import GraphStep
from tinyconv.train import SingleStep

PYTORCH: dict[str, tuple[str, bool]] = {
    "PyTorch": ("fp32", False),
    "PyTorch, channels_last": ("fp32", True),
    "PyTorch, TF32": ("tf32", False),
    "PyTorch, TF32, channels_last": ("tf32", True),
    "PyTorch, BF16, channels_last": ("bf16", True),
}
"""Its modes: precision (bf16 is its autocast), and whether channels are last."""


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


def our_ways(bench: Bench, ways: dict[str, Any], simple: bool = True) -> list[tuple[str, str]]:
    """Way and precision: the simple kernels in fp32 alone, the others in everything."""
    pairs = all_pairs(ways, bench.precisions)
    simply = {way for way in ways if "kernels" in ways[way]}
    return [(w, p) for w, p in pairs if w not in simply or (simple and p == "fp32")]


def step_cases(bench: Bench, batches: tuple[int, ...], ways: dict[str, Any]) -> Iterator[Case]:
    """Our steps: simple at the first batch size, the others at all."""
    for count in batches:
        for who, precision in our_ways(bench, ways, count == batches[0]):
            make = partial(our_step, bench, count, precision, **ways[who])
            yield Case("steps", f"{count:,}", who + IN_WORDS[precision], make)


def torch_step_cases(bench: Bench, batches: tuple[int, ...], compiled: bool) -> Iterator[Case]:
    """PyTorch's steps as they come, and its faster ones through torch.compile."""
    for through_compile in (False, True) if compiled else (False,):
        for count in batches if bench.torch else ():
            for name, (precision, last) in PYTORCH.items():
                if not through_compile or (last and precision != "fp32"):
                    who = f"{name}, compiled" if through_compile else name
                    make = partial(torch_step, bench, count, precision, last, through_compile)
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
    optimizer = (ColumnSGD if columns else SGD)(net.parameters(), lr, MOMENTUM, DECAY)
    if columns or kernels == "simple" or not bench.device.is_cuda:
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

    if way.get("graph"):  # it is recorded in the second step
        run_step(step, x, labels, next(number))
    work = amount(bench, count, precision)
    return Job(lambda: run_step(step, x, labels, next(number)), **work, notes=notes)


def torch_training(
    bench: Bench,
    batch: tuple[Any, np.ndarray],
    precision: str,
    last: bool,
    our_masks: bool = False,
    compiled: bool = False,
    lr: float = LR,
) -> Callable[[], Any]:
    """A function that makes a step of PyTorch, with our weights and rates, and returns the loss."""
    from torch_twin import twin

    torch, net, autocast = bench.torch, bench.make_net(), bench.torch_in(precision)
    images = bench.tensor(batch[0], last=last)
    labels = torch.from_numpy(batch[1]).to(images.device)
    formats = torch.contiguous_format, torch.channels_last
    module = twin(net, our_masks).to(images.device, memory_format=formats[last])
    rates = [(lr * p.lr_multiplier, DECAY * p.decay_multiplier) for p in net.parameters()]
    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": decay}
        for parameter, (rate, decay) in zip(module.parameters(), rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr, MOMENTUM)
    forward = torch.compile(module) if compiled else module

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def torch_step(bench: Bench, count: int, precision: str, last: bool, compiled: bool) -> Job:
    """A step of PyTorch, with its own dropout."""
    run = torch_training(bench, bench.batch_of(count), precision, last, compiled=compiled)
    work, cuda = amount(bench, count, precision), bench.torch.cuda
    if not bench.on_gpu:
        return Job(run, **work)
    cuda.reset_peak_memory_stats()
    return Job(run, **work, notes=lambda: {"peak bytes": cuda.max_memory_allocated()})


def launch_cases(bench: Bench, settings: tuple[tuple[str, int], ...]) -> Iterator[Case]:
    """The time of each launch of one step, and of its crop."""
    for precision, count in settings:
        if bench.device.is_cuda and precision in bench.precisions:
            make = partial(launches_of_a_step, bench, precision, count)
            yield Case("launches", f"{precision} {count}", "fast", make)


def launches_of_a_step(bench: Bench, precision: str, count: int) -> Job:
    step: Any = new_step(bench, precision)
    x, labels = bench.batch_of(count)
    abc = tuple(bench.random(bench.matrix, bench.matrix) for _ in range(3))
    crop, _, channels = bench.host_net.input_shape
    if channels == 3:  # the net of a rehearsal takes no photos
        side = crop * 8 // 7
        photos = bench.device.array(bench.rng.integers(0, 256, (count, side, side, 3)), np.uint8)
        augment = Augment(np.zeros((side, side, 3)), crop)
        augment.to(bench.device, np.float32, step.net.steps[0])

    def run(number: int) -> None:
        images = augment.random(photos, np.arange(count), 0) if channels == 3 else x
        run_step(step, images, labels, number)

    def busy() -> None:
        for _ in range(4):  # of an H200 about 60 ms
            multiply(bench.device, abc)

    for number in range(2):
        run(number)
    found = each_launch(bench, lambda: run(2), busy)
    return Job(notes=lambda: {"launches": found})


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
        done = subprocess.run(command, capture_output=True, text=True)
        took = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    said = [x for x in done.stdout.splitlines() if re.match(r"epoch|validation top-1", x)]
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


def conv_cases(bench: Bench) -> Iterator[Case]:
    """Every convolution of the net, every rung and PyTorch's modes, in three directions."""
    for layers, shape in groups_of(bench.host_net):
        if isinstance(layers[0], Conv2D):
            for direction in ("forward", "filter gradient", "both gradients"):
                yield from timed(bench, "convolutions", layers[:1], shape, direction, PYTORCH)


def layer_cases(bench: Bench) -> Iterator[Case]:
    """The other layers, as `layers/*.py` and as the plan compute them, and PyTorch's."""
    for layers, shape in groups_of(bench.host_net):
        if not isinstance(layers[0], Conv2D):
            without = {"PyTorch, TF32, channels_last"}
            if not isinstance(layers[0], Linear):
                without.add("PyTorch, TF32")  # makes a difference to Linear alone
            modes = {name: mode for name, mode in PYTORCH.items() if name not in without}
            for direction in ("forward", "backward"):
                yield from timed(bench, "layers", layers, shape, direction, modes)


def timed(
    bench: Bench, section: str, layers: list[Any], shape: tuple, direction: str, modes: dict
) -> Iterator[Case]:
    """Some layers in one direction, by ours and by PyTorch's modules."""
    what = "+".join(layer.name for layer in layers) + " " + direction
    for who, options in ways_of(bench, layers):
        make = partial(our_job, bench, layers, shape, direction, **options)
        yield Case(section, what, who, make)
    for who, mode in modes.items() if bench.torch else ():
        yield Case(section, what, who, partial(torch_job, bench, layers, shape, direction, *mode))


def work(bench: Bench, layer: Any, shape: tuple, direction: str, precision: str) -> dict[str, int]:
    """Operations and bytes, as docs/limits.md counts them; ReLU behind a layer costs nothing."""
    word = limits.word_of(precision)
    passes = limits.work(layer, shape, bench.batch, direction != "filter gradient", word)
    return dict(zip(("operations", "moved"), passes[direction != "forward"], strict=True))


def our_job(bench: Bench, layers: list[Any], shape: tuple, direction: str, **options: str) -> Job:
    """Layers in one direction."""
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


def torch_job(
    bench: Bench, layers: list[Any], shape: tuple, direction: str, precision: str, last: bool
) -> Job:
    """PyTorch's modules for the same layers, backward through its autograd.

    Padding that is not the same on all sides is done before, untimed. The arrays of a convolution
    in BF16 are bfloat16; what autocast does to other layers' is timed.
    """
    from torch_twin import modules_of

    torch, autocast = bench.torch, bench.torch_in(precision)
    x = bench.tensor(bench.random(bench.batch, *shape), precision, last)
    modules = [module for layer in layers for module in modules_of(layer, False)]
    if isinstance(modules[0], torch.nn.ZeroPad2d):
        x = modules.pop(0)(x)
    is_conv = isinstance(layers[0], Conv2D)
    module = torch.nn.Sequential(*modules).to(x.device, x.dtype if is_conv else None)
    if last:
        module = module.to(memory_format=torch.channels_last)
    x.requires_grad_(direction != "filter gradient")

    def forward() -> Any:
        with autocast():
            return module(x)

    y = forward()
    dy = torch.randn_like(y)
    inputs = [array for array in (x, *module.parameters()) if array.requires_grad]

    def backward() -> None:
        torch.autograd.grad(y, inputs, dy, retain_graph=True)

    run = forward if direction == "forward" else backward
    return Job(run, **work(bench, layers[0], shape, direction, precision))


# --- tiles

ROUNDS = 3
PRODUCTS = "forward", "input gradient", "filter gradient"
PRECISIONS = "tf32", "bf16"


def products_of(bench: Bench) -> Iterator[tuple[Conv2D, tuple[int, ...], str]]:
    """The convolutions of a step: layer, shape of one input, direction."""
    groups = [(g[0], shape) for g, shape in groups_of(bench.host_net) if type(g[0]) is Conv2D]
    for place, (layer, shape) in enumerate(groups):
        # Nothing learns from the gradient with respect to the photo.
        for direction in PRODUCTS:
            if place or direction != "input gradient":
                yield layer, shape, direction


def tile_cases(bench: Bench, batches: tuple[int, ...], rounds: int = ROUNDS) -> Iterator[Case]:
    """All tiles in turn, for all products of a step: all repeats with one, then the next."""
    for count in batches:
        for (layer, shape, direction), precision in all_pairs(products_of(bench), PRECISIONS):
            x_shape, w_shape = (count, *shape), layer.weight.value.shape
            geometry = layer.stride, layer.before, layer.groups
            key = layer_key(direction, precision, x_shape, w_shape, *geometry)
            for tile in list(TILES) * rounds:
                make = partial(one_product, bench, layer, x_shape, direction, precision, tile)
                yield Case("tiles", key, tile, make)


def product_of(
    bench: Bench, layer: Conv2D, x_shape: tuple, direction: str, precision: str
) -> tuple[Any, Callable[..., None]]:
    """The array that one product of a convolution writes, and the function that computes it.

    Of that function, tile: which one, None for the rule's; rounded: of x and dy after rounding to
    TF32; functions: the three for PRODUCTS, of another copy of their modules.
    """
    x = bench.stored(bench.random(*x_shape), precision)
    y_shape = x_shape[0], *layer.output_shape(x_shape[1:])
    dy = bench.stored(bench.random(*y_shape), precision)
    (conv,), _ = steps_of(bench, [layer], "simple")
    w, b = conv.weight.value, conv.bias.value
    rest = layer.stride, layer.before, layer.groups, Buffers(bench.device, np.float32)
    like = {"forward": dy, "input gradient": x, "filter gradient": w}[direction]
    out = bench.device.empty(like.shape, like.dtype)

    @cache
    def factors(rounded: bool) -> tuple[Any, Any]:
        if precision == "bf16" or not rounded:
            return x, dy
        halfway, kept = np.uint32(1 << 12), np.uint32(0xFFFFE000)
        return tuple(((a.view("uint32") + halfway) & kept).view("float32") for a in (x, dy))

    def run(tile: str | None = None, rounded: bool = False, functions: Any = None) -> None:
        ours = tensor_forward, tensor_input_gradient, tensor_filter_gradient
        forward, input_gradient, filter_gradient = functions or ours
        x, dy = factors(rounded)
        if direction == "forward":
            forward(x, w, b, out, *rest, relu=True, tile=tile, rounded=rounded)
        elif direction == "input gradient":
            input_gradient(dy, w, out, *rest, tile=tile, rounded=rounded)
        else:
            filter_gradient(x, dy, out, *rest, tile=tile, rounded=(rounded, rounded))

    return out, run


def one_product(
    bench: Bench, layer: Conv2D, x_shape: tuple, direction: str, precision: str, tile: str
) -> Job:
    """One product with one tile, after a check that every other one gives the same bits.

    For dL/dw in TF32 also of x and dy that are rounded already.
    """
    out, run = product_of(bench, layer, x_shape, direction, precision)
    both = (False, True) if (direction, precision) == ("filter gradient", "tf32") else (False,)
    results = []
    for rounded, name in all_pairs(both, TILES):
        run(name, rounded)
        results.append(bench.device.to_host(out).copy())
    if any(not np.array_equal(results[0], other) for other in results):
        raise ValueError("the tiles, or rounding before the product, give different bits")
    return Job(partial(run, tile))
