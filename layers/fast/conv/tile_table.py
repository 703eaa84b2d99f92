"""Which tile a tensor-core kernel works with: a rule, and a table of exceptions that were measured.

A tile has 128 filters ("large") or 64 ("small"). With the large one a block reads less for each
product; the small one wastes less where a layer has few filters, and makes more blocks where there
are few. The rule knows no times. `tiles.json` does: for an architecture, and a layer as `layer_key`
writes it, it may hold the tile that was fastest, and goes before the rule:

    {"sm_90": {"bf16 forward 128x27x27x96 256x5x5x48 stride 1 before 2 groups 2": "small"}}

`{}` is a table too: the rule alone.
"""

import json
from functools import cache
from pathlib import Path

from layers.device import SIMULATED, cuda

TILES = {"large": 128, "small": 64}
"""Filters of a tile, by name."""

PATH = Path(__file__).with_name("tiles.json")

MULTIPROCESSORS = 132
"""Of a GPU that cannot be asked: those of an H100."""


def layer_key(direction, kind, x_shape, w_shape, stride, before, groups):
    """The table's name for one computation of one layer.

    direction: "forward", "input gradient" or "filter gradient"; kind: "tf32" or "bf16"; x_shape and
    w_shape: of the layer, (N, H, W, C) and (K, R, S, C / groups).
    """
    x, w = ("x".join(map(str, shape)) for shape in (x_shape, w_shape))
    return f"{kind} {direction} {x} {w} stride {stride} before {before} groups {groups}"


def read(path=PATH):
    """The table in the file at `path`; ValueError, in one line, if it holds none."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no table of tiles ({error}): write {{}} into it") from None
    sound = isinstance(table, dict) and all(isinstance(layers, dict) for layers in table.values())
    tiles = [tile for layers in table.values() for tile in layers.values()] if sound else [None]
    if any(tile not in tuple(TILES) for tile in tiles):
        raise ValueError(
            f'{path} is no table of tiles: it maps architectures to layers and these to "large" or '
            '"small"; make it {"sm_90": {"<layer>": "small"}}, or {}'
        )
    return table


@cache
def _table():
    return read()


@cache
def _gpu():
    """The architecture ("sm_90") and the number of multiprocessors of the current GPU."""
    if SIMULATED:
        return "simulated", MULTIPROCESSORS
    device = cuda.get_current_device()
    return "sm_{}{}".format(*device.compute_capability), device.MULTIPROCESSOR_COUNT


def choose_tile(key, filters, blocks):
    """ "large" or "small" for the computation `key`: as the table says, else by the rule.

    filters: of a group; blocks: of a launch with large tiles. The rule is the large tile, unless
    fewer places for filters stay empty in small ones, or a multiprocessor would be without a block.
    """
    architecture, multiprocessors = _gpu()
    measured = _table().get(architecture, {}).get(key)
    if measured is not None:
        return measured
    empty = {name: -filters % size for name, size in TILES.items()}
    few = blocks < multiprocessors
    return "small" if few or empty["small"] < empty["large"] else "large"
