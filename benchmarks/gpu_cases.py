"""What all cases of `gpu_report.py` share: the device, arrays, checks; and the ceilings.

Ours run on `Bench.device`, PyTorch's on the same GPU, on the same stream, and on the same memory
(or both on the host, in a rehearsal).

    gpu_steps.py     whole steps, timed, and compared with PyTorch's loss by loss
    gpu_layers.py    convolutions and other layers
    gpu_tiles.py     tiles of the tensor-core kernels, for --autotune
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from gpu_runner import Case, Job

from layers import Device, DeviceError
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32
from layers.fast.gemm import multiply
from layers.fast.precision import BITS, round_into, settle, storage_of


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
