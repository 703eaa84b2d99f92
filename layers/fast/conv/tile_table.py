"""Which tile a tensor-core kernel uses: a rule, and a table of measured exceptions.

Tiles are called BM x BN: 128 output pixels by 128 or 64 filters. In dL/dw the output is filters ×
values of a filter, and its tile is the transpose: "128x64" is 64 filters by 128 values there. A
128x128 block loads less for each product; 128x64 wastes less where a layer has few filters, and
makes more blocks where there are few. The rule does not use measured times. `tiles.json` does: for
an architecture and a layer (`layer_key`) it can name the tile that was fastest, which overrides the
rule:

    {"sm_90": {"bf16 forward 128x27x27x96 256x5x5x48 stride 1 before 2 groups 2": "128x64"}}

`{}` is a valid table: the rule alone.
"""

import json
from functools import cache
from pathlib import Path

from layers.device import SIMULATED, cuda

TILES = {"128x128": 128, "128x64": 64}
"""Filters of a tile, by its name."""

PATH = Path(__file__).with_name("tiles.json")

MULTIPROCESSORS = 132
"""Those of an H100, used without a GPU."""


def layer_key(direction, kind, x_shape, w_shape, stride, before, groups):
    """The table's name for one computation of one layer.

    direction: "forward", "input gradient" or "filter gradient"; kind: "tf32" or "bf16"; x_shape and
    w_shape: of the layer, (N, H, W, C) and (K, R, S, C / groups).
    """
    x, w = ("x".join(map(str, shape)) for shape in (x_shape, w_shape))
    return f"{kind} {direction} {x} {w} stride {stride} before {before} groups {groups}"


def read(path=PATH):
    """The table in the file at `path`; ValueError, in one line, if it is not a table."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a table of tiles ({error}): write {{}} into it") from None
    sound = isinstance(table, dict) and all(isinstance(layers, dict) for layers in table.values())
    tiles = [tile for layers in table.values() for tile in layers.values()] if sound else [None]
    if any(tile not in tuple(TILES) for tile in tiles):
        raise ValueError(
            f"{path} is not a table of tiles: it maps architectures to layers and these to "
            '"128x128" or "128x64"; make it {"sm_90": {"<layer>": "128x64"}}, or {}'
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
    """ "128x128" or "128x64" for the computation `key`: from the table, else by the rule.

    filters: of a group; blocks: of a launch with 128x128 tiles. The rule is 128x128, unless 128x64
    leaves fewer columns without a filter, or a multiprocessor would have no block.
    """
    architecture, multiprocessors = _gpu()
    measured = _table().get(architecture, {}).get(key)
    if measured is not None:
        return measured
    unused = {name: -filters % bn for name, bn in TILES.items()}
    few = blocks < multiprocessors
    return "128x64" if few or unused["128x64"] < unused["128x128"] else "128x128"
