"""Launches of the kernels of rung 3 of convolution, for `subjects.py`: both kinds, both tiles."""

from collections.abc import Callable
from typing import Any

import numpy as np

from layers.bfloat16 import to_bits
from layers.conv.blocks import filter_blocks, filter_from_blocks
from layers.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.conv.tile_table import TILES
from layers.device import Device
from layers.layer import Buffers

KINDS: dict[str, Any] = {"TF32": np.float32, "BF16": np.uint16}


def tensor_runs(shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    """By title, what launches each kernel for an image of `shape` (N, H, W, C), H and W >= 2."""
    return {
        f"Conv2D 2×2, stride 2, 8 filters, {kind}, {tile} tile": _run(shape, dtype, tile)
        for kind, dtype in KINDS.items()
        for tile in TILES
    }


def _run(shape: tuple[int, ...], dtype: Any, tile: str) -> Callable[[], None]:
    images, height, width, channels = shape
    buffer = Buffers(Device("cuda:0"), np.float32)
    rng = np.random.default_rng(0)
    shapes = shape, (images, height // 2, width // 2, 8), (8, 2, 2, channels), (8,)
    x, dy, w, b = (rng.standard_normal(each).astype(np.float32) for each in shapes)
    if dtype == np.uint16:
        x, dy = to_bits(x), to_bits(dy)
    y, dx, w_again = np.empty_like(dy), np.empty_like(x), np.empty_like(w)

    def run() -> None:
        tensor_forward(x, w, b, y, 2, 0, 1, buffer, relu=True, tile=tile)
        tensor_input_gradient(dy, w, dx, 2, 0, 1, buffer, mask=x, tile=tile)
        filter_from_blocks(filter_blocks(w, 2, w, buffer), w_again, 2)

    return run
