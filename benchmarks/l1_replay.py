"""What the L1 cache saves a product on tensor cores of its loads from L2 (`gpu_model.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from gpu_launches import Launch


def columns_of(launch: Launch) -> int:
    """Filters of a tile of a product on tensor cores."""
    from layers.fast.conv.tile_table import TILES

    return next(bn for name, bn in TILES.items() if f"_{name}_" in launch.name)


class Multiprocessor(NamedTuple):
    """What the L1 cache is shared by."""

    count: int
    """Multiprocessors of the GPU."""
    at_once: int
    """Blocks at a time."""
    lines: int
    """Of 128 bytes, in its L1 cache."""


class Cache:
    """An L1 cache of `lines` that drops the line that was used the longest time ago."""

    def __init__(self, lines: int) -> None:
        self.most, self.held = lines, dict[tuple[str, int], int]()
        self.loaded = self.moved = 0

    def copy(self, array: str, sectors: Iterable[int], moved: int) -> None:
        """Copies of `moved` bytes, which are in these sectors of 32; those of dy go past it."""
        self.moved += moved
        if array == "dy":
            self.loaded += moved
            return
        for at in sectors:
            line, sector = (array, at // 4), 1 << at % 4
            held = self.held.pop(line, 0)
            self.loaded += 0 if held & sector else 32
            self.held[line] = held | sector
            if len(self.held) > self.most:
                del self.held[next(iter(self.held))]


@cache
def l2_share(launch: Launch, here: Multiprocessor, bk: int) -> float:
    """Of the bytes of its k-tiles, those that a product loads from L2, past the L1 cache.

    The lines that the blocks of one multiprocessor touch are replayed, k-tile by k-tile, in
    lockstep. In dL/dw only those of x go through the cache.
    """
    from layers.fast.conv import tensor_tile

    if not tensor_tile.L1:
        return 1.0
    l1 = Cache(here.lines)
    first = range(40, launch.blocks, here.count)[: here.at_once] or range(1)
    turns = [(filter_copies if "filter" in launch.name else forward_copies)(launch, bk, block)
             for block in first]  # fmt: skip
    for copies in zip(*turns, strict=False):
        for of_block in copies:
            for array, starts, width in of_block:
                sectors = np.unique((starts[:, None] + np.arange(0, width, 32)).ravel() // 32)
                l1.copy(array, sectors.tolist(), width * starts.size)
    return l1.loaded / l1.moved


Copies = Iterator[list[tuple[str, Any, int]]]
"""By k-tile: arrays, the bytes at which copies begin, and how many follow each."""


def forward_copies(launch: Launch, bk: int, block: int) -> Copies:
    """What a block of a forward product copies."""
    _, _, _, _, _, height, width, channels, rows, columns, filters, *others = launch.sizes
    size, stride, before, groups, _, chunked = others
    word = 64 // bk
    run, bn = channels // groups, columns_of(launch)
    depth = size * size * run
    tiles_n = -(-(filters // groups) // bn)
    pixels = math.prod(launch.sizes[3]) // filters
    tile_m, tile_n = divmod(block % launch.grid[0], tiles_n)
    m = np.minimum(tile_m * 128 + np.arange(128), pixels - 1)
    n = np.minimum(tile_n * bn + np.arange(bn), filters // groups - 1)
    for k_tile in range(-(-depth // bk)):
        k = k_tile * bk
        if chunked:
            chunk, tap = divmod(k_tile, size * size)
            c = chunk * bk
        else:
            tap, c = divmod(k, run)
        r, s = divmod(tap, size)
        h = m // columns % rows * stride - before + r
        q = m % columns * stride - before + s
        inside = (h >= 0) & (h < height) & (q >= 0) & (q < width)
        at = ((m // columns // rows * height + h) * width + q) * channels + c
        yield [("x", at[inside] * word, 64), ("w", (n * depth + k) * word, 64)]


def filter_copies(launch: Launch, bk: int, block: int) -> Copies:
    """What a block of dL/dw copies; at most 200 k-tiles."""
    height, width, channels, rows, columns, filters, _, size, stride = launch.sizes[3:12]
    before, groups, split_k, *_, tap_channels = launch.sizes[12:]
    word = 64 // bk
    run, bm = channels // groups, columns_of(launch)
    tiles_n = -(-size * size * run // 128)
    first, group_split = block % launch.grid[0], block // launch.grid[0]
    group, split = group_split % groups, group_split // groups
    value = first % tiles_n * 128 + np.arange(0, 128, bk // 4)
    of_channels, rest = np.divmod(value[value < size * size * run], size * size * tap_channels)
    tap, channel = rest // tap_channels, of_channels * tap_channels + rest % tap_channels
    channel += group * run
    pixels = math.prod(launch.sizes[1]) // filters
    end = min((split + 1) * split_k, pixels)
    for k in range(split * split_k, min(end, split * split_k + 200 * bk), bk):
        m = np.arange(k, min(k + bk, end))[:, None]
        h = m // columns % rows * stride - before + tap // size
        q = m % columns * stride - before + tap % size
        inside = (h >= 0) & (h < height) & (q >= 0) & (q < width)
        at = ((m // columns // rows * height + h) * width + q) * channels + channel
        yield [("x", at[inside] * word, 16), ("dy", np.zeros(m.size * bm * word // 64), 64)]
