"""What the cases of `gpu_report.py` share: where they run, PyTorch's modes, and the ceilings.

Ours run on `Bench.device`, PyTorch's on the same GPU, on the same stream, and on the same memory
(or both on the host, in a rehearsal).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpu_runner import Case, Job

from layers import Device

MODES = {
    # PyTorch's: TF32 allowed, channels last
    "PyTorch": (False, False),
    "PyTorch, channels_last": (False, True),
    "PyTorch, TF32": (True, False),
    "PyTorch, TF32, channels_last": (True, True),
}
TOLERANCE = 1e-4
"""Of the largest element, for float32 sums of up to some 10^5 products in another order."""


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

    def random(self, *shape: int) -> Any:
        """float32 from N(0, 1), on the device."""
        return self.device.array(self.rng.standard_normal(shape, np.float32))

    def tensor(self, array: Any) -> Any:
        """An array of the device as a tensor over the same memory."""
        return self.torch.from_dlpack(array)

    def image(self, array: Any, last: bool = False) -> Any:
        """An array (N, H, W, C) as a tensor (N, C, H, W) of its own; others as they are."""
        tensor = self.tensor(array)
        if tensor.ndim != 4:
            return tensor.clone()
        formats = self.torch.contiguous_format, self.torch.channels_last
        return tensor.permute(0, 3, 1, 2).clone(memory_format=formats[last])

    @contextmanager
    def mode(self, tf32: bool) -> Iterator[None]:
        """PyTorch on our stream, cuDNN free to choose, TF32 allowed or not."""
        cuda, cudnn = self.torch.backends.cuda.matmul, self.torch.backends.cudnn
        before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        with ExitStack() as stack:
            if self.device.xp is not np:
                pointer = self.device.xp.cuda.get_current_stream().ptr
                stream = self.torch.cuda.ExternalStream(pointer)
                stack.enter_context(self.torch.cuda.stream(stream))
            cuda.allow_tf32 = cudnn.allow_tf32 = tf32
            cudnn.benchmark = True
            try:
                yield
            finally:
                cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def compare(what: str, mine: Any, right: Any, tolerance: float = TOLERANCE) -> None:
    """ValueError if two host arrays differ by more than `tolerance` of the largest element."""
    size = float(np.max(np.abs(right), initial=0))
    error = float(np.max(np.abs(mine - right), initial=0))
    if not error <= tolerance * size:
        raise ValueError(f"{what} is wrong by {error:.2g}, its largest element is {size:.2g}")


def ceiling_cases(bench: Bench, tf32: bool) -> Iterator[Case]:
    """Copy bandwidth, and the rate of a large matrix product (with TF32 if CUPY_TF32 is set)."""

    def copied() -> Job:
        x = bench.random(bench.copied)
        y = bench.device.empty(x.shape, x.dtype)

        def run() -> None:
            y[...] = x

        return Job(run, moved=2 * x.nbytes)

    def product() -> Job:
        n = bench.matrix
        a, b = bench.random(n, n), bench.random(n, n)
        c = bench.device.empty((n, n), a.dtype)
        return Job(lambda: bench.device.xp.matmul(a, b, out=c), operations=2 * n**3)

    library = bench.device.xp.__name__
    if not tf32:
        yield Case("ceilings", "copy bandwidth", library, copied)
    yield Case("ceilings", "matrix product, TF32" if tf32 else "matrix product", library, product)
