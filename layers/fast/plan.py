"""The plan of a net: which layers are computed by faster steps, and by which.

This is the only place where anything faster than the book (`layers/*.py`) is chosen. Most of
AlexNet's layers do little arithmetic for each number that they read and write; on a GPU each is
also a launch. So layers that follow each other share a step:

    host    Conv2D(, ReLU)              host/winograd.py    3×3 and 5×5: Winograd's algorithm
                                        host/register_tiles.py   12 filters a group or more
                                        host/im2col.py      the rest, and bf16: im2col, BLAS
            Linear(, ReLU(, Dropout))   linear.py           BLAS, one pass after the product
            LocalResponseNorm           host/lrn.py         vectorized
            MaxPool2D                   host/max_pool.py    vectorized
    GPU     Conv2D(, ReLU)              conv/steps.py       tiled; tensor cores in tf32 and bf16
            Linear(, ReLU(, Dropout))   linear.py           cuBLAS, one pass after the product
            LocalResponseNorm           lrn.py              each value read once
            MaxPool2D 3×3, stride 2     max_pool.py         a row a thread
    loss    SoftmaxCrossEntropy         host/softmax.py, softmax.py

A layer without a faster step runs from the book: float64 convolutions on a GPU, Tanh, Dropout that
does not follow Linear and ReLU, average pooling, locally connected layers. Subclasses are never
replaced, as they may compute something else. In the simulator float32 convolutions run from the
book as well: there a tile takes equally long for an image of one pixel. `Conv2D(algorithm=...)`
selects a certain step.

In bf16 conversions are inserted between steps that take bfloat16 and layers that take float32
(`conversions.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layers.activation import ReLU
from layers.conv import Conv2D
from layers.device import Device
from layers.dropout import Dropout
from layers.fast.conv.steps import SharedMemoryConv, TensorConv, TiledConv
from layers.fast.conversions import FlattenStep, RoundToBFloat16, ToBFloat16, ToFloat32
from layers.fast.host.im2col import Im2colConv
from layers.fast.host.lrn import LRNByDistance
from layers.fast.host.max_pool import MaxPoolVectorized
from layers.fast.host.register_tiles import RegisterTileConv
from layers.fast.host.softmax import SoftmaxVectorized
from layers.fast.host.winograd import WinogradConv
from layers.fast.linear import LinearStep
from layers.fast.lrn import LRNRows
from layers.fast.max_pool import MaxPoolRows
from layers.fast.softmax import SoftmaxRows
from layers.fast.step import Step
from layers.flatten import Flatten
from layers.layer import Layer
from layers.linear import Linear
from layers.lrn import LocalResponseNorm
from layers.max_pool import MaxPool2D
from layers.softmax_cross_entropy import SoftmaxCrossEntropy

KERNELS = "fast", "simple"
"""The two tiers: a plan, or the book's layers one by one."""


def plan(
    layers: Sequence[Layer],
    device: Device,
    dtype: Any = np.float32,
    precision: str = "fp32",
    float32_ends: bool = True,
) -> list[Layer | Step]:
    """The steps that compute `layers` in order; each layer is in one of them.

    device, dtype: those of the layers, or what they are about to be moved to. precision: "fp32",
    "tf32" or "bf16" (`precision.settle`). float32_ends: in bf16, whether the first x and the last
    y are float32 (a net), or bfloat16 as between steps (a part of a net). ValueError for a
    Conv2D whose `algorithm` does not run there.
    """
    steps: list[Layer | Step] = []
    place, dtype = 0, np.dtype(dtype)
    while place < len(layers):
        rest = layers[place : place + 3]
        count, kind = (_on_gpu if device.is_cuda else _on_host)(rest, device, dtype, precision)
        step = rest[0] if kind is None else kind(rest[:count], device, dtype, precision)
        if isinstance(step, TensorConv) and steps:
            step.follow(steps[-1])
        steps.append(step)
        place += count
    if precision != "bf16":
        return steps
    converted = _for_bfloat16 if device.is_cuda else _rounded
    return converted(steps, layers, device, dtype, float32_ends)


def plan_loss(device: Device, dtype: Any = np.float32) -> SoftmaxCrossEntropy:
    """The loss for a net on `device`: SoftmaxCrossEntropy by its fast kernels or loops."""
    return loss_kind(device)().to(device, dtype)


def loss_kind(device: Device) -> type[SoftmaxCrossEntropy]:
    """The class of that loss."""
    return SoftmaxRows if device.is_cuda else SoftmaxVectorized


SLOWER = 16
"""How many times longer a training step takes on a host with kernels="simple": as printed by
`benchmarks/host_step.py --width 0.25 --image-size 96 --classes 10 --simple`, two cores of an
AMD EPYC."""


def simple_note(device: Device) -> str:
    """What kernels="simple" means, and costs, on `device`, in one line."""
    cost = f"about {SLOWER} times slower here than --kernels fast"
    if device.is_cuda:
        cost = "how much slower than --kernels fast has not been measured on a GPU"
    if device.is_simulated:
        cost = "in the simulator no slower than --kernels fast"
    return f"simple, every layer as its file in layers/ shows it; {cost}"


# --- how many of the layers become a step of which kind; None: the first one is not replaced


def _kinds(layers: Sequence[Layer]) -> tuple[type, ...]:
    return tuple(type(layer) for layer in layers)


def _linear(layers: Sequence[Layer]) -> int:
    kinds = _kinds(layers)
    return 3 if kinds == (Linear, ReLU, Dropout) else 2 if kinds[1:2] == (ReLU,) else 1


def _on_host(
    layers: Sequence[Layer], device: Device, dtype: Any, precision: str
) -> tuple[int, type[Step] | None]:
    first: Any = layers[0]
    kinds = _kinds(layers)
    if kinds[0] is Conv2D:
        if _algorithm(first, device, dtype, precision) == "direct":
            return 1, None
        chosen = first.algorithm == "auto" and precision == "fp32"
        step: type[Step] = Im2colConv
        if chosen and WinogradConv.saves_time(first):
            step = WinogradConv
        elif chosen and RegisterTileConv.fits(first):
            step = RegisterTileConv
        return (2 if kinds[1:2] == (ReLU,) else 1), step
    if kinds[0] is Linear:
        return _linear(layers), LinearStep
    if kinds[0] is LocalResponseNorm:
        return 1, LRNByDistance
    return 1, MaxPoolVectorized if kinds[0] is MaxPool2D else None


def _on_gpu(
    layers: Sequence[Layer], device: Device, dtype: Any, precision: str
) -> tuple[int, type[Step] | None]:
    first: Any = layers[0]
    kinds = _kinds(layers)
    if kinds[0] is Conv2D:
        steps = {"shared": SharedMemoryConv, "tiled": TiledConv, "tensor": TensorConv}
        step = steps.get(_algorithm(first, device, dtype, precision))
        return (2 if step and kinds[1:2] == (ReLU,) else 1), step
    if kinds[0] is Linear:
        return _linear(layers), LinearStep
    if kinds[0] is LocalResponseNorm and LRNRows.fits(first):
        return 1, LRNRows
    if kinds[0] is MaxPool2D and MaxPoolRows.fits(first):
        return 1, MaxPoolRows
    if kinds[0] is Flatten and precision == "bf16":
        return 1, FlattenStep
    return 1, None


def _algorithm(conv: Conv2D, device: Device, dtype: Any, precision: str) -> str:
    """What the hint of `conv` comes down to here. ValueError if it does not run here."""
    hint = conv.algorithm
    if device.is_cuda and precision != "fp32":
        fits = {"tensor"}
    elif device.is_cuda:
        fits = {"direct", "shared"} | ({"tiled"} if dtype == np.float32 else set())
    else:
        fits = {"host"} | ({"direct"} if precision == "fp32" else set())
    if hint != "auto" and hint not in fits:
        raise ValueError(
            f"{conv.name}: algorithm {hint!r} does not run on {device.name} in {np.dtype(dtype)}, "
            f"precision {precision!r}; use 'auto' or {' or '.join(map(repr, sorted(fits)))}"
        )
    if hint != "auto":
        return hint
    if not device.is_cuda:
        return "host"
    if precision != "fp32":
        return "tensor"
    return "tiled" if "tiled" in fits and not device.is_simulated else "direct"


# --- bfloat16


def _for_bfloat16(
    steps: list[Layer | Step], layers: Sequence[Layer], device: Device, dtype: Any, ends: bool
) -> list[Layer | Step]:
    """On a GPU: conversions at both ends, and around every layer of the book."""
    here = device, dtype
    first = steps[0] if isinstance(steps[0], Step) else None
    converted: list[Layer | Step] = [ToBFloat16(*here, layers[0], step=first)] if ends else []
    for step in steps:
        of_book = not isinstance(step, Step)
        converted += [ToFloat32(*here), step, ToBFloat16(*here)] if of_book else [step]
    return converted + ([ToFloat32(*here, last=layers[-1])] if ends else [])


def _rounded(
    steps: list[Layer | Step], layers: Sequence[Layer], device: Device, dtype: Any, ends: bool
) -> list[Layer | Step]:
    """On the host: every step's output is rounded, and x and dy of the whole."""
    converted: list[Layer | Step] = []
    if ends:
        converted.append(RoundToBFloat16(device, dtype, first=layers[0]))
    for step in steps:
        last = layers[-1] if ends and step is steps[-1] else None
        converted += [step, RoundToBFloat16(device, dtype, last=last)]
    return converted if ends else converted[:-1]
