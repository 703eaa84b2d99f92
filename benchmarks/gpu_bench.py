"""What the cases of `gpu_day.py` have in common: device and net, launches, layers by all ways.

Data are fresh and random. Ours run on `Bench.device`, PyTorch's on the same GPU, on the same
stream, and on the same memory (or both on the host, in a rehearsal).
"""

import importlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from runner import GpuClock, HostClock

from layers import Conv2D, Device, DeviceError, Dropout, Flatten, Linear, MaxPool2D, ReLU, simulator
from layers.device import SIMULATED
from layers.fast import graph
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32
from layers.fast.plan import plan
from layers.fast.precision import BITS, round_into, settle, storage_of
from tinyconv import Sequential, alexnet
from tinyconv.initialize import initialize
from tinyconv.lab.cases import CASES
from tinyconv.lab.cases.book import small_net

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
    """Where and on what the cases run."""

    device: Device
    make_net: Callable[[], Any]
    """With the weights of a new net; `bare_net` has none."""
    bare_net: Callable[[], Any]
    batch: int
    copied: int
    matrix: int
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

    @property
    def on_gpu(self) -> bool:
        return self.device.xp is not np

    @cached_property
    def torch(self) -> Any:
        """PyTorch on our stream, cuDNN free to choose; None where it does not compute here."""
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            return None
        if self.on_gpu:
            if not torch.cuda.is_available():
                return None
            pointer = self.device.xp.cuda.get_current_stream().ptr
            torch.cuda.set_stream(torch.cuda.ExternalStream(pointer))
        torch.backends.cudnn.benchmark = True
        return torch

    def torch_in(self, precision: str) -> Callable[[], AbstractContextManager[Any]]:
        """Allow TF32 for "tf32" alone; what to enter for each run: for "bf16", autocast.

        Autocast keeps what it casts until it is left.
        """
        backends = self.torch.backends
        backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = precision == "tf32"
        kind = "cuda" if self.on_gpu else "cpu"
        return partial(self.torch.autocast, kind, self.torch.bfloat16, precision == "bf16")

    def tensor(self, array: Any, precision: str = "fp32", last: bool = False) -> Any:
        """(N, H, W, C) as a tensor (N, C, H, W) of its own, channels last or first; others too."""
        tensor = self.torch.from_dlpack(array)
        if precision == "bf16":
            tensor = tensor.to(self.torch.bfloat16)
        if tensor.ndim != 4:
            return tensor.clone()
        formats = self.torch.contiguous_format, self.torch.channels_last
        return tensor.permute(0, 3, 1, 2).clone(memory_format=formats[last])

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


# --- launches


class Launch(NamedTuple):
    """A launch of a kernel or a product of a library; what event() gave before and after."""

    name: str
    dtype: str
    """Of the KernelCase that it is a launch of; "" if there is none."""
    before: Any
    after: Any


def dtype_of(kernel: str, arguments: tuple[Any, ...]) -> str:
    """By the arrays among the arguments, the dtype of the kernel's case."""
    found = [str(x.dtype) for x in arguments if getattr(x, "ndim", 0)]
    for dtype in CASES[kernel].dtypes if kernel in CASES else ():
        types = CASES[kernel].argument_types(dtype)
        if found == [str(each.dtype) for each in types if hasattr(each, "ndim")]:
            return dtype
    return ""


@contextmanager
def launches(event: Callable[[], Any] = lambda: None) -> Iterator[list[Launch]]:
    """Every launch of a kernel and every product of a library that is made within.

    There is no hook for it: the methods that make launches are replaced meanwhile.
    """
    if SIMULATED:
        from numba.cuda.simulator.kernel import FakeCUDAKernel as Kernel
    else:
        from numba.cuda.dispatcher import CUDADispatcher as Kernel
    method = "__call__" if SIMULATED else "call"
    made: list[Launch] = []

    def noting(name: str, dtype: str, call: Callable[..., Any], *args: Any, **rest: Any) -> None:
        before = event()
        call(*args, **rest)
        made.append(Launch(name, dtype, before, event()))

    def launch(self: Any, *arguments: Any) -> Any:
        if getattr(self, "_device", False):  # a simulated function that a kernel calls
            return original(self, *arguments)
        dtype = dtype_of(self.__name__, arguments if SIMULATED else arguments[0])
        return noting(self.__name__, dtype, original, self, *arguments)

    original, multiply = getattr(Kernel, method), graph.multiply
    setattr(Kernel, method, launch)
    graph.multiply = partial(noting, "product", "", multiply)
    try:
        yield made
    finally:
        setattr(Kernel, method, original)
        graph.multiply = multiply


def each_launch(bench: "Bench", run: Callable[[], Any], busy: Callable[[], Any]) -> list[Any]:
    """(name, seconds on the device) of every launch and product of run(), in order.

    busy: work that keeps the GPU occupied until the host has queued all of them; else the time
    between two events would be the host's.
    """
    cuda = bench.device.xp.cuda if bench.on_gpu else None

    def event() -> Any:
        return cuda.get_current_stream().record() if cuda else time.perf_counter()

    busy()
    with launches(event) as made:
        run()
    bench.device.synchronize()
    if not cuda:
        return [(each.name, each.after - each.before) for each in made]
    elapsed = cuda.get_elapsed_time
    return [(each.name, elapsed(each.before, each.after) / 1e3) for each in made]


# --- layers, by all ways of computing them

RUNGS = {"direct": ["fp32"], "shared": ["fp32"], "tiled": ["fp32"], "tensor": ["tf32", "bf16"]}
"""On a GPU, from the readable to the fast, and the precisions that each is for."""

JOINED = (Conv2D, ReLU), (Linear, ReLU, Dropout), (Linear, ReLU)
"""What a step computes together."""


def groups_of(net: Any) -> Iterator[tuple[list[Any], tuple[int, ...]]]:
    """The layers of a net as steps join them, without views, and the shape of one input of each."""
    layers = list(net)
    shapes = [net.input_shape, *net.output_shapes(net.input_shape)]
    place = 0
    while place < len(layers):
        kinds = [type(layer) for layer in layers[place:]]
        count = max([len(k) for k in JOINED if tuple(kinds[: len(k)]) == k], default=1)
        if kinds[0] is not Flatten:
            yield layers[place : place + count], shapes[place]
        place += count


def ways_of(bench: Bench, layers: list[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Title and options of `steps_of` for each of our ways of computing the layers."""
    if isinstance(layers[0], Conv2D):
        known = RUNGS if bench.device.is_cuda else {"host": list(IN_WORDS)}
        for rung, precisions in known.items():
            for precision in (each for each in precisions if each in bench.precisions):
                kernels = "simple" if rung == "direct" else "fast"
                options = {"kernels": kernels, "precision": precision, "algorithm": rung}
                yield rung + IN_WORDS[precision], options
        return
    yield "simple", {"kernels": "simple"}
    for precision in bench.precisions:
        if precision != "tf32" or isinstance(layers[0], Linear):
            yield "fast" + IN_WORDS[precision], {"kernels": "fast", "precision": precision}


def copied(layers: list[Any]) -> list[Any]:
    """The same layers again. (Their device holds the module NumPy, which cannot be copied.)"""
    return deepcopy(layers, {id(np): np})


def steps_of(
    bench: Bench,
    layers: list[Any],
    kernels: str,
    precision: str = "fp32",
    algorithm: str = "auto",
    dtype: str = "float32",
) -> tuple[list[Any], list[Any]]:
    """Copies on the device, with weights for outputs of about unit size, and what computes them."""
    layers = [layer.to(bench.device, dtype) for layer in copied(layers)]
    for layer in layers:
        if isinstance(layer, Conv2D):
            layer.algorithm = algorithm
        for p in layer.parameters():
            fan_in = p.value[0].size if p.value.ndim > 1 else 1
            p.value[...] = bench.random(*p.value.shape) / np.float32(math.sqrt(fan_in))
        layer.set_step(0)
    if kernels == "simple":
        return layers, layers
    return layers, plan(layers, bench.device, dtype, precision, float32_ends=False)


# --- nets and sizes


@cache
def drawn_net() -> Any:
    return alexnet(num_classes=1000, recipe="robust")


def full_net() -> Any:
    """The paper's sizes, with the recipe that PyTorch has a twin for.

    A copy, as drawing 61 million weights takes longer than most cases.
    """
    return copied([drawn_net()])[0]


def tiny_net() -> Any:
    """Every kind of layer, in sizes that the simulator finishes."""
    return small_net(np.random.default_rng(0)).to("cpu", np.float32)


def one_tile_net() -> Any:
    """Its convolution is one tile of one k-tile: for steps on simulated tensor cores."""
    layers = {"conv1": Conv2D(8, 3, 2), "relu1": ReLU(), "pool1": MaxPool2D(3, 2)}
    layers |= {"flatten": Flatten(), "fc2": Linear(3, 4), "relu2": ReLU(), "drop2": Dropout(0.5)}
    return initialize(Sequential({**layers, "fc3": Linear(4, 3)}, (5, 4, 8)), "robust", seed=1)


def whole_k_tiles_net() -> Any:
    """Its channels are a whole k-tile in TF32: the convolution can go through the taps first."""
    return initialize(Sequential({"conv1": Conv2D(16, 8, 2)}, (2, 2, 16)), "robust", seed=1)


def bench_and_clock(stage: str, name: str, rehearse: bool, seed: int) -> tuple[Bench, Any]:
    """Of the report, or of a rehearsal: the simulator, or the host where greenlet is missing."""
    rng = np.random.default_rng(seed)
    if rehearse:
        device = Device(name if simulator.installed and stage != "d" else "cpu")
        nets = {"b": tiny_net, "h": tiny_net, "d": partial(alexnet, 10, 0.125, 64)}
        nets["k"] = whole_k_tiles_net
        net = nets.get(stage, one_tile_net)
        return Bench(device, net, net, 3, 1000, 16, rng), HostClock()
    device = Device(name).use()
    bare = partial(alexnet, num_classes=1000, recipe="robust", init=False)
    return Bench(device, full_net, bare, 128, 2**28, 8192, rng), GpuClock(device.xp)
