"""Every launch of a training step on a GPU, written down without one (`gpu_model.py`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gpu_model import Machine


@dataclass(frozen=True)
class Launch:
    """A launch, or a product of the library (`kernel` is None, args are M, N, K and word sizes)."""

    title: str
    """Of the layer, and the pass."""
    kernel: Any
    grid: tuple[int, int, int]
    threads: int
    types: tuple[Any, ...]
    sizes: tuple[Any, ...]
    """By argument: an array's shape, or the number."""
    moved: int
    """Bytes of all arrays."""

    @property
    def name(self) -> str:
        """The kernel's name, without `_kernel`."""
        return self.kernel.__name__.removesuffix("_kernel") if self.kernel else "cuBLAS"

    @property
    def blocks(self) -> int:
        """Blocks in the grid."""
        return math.prod(self.grid)


class _Anything:
    """Whatever of CuPy is only called: streams, events, handles."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


class _Gpu(contextlib.nullcontext[None]):
    """CuPy's Device."""

    def __init__(self, digits: str) -> None:
        super().__init__()
        self.compute_capability = digits


class _Recorder:
    """A device whose launches are written down."""

    def __init__(self, machine: Machine) -> None:
        self.launches: list[Launch] = []
        self.title = ""
        digits = "".join(map(str, machine.architecture))
        anything = _Anything()
        self.cupy = SimpleNamespace(
            __name__="cupy",
            ndarray=np.ndarray,
            empty=lambda shape, dtype: np.empty(shape, dtype).view(_Array),
            zeros=lambda shape, dtype: np.zeros(shape, dtype).view(_Array),
            array=lambda values, dtype=None, order="C": np.array(values, dtype, order=order).view(
                _Array
            ),
            ascontiguousarray=lambda array: array,
            matmul=lambda a, b, out: self.product(a, b, out),
            cuda=SimpleNamespace(
                Device=lambda index: _Gpu(digits),
                Stream=anything,
                Event=anything,
                alloc_pinned_memory=bytearray,
                get_current_stream=lambda: SimpleNamespace(ptr=0),
                device=anything,
                cublas=SimpleNamespace(
                    CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_COMPUTE_32F="", gemmEx=self.gemm_ex,
                    CUBLAS_COMPUTE_32F_FAST_TF32="", CUBLAS_GEMM_DEFAULT=0,
                ),
            ),
        )  # fmt: skip

    def gemm_ex(self, *arguments: Any) -> None:
        from layers.fast.gemm import KINDS

        bytes_of = {kind: dtype.itemsize for dtype, kind in KINDS.items()}
        m, n, k = arguments[3:6]
        words = [bytes_of[arguments[place]] for place in (8, 11, 15)]
        self.add_product(m, n, k, m * k * words[0] + n * k * words[1] + m * n * words[2])

    def product(self, a: Any, b: Any, out: Any) -> None:
        (m, k), n = a.shape, b.shape[1]
        self.add_product(m, n, k, a.nbytes + b.nbytes + out.nbytes)

    def add_product(self, m: int, n: int, k: int, moved: int) -> None:
        self.launches.append(Launch(self.title, None, (1, 1, 1), 0, (), (m, n, k), moved))

    def add(self, dispatcher: Any, configuration: Any, arguments: tuple[Any, ...]) -> None:
        import numba

        def three(sides: Any) -> tuple[int, int, int]:
            sides = (sides,) if isinstance(sides, int) else tuple(sides)
            return (*sides, 1, 1)[:3]  # type: ignore[return-value]

        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        plain = [np.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        self.launches.append(
            Launch(
                self.title,
                dispatcher.py_func,
                three(configuration[0]),
                math.prod(three(configuration[1])),
                tuple(numba.typeof(a) for a in plain),
                tuple(a.shape if isinstance(a, np.ndarray) else a for a in plain),
                sum(a.nbytes for a in arrays),
            )
        )


class _Array(np.ndarray):
    """An array that is never touched, with CuPy's pointer and `get`."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=0)

    def get(self, out: Any = None, **_: Any) -> Any:
        return np.asarray(self) if out is None else out

    def set(self, values: Any, stream: Any = None) -> None:
        pass


@contextmanager
def recording(machine: Machine) -> Iterator[_Recorder]:
    """Within it `Device("cuda:0")` is a device that computes nothing, like `machine`."""
    from numba.cuda.dispatcher import CUDADispatcher

    from layers import device
    from layers.fast import cublas
    from layers.fast.conv import tile_table

    recorder, libraries = _Recorder(machine), cublas._libraries
    known = CUDADispatcher.__getitem__, device._open_gpu, tile_table._gpu
    name = "sm_{}{}".format(*machine.architecture)
    try:
        CUDADispatcher.__getitem__ = lambda self, configuration: (
            lambda *arguments: recorder.add(self, configuration, arguments)
        )
        device._open_gpu = lambda index: recorder.cupy
        tile_table._gpu = lambda: (name, machine.multiprocessors)
        cublas._libraries = {"cuda:0": None}  # products by way of CuPy, where they are recorded
        yield recorder
    finally:
        cublas._libraries = libraries
        CUDADispatcher.__getitem__, device._open_gpu, tile_table._gpu = known


def launches_of(machine: Machine, precision: str, batch: int, recipe: str) -> list[Launch]:
    """Every launch of a step of AlexNet, with the crop before it and the update after it."""
    from tinyconv import SGD, alexnet
    from tinyconv.data.augment import Augment

    with recording(machine) as recorder:
        net = alexnet(recipe=recipe, init=False)
        augment = Augment(np.zeros((256, 256, 3), np.float32), 224)
        net.to("cuda:0", precision=precision)
        net.layers[0].input_gradient = False
        augment.to(net.device, net.dtype, net.steps[0])
        optimizer, loss = SGD(net.parameters()), net.loss()
        net.set_step(0)
        photos = np.empty((batch, 256, 256, 3), np.uint8).view(_Array)
        recorder.launches.clear()
        recorder.title = "crop"
        x = augment.random(photos, np.arange(batch), 0)
        for step in net.steps:
            recorder.title = f"{step.name} forward"
            x = step.forward(x, True)
        recorder.title = "loss"
        loss.load_labels(np.zeros(batch, np.int64), x.shape)
        loss.compute(x)
        dy = loss.backward()
        for step in reversed(net.steps):
            recorder.title = f"{step.name} backward"
            dy = step.backward(dy)
        recorder.title = "update"
        optimizer.step(loss.pending()[0])
        return recorder.launches
