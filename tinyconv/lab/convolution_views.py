"""Which pictures of the convolution ladder `draw-kernel NAME --view VIEW` draws, beside its steps.

    tile        one whole tile: who loads, stores and owns what (`numbered.py`, `tile_svg.py`)
    pipeline    k-tiles over time: loads, copies, waits, barriers, products (`pipeline_svg.py`)
    banks       each stride, offset and swizzle of shared memory, with and without (`banks_svg.py`)

All are computed from launches in the simulator. This file names the launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from layers import Device, simulator
from layers.fast.conv import (
    shared_memory,
    tensor_core,
    tensor_gradient_tile,
    tensor_gradients,
    tensor_tile,
    tiled,
    tiled_gradients,
)
from layers.fast.conv.tile import BK, BUFFER_STRIDE
from layers.layer import Buffers
from tinyconv.lab.banks_svg import Access, Region, banks_svg
from tinyconv.lab.cases import recorded
from tinyconv.lab.cases.case import CaseLaunch, Shape
from tinyconv.lab.cases.runs import activations
from tinyconv.lab.numbered import Numbered, Tile, fragments, numbered
from tinyconv.lab.pipeline_svg import pipeline_svg
from tinyconv.lab.steps import Launch
from tinyconv.lab.tile_svg import Panel, shared_panel, table, tile_svg

# --- launches


def forward(name: str, image: Shape, filters: int, size: int) -> CaseLaunch:
    """The forward launch of a rung on images of (N, H, W, C), without padding, stride 1."""
    n, h, w, c = image
    x, y = np.ones(image, np.float32), np.ones((n, h - size + 1, w - size + 1, filters), np.float32)
    weights, bias = np.ones((filters, size, size, c), np.float32), np.ones(filters, np.float32)
    geometry = 1, 0, 1

    def run() -> None:
        if name == "shared":
            shared_memory.shared_forward(x, weights, bias, y, *geometry)
        elif name == "tiled":
            tiled.tiled_forward(x, weights, bias, y, *geometry)
        else:
            buffer = Buffers(Device("cuda:0"), "float32")
            options: dict[str, Any] = {"tile": "128x64", "rounded": True}
            tensor_core.tensor_forward(x, weights, bias, y, *geometry, buffer, **options)

    title = f"{size}×{size}, {filters} filters, {'×'.join(map(str, image))}"
    return list(recorded(title, run))[-1]


def numbered_forward(name: str, image: Shape, filters: int, size: int) -> tuple[str, Numbered]:
    """The same on numbered arrays, with its title."""
    n, h, w, c = image
    launch = forward(name, image, filters, size)
    shapes = {
        "x": image,
        "w": (filters, size, size, c),
        "y": (n, h - size + 1, w - size + 1, filters),
    }
    run = numbered(launch.case.kernel, launch.grid, launch.block, launch.args, shapes)
    return launch.title, run


# --- one whole tile


def shared_panels(tile: Tile, names: list[str], marked: int) -> Iterator[Panel]:
    """x and w, their places in shared memory, and y."""
    run = tile.run
    for source in ("x", "w"):
        yield table(f"loads {source}", run.shape(source), tile.loads[source], 20, marked)
    for name, (info, held), reads in zip(names, tile.stores, tile.reads, strict=True):
        shape = ", ".join(map(str, info.data.shape))
        yield shared_panel(f"stores {name} ({shape})", info, held, reads, 20, marked)
    yield table("owns y", run.shape("y"), tile.owns["y"], 20, marked)


def tiled_panels(tile: Tile, names: list[str], marked: int) -> Iterator[Panel]:
    """The same of larger tiles."""
    run, (info, held) = tile.run, tile.stores[0]
    for source in ("x", "w"):
        yield table(f"loads {source}", run.shape(source), tile.loads[source], 9, marked, strip=32)
    yield shared_panel(f"stores {names[0]}; a column is a bank", info, held, {}, 18, marked)
    yield table("owns y", run.shape("y"), tile.owns["y"], 5, marked, strip=64)


def tensor_panels(tile: Tile, names: list[str], marked: int) -> Iterator[Panel]:
    """The same, and the fragments of a warp."""
    run, (info, held) = tile.run, tile.stores[0]
    for source in ("x", "w"):
        yield table(f"copies {source}", run.shape(source), tile.loads[source], 9, marked, strip=32)
    title = f"into {names[0]}, at these words; a column is a bank"
    yield shared_panel(title, info, held, {}, 7, marked, 32)
    warp = marked // 32
    for source, words in (("x", 4), ("w", 2)):
        title = f"fragment, warp {warp}: lanes that hold {source}"
        lanes = fragments(run, warp, source, words)
        yield table(title, run.shape(source), lanes, 21, marked % 32, warp)
    yield table("owns y", run.shape("y"), tile.owns["y"], 2.3, marked, strip=32)


def tile(name: str) -> str:
    """The picture of one whole tile."""
    image, filters, size, panels = {
        "shared": ((1, 6, 6, 16), 16, 3, shared_panels),
        "tiled": ((1, 9, 17, 8), 64, 2, tiled_panels),
        "tensor_tf32": ((1, 9, 17, 16), 64, 2, tensor_panels),
    }[name]
    title, run = numbered_forward(name, image, filters, size)
    marked = 37
    return tile_svg(title, run, marked, lambda tile, names: panels(tile, names, marked))


# --- the pipeline


def pipeline(name: str) -> str:
    """The picture of six k-tiles."""
    image, filters, size, stage = {
        "shared": ((1, 3, 3, 24), 16, 2, shared_memory.TILE * shared_memory.PADDED),
        "tiled": ((1, 3, 3, 12), 8, 2, BUFFER_STRIDE),
        "tensor_tf32": ((1, 3, 3, 24), 64, 2, (tensor_tile.BM + 64) * tensor_tile.ROW),
    }[name]
    launch = forward(name, image, filters, size)
    return pipeline_svg(launch.title, launched(launch).trace, stage)


def launched(launch: CaseLaunch, kernel: Any = None) -> Launch:
    """Recorded again, of `kernel` if it is given."""
    kernel = kernel or launch.case.kernel
    with simulator.record() as traces:
        kernel[launch.grid, launch.block](*launch.args)
    return Launch(launch.title, traces[0], kernel.fn)


# --- banks


@contextmanager
def replaced(module: ModuleType, **values: Any) -> Iterator[None]:
    """Inside the `with` block the module has other values, which its simulated kernels see."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def filter_gradient(name: str) -> CaseLaunch:
    """The launch of dL/dw of a rung, for 64 filters; of tiled.py that of the scalar kernel."""
    channels = 6 if name == "tiled" else 8
    dtype = "bfloat16" if name == "tensor_bf16" else "float32"
    x, dy = activations((1, 3, 4, channels), dtype), activations((1, 2, 3, 64), dtype)
    dw, buffer = np.ones((64, 2, 2, channels), np.float32), Buffers(Device("cuda:0"), "float32")

    def run() -> None:
        if name == "tiled":
            tiled_gradients.tiled_filter_gradient(x, dy, dw, 1, 0, 1, buffer)
        else:
            options: dict[str, Any] = {"tile": "128x64", "rounded": (True, True)}
            tensor_gradients.tensor_filter_gradient(x, dy, dw, 1, 0, 1, buffer, **options)

    return next(recorded(f"dL/dw, 2×2, 64 filters, 1×3×4×{channels}", run))


def shared_banks() -> str:
    """PADDED of the forward kernel."""
    launch = forward("shared", (1, 6, 6, 16), 16, 3)
    tile, padded = shared_memory.TILE, shared_memory.PADDED
    made = launched(launch)
    with replaced(shared_memory, PADDED=tile):
        plain = launched(launch)
    what = "A warp stores 16 terms of two filters as two columns of w_tile"
    word = "w_tile[tx, ty] is word {}·tx + ty"
    access = Access(what, "w_tile[tx, ty] = w_value", word.format(padded), word.format(tile))
    regions = [
        Region(f"x_tile: {tile} × {tile}", 0, tile * tile),
        Region(f"w_tile: {tile} × {padded}, of which {tile} are used", tile**2, tile * padded),
    ]
    return banks_svg(launch.title, made, plain, [access], regions, tile * (tile + padded))


def buffered(bm: int, bn: int, a_stride: int, b_stride: int) -> list[Region]:
    """The double buffers of a tiled kernel."""
    regions = []
    for buffer in range(2):
        first = buffer * BUFFER_STRIDE
        for name, rows, stride in (("A", bm, a_stride), ("B", bn, b_stride)):
            text = f"{name} {buffer}: {BK} × ({rows} + {stride - rows})"
            regions.append(Region(text, first, BK * stride))
            first += BK * stride
    return regions


def tiled_banks(module: Any, launch: CaseLaunch, accesses: list[tuple[str, str, str]]) -> str:
    """The strides of a tiled kernel. accesses: (what, line, formula with a gap for the stride)."""
    bm, bn = module.BM, module.BN
    made = launched(launch)
    strides = {"A": (module.A_STRIDE, bm), "B": (module.B_STRIDE, bn)}
    with replaced(module, A_STRIDE=bm, B_STRIDE=bn, B_OFFSET=BK * bm):
        plain = launched(launch)
    listed = [
        Access(what, line, *(word.format(stride) for stride in strides[what[-1]]))
        for what, line, word in accesses
    ]
    regions = buffered(bm, bn, module.A_STRIDE, module.B_STRIDE)
    return banks_svg(launch.title, made, plain, listed, regions, module.TILES)


def tiled_forward_banks() -> str:
    """Of the forward kernel, whose k-tiles are transposed as they are stored."""
    word = "[k][row] is word {}·k + row"
    return tiled_banks(
        tiled,
        forward("tiled", (1, 3, 4, 8), 64, 2),
        [
            (
                "A warp stores one number of 16 rows and two float4 of a k-tile of A",
                "a_store +",
                word,
            ),
            (
                "A warp stores one number of 16 rows and two float4 of a k-tile of B",
                "b_store +",
                word,
            ),
        ],
    )


def tiled_gradient_banks() -> str:
    """Of the filter gradient, whose k-tiles are stored as they are loaded."""
    word = "[k][column] is word {}·k + column"
    return tiled_banks(
        tiled_gradients,
        filter_gradient("tiled"),
        [
            ("A warp stores 16 numbers of two rows of a k-tile of A", "a_store + step", word),
            ("A warp stores 16 numbers of two rows of a k-tile of B", "b_store + step", word),
        ],
    )


def stages(a_rows: str, a_words: int, b_rows: str, b_words: int) -> tuple[list[Region], int]:
    """The stages of a tensor-core kernel, and the words in all."""
    regions = []
    for stage in range(tensor_tile.STAGES):
        first = stage * (a_words + b_words)
        regions.append(Region(f"{a_rows} {stage}", first, a_words))
        regions.append(Region(f"{b_rows} {stage}", first + a_words, b_words))
    return regions, tensor_tile.STAGES * (a_words + b_words)


def tensor_forward_banks() -> str:
    """The swizzle of rows."""
    launch = forward("tensor_tf32", (1, 3, 4, 16), 64, 2)
    row, chunk = tensor_tile.ROW, tensor_tile.CHUNK
    made = launched(launch)
    with replaced(tensor_core, row_word=lambda r, c: r * row + c * chunk):
        plain = launched(launch)
    words = f"chunk c of row r is at {row}·r + {chunk}·(c XOR r//2 % 4)", f"{row}·r + {chunk}·c"
    regions, end = stages("A", 128 * row, "B", 64 * row)
    accesses = [
        Access("cp_async: a warp stores four chunks of eight rows", "copy(tiles, a_store", *words),
        Access("ldmatrix_x4: a warp loads two chunks of 16 rows", "ldmatrix_x4(a_words", *words),
    ]
    return banks_svg(launch.title, made, plain, accesses, regions, end)


def tensor_gradient_banks(name: str) -> str:
    """The swizzles of rows of output pixels."""
    kind, load, swizzle = {
        "tensor_tf32": ("tf32_rounded", "copy_scalar(dy_regs", "c XOR 2·(k % 4)"),
        "tensor_bf16": ("bf16", "ldmatrix_x4_trans(dy_regs", "c XOR (4·(k % 2) + k//2 % 4)"),
    }[name]
    launch = filter_gradient(name)
    chunk = tensor_tile.CHUNK
    per_chunk, product = tensor_gradients.PRODUCTS[kind]
    dy_words, a_words = (numbers // per_chunk * chunk for numbers in (64, 128))
    made = launched(launch)

    def plain_word(k: int, c: int, words: int) -> int:
        return k * words + c * chunk

    plain_words = {"k_word_tf32": plain_word, "k_word_bf16": plain_word}
    with replaced(tensor_gradients, **plain_words), replaced(tensor_gradient_tile, **plain_words):
        make = tensor_gradients.make_filter_gradient
        kernel = make(launch.case.kernel.__name__, 64, per_chunk, product)
        plain = launched(launch, kernel)
    words = f"[k][c] at {dy_words}·k + {chunk}·({swizzle})", f"[k][c] at {dy_words}·k + {chunk}·c"
    regions, end = stages("dy", 4 * per_chunk * dy_words, "x", 4 * per_chunk * a_words)
    what = "reads words, of four output pixels" if kind != "bf16" else "loads chunks of 16 pixels"
    accesses = [
        Access("cp_async: a warp stores chunks of dy", "cp_async(tiles, word, dy", *words),
        Access(f"A warp {what}, for a fragment of dy", load, *words),
    ]
    return banks_svg(launch.title, made, plain, accesses, regions, end)


VIEWS: dict[str, dict[str, Callable[[], str]]] = {
    "shared": {
        "tile": lambda: tile("shared"),
        "pipeline": lambda: pipeline("shared"),
        "banks": shared_banks,
    },
    "tiled": {
        "tile": lambda: tile("tiled"),
        "pipeline": lambda: pipeline("tiled"),
        "banks": tiled_forward_banks,
        "gradient_banks": tiled_gradient_banks,
    },
    "tensor_tf32": {
        "tile": lambda: tile("tensor_tf32"),
        "pipeline": lambda: pipeline("tensor_tf32"),
        "banks": tensor_forward_banks,
        "gradient_banks": lambda: tensor_gradient_banks("tensor_tf32"),
    },
    "tensor_bf16": {"gradient_banks": lambda: tensor_gradient_banks("tensor_bf16")},
}
"""By NAME of `draw-kernel` and VIEW."""
