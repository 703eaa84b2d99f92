"""The cases of `gpu_report.py`: ceilings, agreement, steps, convolutions, layers, and tiles.

Ours run on `Bench.device`, PyTorch's on the same GPU, on the same stream, and on the same memory
(or both on the host, in a rehearsal). Before a convolution or layer of ours is timed, its results
for two inputs are compared with the host's in float64; the factors of products are rounded before
as our kernel rounds them. Whole steps are compared with PyTorch's, loss by loss.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import limits
import numpy as np
from gpu_runner import Case, Job

from layers import Conv2D, Device, DeviceError, Dropout, Flatten, Linear, ReLU
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile_table import TILES, layer_key
from layers.fast.gemm import multiply
from layers.fast.plan import plan
from layers.fast.precision import BITS, round_into, settle, storage_of
from layers.fast.step import Step
from layers.layer import Buffers
from tinyconv import SGD
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.run.training import step_for
from tinyconv.train import SingleStep


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
    batch: int
    copied: int
    matrix: int
    torch: Any
    rng: np.random.Generator

    @cached_property
    def host_net(self) -> Any:
        """A net on the host, for its sizes, and for its layers as oracles in float64."""
        return self.make_net()

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
        values = self.device.to_host(array)
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
        ours, tolerance = from_bits(ours), tolerance + STORED
    size = float(np.max(np.abs(right), initial=0))
    error = float(np.max(np.abs(ours - right), initial=0))
    if not error <= tolerance * size:
        raise ValueError(f"{what} is wrong by {error:.2g}, its largest element is {size:.2g}")


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


# --- convolutions and other layers


class Part(NamedTuple):
    """What computes `layers`, on the device: a step, or the one layer itself."""

    step: Any
    layers: list[Any]
    shape: tuple[int, ...]
    """Of one input."""
    precision: str


RUNGS = {"direct": ["fp32"], "shared": ["fp32"], "tiled": ["fp32"], "tensor": ["tf32", "bf16"]}
"""On a GPU, from the readable to the fast, and the precisions that each is for."""

DIRECTIONS = "forward", "filter gradient", "both gradients"
PYTORCH = "PyTorch", "PyTorch, channels_last", "PyTorch, BF16, channels_last"
"""Its modes for the other layers; TF32 makes a difference to Linear alone."""


def rungs(bench: Bench) -> list[tuple[str, str]]:
    """(algorithm, precision) of ours on this device."""
    known = RUNGS if bench.device.is_cuda else {"host": list(IN_WORDS)}
    return [(rung, p) for rung, many in known.items() for p in many if p in bench.precisions]


def convolutions(bench: Bench) -> Iterator[tuple[Conv2D, tuple[int, ...]]]:
    """Those of the net, with the shape of an image that each sees."""
    for layer, shape in shapes_of(bench.host_net).items():
        if isinstance(layer, Conv2D):
            yield layer, shape


def shapes_of(net: Any) -> dict[Any, tuple[int, ...]]:
    """The shape of one input of each layer."""
    return dict(zip(net, [net.input_shape, *net.output_shapes(net.input_shape)], strict=False))


def same_conv(layer: Conv2D, algorithm: str = "auto") -> Conv2D:
    """A new Conv2D of the same sizes."""
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
    return Conv2D(*sizes, (layer.before, layer.after), layer.groups, algorithm)


def random_conv(bench: Bench, layer: Conv2D, algorithm: str) -> Conv2D:
    """The same with weights for outputs of about unit size, on the device."""
    conv = same_conv(layer, algorithm).to(bench.device)
    w, b = conv.weight.value, conv.bias.value
    w[...] = bench.random(*w.shape) / np.sqrt(w[0].size).astype(np.float32)
    b[...] = bench.random(*b.shape)
    return conv


def conv_part(bench: Bench, layer: Conv2D, shape: tuple, algorithm: str, precision: str) -> Part:
    """A new convolution of those sizes, and what computes it by this algorithm."""
    conv = random_conv(bench, layer, algorithm)
    (step,) = plan([conv], bench.device, np.float32, precision, float32_ends=False)
    return Part(step, [conv], shape, precision)


def conv_job(bench: Bench, layer: Conv2D, shape: tuple, rung: Any, direction: str) -> Job:
    return our_job(bench, conv_part(bench, layer, shape, *rung), direction)


def conv_cases(bench: Bench) -> Iterator[Case]:
    """Every convolution of the net, every rung and PyTorch's modes, in three directions."""
    for layer, shape in convolutions(bench):
        for direction in DIRECTIONS:
            what = f"{layer.name} {direction}"
            for rung in rungs(bench):
                make = partial(conv_job, bench, layer, shape, rung, direction)
                yield Case("convolutions", what, f"{rung[0]}{IN_WORDS[rung[1]]}", make)
            for name in MODES if bench.torch else ():
                make = partial(torch_job, bench, [layer], shape, direction, name)
                yield Case("convolutions", what, name, make)


def parts(bench: Bench, kernels: str, precision: str) -> list[Part]:
    """The steps of a net on the device, without convolutions, views and conversions.

    kernels "fast": without the layers that the plan leaves to the book; "simple": of ReLU and
    Dropout, which the plan joins to the layer before, the first one alone.
    """
    net = bench.make_net().to(bench.device, precision=precision, kernels=kernels)
    shapes, seen, found = shapes_of(net), set(), []
    for step in net.steps:
        layers = step.layers if isinstance(step, Step) else [step]
        again = isinstance(step, ReLU | Dropout) and type(step) in seen
        seen.add(type(step))
        if layers and not isinstance(layers[0], Conv2D | Flatten) and not again:
            found.append(Part(step, layers, shapes[layers[0]], precision))
    return [part for part in found if isinstance(part.step, Step) == (kernels == "fast")]


def layer_cases(bench: Bench) -> Iterator[Case]:
    """The other layers, as `layers/*.py` and as the plan compute them, and PyTorch's."""
    for kernels, precision in [("simple", "fp32"), *(("fast", p) for p in bench.precisions)]:
        who = ("tinyconv" if kernels == "fast" else "tinyconv, simple") + IN_WORDS[precision]
        for part in parts(bench, kernels, precision):
            linear = isinstance(part.layers[0], Linear)
            for direction in ("forward", "backward") if linear or precision != "tf32" else ():
                what = f"{part.step.name} {direction}"
                yield Case("layers", what, who, partial(our_job, bench, part, direction))
                if bench.torch and kernels == "simple":
                    for name in (*PYTORCH, "PyTorch, TF32") if linear else PYTORCH:
                        make = partial(torch_job, bench, part.layers, part.shape, direction, name)
                        yield Case("layers", what, name, make)


def check_part(bench: Bench, part: Part) -> None:
    """Two inputs, forward and backward, beside the host's in float64 of what is rounded alike."""
    device, is_conv = bench.device, isinstance(part.layers[0], Conv2D)
    if is_conv:
        layers: list[Any] = [same_conv(part.layers[0])]
    else:
        layers = [bench.host_net[layer.name] for layer in part.layers]
    for theirs, ours in zip(layers, part.layers, strict=True):
        theirs.to("cpu", np.float64)
        for right, value in zip(theirs.parameters(), ours.parameters(), strict=True):
            is_factor = value is ours.parameters()[0]
            right.value[...] = bench.rounded(value.value, part.precision if is_factor else "fp32")
        ours.set_step(0)
        theirs.set_step(0)
    x = bench.random(2, *part.shape)
    y = device.to_host(part.step.forward(bench.stored(x, part.precision))).copy()
    dy = bench.random(*y.shape)
    dx = device.to_host(part.step.backward(bench.stored(dy, part.precision)))
    right, d_right = (bench.rounded(array, part.precision) for array in (x, dy))
    steps = plan(layers, Device("cpu"), np.float64) if is_conv else layers  # BLAS for products
    for step in steps:
        right = step.forward(right)
    for step in reversed(steps):
        d_right = step.backward(d_right)
    compare("y of two inputs", y, right)
    compare("dx of two inputs", dx, d_right)
    if is_conv:
        w, b = part.layers[0].parameters()
        compare("dw of two inputs", device.to_host(w.grad), layers[0].weight.grad)
        # dL/db is not a product: what it adds up is rounded only where it is stored so.
        summed = bench.rounded(dy, "bf16" if part.precision == "bf16" else "fp32")
        compare("db of two inputs", device.to_host(b.grad), summed.sum(axis=(0, 1, 2)))


def work(bench: Bench, layer: Any, shape: tuple, direction: str, precision: str) -> dict[str, int]:
    """Operations and bytes, as docs/limits.md counts them; ReLU behind a layer costs nothing."""
    word = limits.word_of(precision)
    passes = limits.work(layer, shape, bench.batch, direction != "filter gradient", word)
    return dict(zip(("operations", "moved"), passes[direction != "forward"], strict=True))


def our_job(bench: Bench, part: Part, direction: str) -> Job:
    """One part in one direction."""
    step, layer = part.step, part.layers[0]
    if direction == "forward":
        check_part(bench, part)
    x = bench.stored(bench.random(bench.batch, *part.shape), part.precision)
    dy = bench.stored(bench.random(*step.forward(x).shape), part.precision)
    layer.input_gradient = direction != "filter gradient"
    run = (lambda: step.forward(x)) if direction == "forward" else (lambda: step.backward(dy))
    return Job(run, **work(bench, layer, part.shape, direction, part.precision))


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


# --- tiles, for --autotune

ROUNDS = 3
PRODUCTS = "forward", "input gradient", "filter gradient"
PRECISIONS = "tf32", "bf16"


def tile_cases(bench: Bench, batches: tuple[int, ...], rounds: int = ROUNDS) -> Iterator[Case]:
    """Both tiles in turn, for all products of a step: all repeats with one, then the other."""
    for count in batches:
        for place, (layer, shape) in enumerate(convolutions(bench)):
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
    """One product with one tile, after a check that the other one gives the same bits."""
    x = bench.stored(bench.random(*x_shape), precision)
    y_shape = x_shape[0], *layer.output_shape(x_shape[1:])
    dy = bench.stored(bench.random(*y_shape), precision)
    conv = random_conv(bench, layer, "tensor")
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
    if not np.array_equal(*results):
        raise ValueError("the two tiles give different bits")
    return Job(run)
