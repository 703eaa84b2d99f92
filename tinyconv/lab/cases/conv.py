"""The kernels of the fast convolutions, `layers/fast/conv/*.py`."""

from itertools import product
from typing import Any

from layers import Conv2D, Device
from layers.fast.conv import shared_memory, tensor_core, tensor_gradients, tiled
from layers.fast.conv import space_to_depth as s2d
from layers.fast.conv import tiled_gradients as gradients
from layers.fast.conv.tile_table import TILES
from layers.layer import Buffers
from tinyconv.lab.cases.book import IMAGES
from tinyconv.lab.cases.case import AMPERE, TENSOR_CORES, KernelCase, KernelGroup, Shape
from tinyconv.lab.cases.runs import Run, activations, of_steps, random

KINDS = {"float32": "TF32", "bfloat16": "BF16"}
"""What tensor cores multiply, by what activations are stored as."""
BOTH = tuple(KINDS)
CHANNELS = (2, 3, 5, 12)
FLAT = "4*float32[1] 11*int64"
FLAT_GRADIENT = "3*float32[1] 11*int64"


def groups_of(shape: Shape) -> int:
    """2 for an even number of channels, else 1."""
    return 2 - shape[-1] % 2


def arrays(conv: Conv2D, shape: Shape, dtype: str) -> tuple[Any, ...]:
    """x, w, b, dy with random numbers, and y, dx, dw, of a convolution like `conv`."""
    number = "float32" if dtype == "bfloat16" else dtype
    x = activations(shape, dtype, 0)
    dy = activations((shape[0], *conv.output_shape(shape[1:])), dtype, 1)
    w, b = (random(p.value.shape, 2 + i).astype(number) for i, p in enumerate(conv.parameters()))
    return x, w, b, dy, *(Device("cuda:0").empty(like.shape, like.dtype) for like in (dy, x, w))


def shared(conv: Conv2D, shape: Shape, dtype: str) -> Run:
    """All directions with tiles in shared memory."""
    x, w, b, dy, y, dx, dw = arrays(conv, shape, dtype)
    geometry = conv.stride, conv.before, conv.groups

    def run() -> None:
        shared_memory.shared_forward(x, w, b, y, *geometry)
        shared_memory.shared_input_gradient(dy, w, dx, *geometry)
        shared_memory.shared_filter_gradient(x, dy, dw, *geometry)

    return run


def shared_runs(shape: Shape, dtype: str) -> dict[str, Run]:
    """Two convolutions with tiles in shared memory."""
    channels, groups = shape[-1], groups_of(shape)
    small = Conv2D(channels, 6, 2, 2, (0, 1), groups)
    title = f"Conv2D 2×2, stride 2, padding (0, 1), 6 filters, groups {groups}"
    return {
        "Conv2D 3×3, 16 filters": shared(Conv2D(channels, 16, 3), shape, dtype),
        title: shared(small, shape, dtype),
    }


def tensor(conv: Conv2D, shape: Shape, dtype: str, tile: str, rounded: bool = False) -> Run:
    """All directions on tensor cores. A layer would not take each tile. rounded: the operands."""
    x, w, b, dy, y, dx, dw = arrays(conv, shape, dtype)
    geometry = conv.stride, conv.before, conv.groups, Buffers(Device("cuda:0"), w.dtype)

    def run() -> None:
        options: dict[str, Any] = {"tile": tile, "rounded": rounded}
        tensor_core.tensor_forward(x, w, b, y, *geometry, relu=True, **options)
        tensor_core.tensor_input_gradient(dy, w, dx, *geometry, mask=x, **options)
        both = (rounded, rounded)
        tensor_gradients.tensor_filter_gradient(x, dy, dw, *geometry, tile=tile, rounded=both)

    return run


def tensor_runs(shape: Shape, dtype: str, rounded: bool = False) -> dict[str, Run]:
    """16 filters of 2×2 with either tile."""
    channels, groups, kind = shape[-1], groups_of(shape), KINDS[dtype]
    plain, grouped = (
        Conv2D(channels, 16, 2, stride, (1, 0), g) for stride, g in ((1, 1), (2, groups))
    )
    return {
        f"{kind}, 128x128 tiles": tensor(plain, shape, dtype, "128x128", rounded),
        f"{kind}, 128x64 tiles, stride 2, groups {groups}": tensor(
            grouped, shape, dtype, "128x64", rounded
        ),
    }


def rearranged(shape: Shape, dtype: str) -> Run:
    """To squares of 2×2 and back, for filters of 3×3."""
    groups = groups_of(shape)
    conv = Conv2D(shape[-1], 4, 3, 2, 1, groups)
    x, w, _, dy, _, dx, dw = arrays(conv, shape, dtype)
    buffer = Buffers(Device("cuda:0"), "float32")

    def run() -> None:
        image = s2d.image_to_s2d("x", x, dy.shape, 3, 2, 2, 1, groups, buffer)
        s2d.image_from_s2d(image, dx, 2, 1, groups, mask=x)
        filters = s2d.filters_to_s2d(w, 2, x, buffer)
        if dtype == "float32":  # dw_s2d is float32 in either
            s2d.filters_from_s2d(filters, dw, 2)
        s2d.flipped_filters_s2d(w, 2, groups, x, buffer)

    return run


def tensor_cases(
    dtype: str, figures: tuple[tuple[int, int] | None, ...], kind: str = ""
) -> tuple[KernelCase, ...]:
    """The products on tensor cores. figures: of y for each of TILES, then of dL/dw.

    kind: of operands, if not `dtype`'s.
    """
    kind = kind or KINDS[dtype].lower()
    parts = {
        "forward": (tensor_core, "2*stored[1] number[1] 2*stored[1] 11*int64 boolean", "y"),
        "filter": (tensor_gradients, "2*stored[1] number[1] 16*int64", "partial"),
    }
    cases = []
    for (part, tile), figure in zip(product(parts, TILES), figures, strict=True):
        module, types, output = parts[part]
        kernel = module.KERNELS[kind, tile]
        threads = TILES[tile] if part == "forward" else tensor_gradients.THREADS
        options: dict[str, Any] = {"architectures": TENSOR_CORES, "threads": threads}
        cases.append(KernelCase(kernel, types, output, figure, only=(dtype,), **options))
    return tuple(cases)


GROUPS = {
    "shared": KernelGroup(
        runs=shared_runs,
        shapes=((2, 5, 6, 5), (1, 3, 3, 1), (1, 4, 3, 18)),
        small=(1, 6, 6, 8),
        cases=(
            KernelCase(
                shared_memory.shared_forward_kernel,
                "2*number[4] number[1] number[4] 3*int64 boolean",
                "y",
                (0, 4),
                operations=lambda x, w, b, y, *_: 2 * y.size * w[0].size,
                threads=256,
            ),
            KernelCase(
                *(shared_memory.shared_input_gradient_kernel, "3*number[4] 3*int64", "dx", (0, 5)),
                operations=lambda dy, w, dx, *_: 2 * dy.size * w[0].size,
                threads=256,
            ),
            KernelCase(
                *(shared_memory.shared_filter_gradient_kernel, "3*number[4] 3*int64", "dw", (0, 1)),
                operations=lambda x, dy, dw, *_: 2 * dy.size * dw[0].size,
                threads=256,
            ),
        ),
    ),
    "tiled": KernelGroup(
        runs=of_steps(
            lambda channels: {
                "Conv2D 2×2, padding (0, 1), 4 filters": [
                    Conv2D(channels, 4, 2, padding=(0, 1), algorithm="tiled")
                ],
                "Conv2D 2×2, stride 2, padding 1, 3 filters": [
                    Conv2D(channels, 3, 2, 2, 1, algorithm="tiled")
                ],
            }
        ),
        shapes=((1, 3, 5, 4), (1, 2, 2, 1), (1, 4, 3, 5)),
        small=(1, 3, 4, 4),
        cases=(
            KernelCase(tiled.tiled_forward_vectorized_kernel, FLAT, "y", (0, 14)),
            KernelCase(tiled.tiled_forward_scalar_kernel, FLAT, "y", (0, 14)),
            KernelCase(gradients.flip_filters_kernel, "2*float32[4] int64", "flipped", (0, 0)),
            KernelCase(gradients.tiled_filter_vectorized_kernel, FLAT_GRADIENT, "partial", (0, 6)),
            KernelCase(gradients.tiled_filter_scalar_kernel, FLAT_GRADIENT, "partial", (0, 1)),
        ),
    ),
    "tensor_tf32": KernelGroup(
        runs=tensor_runs,
        shapes=(CHANNELS,),  # one alone: the tiles are large whatever the image
        small=(1, 3, 4, 8),
        largest=20_000,
        cases=tensor_cases("float32", ((0, 16), (0, 0), (0, 0), (0, 34))),
    ),
    "tensor_tf32_rounded": KernelGroup(
        runs=lambda shape, dtype: tensor_runs(shape, dtype, rounded=True),
        shapes=((1, 3, 4, 8),),  # whole chunks, which are not rearranged
        small=(1, 3, 4, 8),
        largest=20_000,
        cases=tensor_cases("float32", (None,) * 4, "tf32_rounded"),
    ),
    "tensor_bf16": KernelGroup(
        runs=tensor_runs,
        shapes=(CHANNELS,),
        small=(1, 3, 4, 8),
        largest=20_000,
        cases=tensor_cases("bfloat16", ((0, 77), (0, 53), (0, 66), (0, 30))),
    ),
    "space_to_depth": KernelGroup(
        runs=lambda shape, dtype: {
            f"{kind} in squares of 2×2": rearranged(shape, stored) for stored, kind in KINDS.items()
        },
        shapes=(IMAGES, (1, 2, 3, 1), (1, 5, 24, 14)),
        small=(1, 4, 6, 3),
        cases=(
            KernelCase(s2d.image_to_s2d_kernel, "2*stored[1] 9*int64", "x_s2d", (1, 0), only=BOTH),
            KernelCase(
                *(s2d.filters_to_s2d_kernel, "number[4] stored[1] 5*int64", "w_s2d", (0, 0)),
                only=BOTH,
                architectures=AMPERE,
            ),
            KernelCase(
                *(s2d.flipped_filters_s2d_kernel, "number[4] stored[1] 7*int64", "flipped", (0, 0)),
                only=BOTH,
                architectures=AMPERE,
            ),
            KernelCase(
                *(s2d.image_from_s2d_kernel, "3*stored[4] 3*int64 boolean", "x", (1, 1)),
                only=BOTH,
            ),
            KernelCase(s2d.filters_from_s2d_kernel, "2*float32[4] int64", "w", (0, 0)),
        ),
    ),
}
