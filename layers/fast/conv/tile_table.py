"""Which tile a tensor-core kernel uses: a rule, and a table of measured exceptions.

Tiles are called BM x BN: 128 output pixels by 128 or 64 filters. In dL/dw the output is filters ×
values of a filter, and its tile is the transpose: "128x64" is 64 filters by 128 values there. A
128x128 block loads less for each product; 128x64 wastes less where a layer has few filters, and
fills the last wave of blocks better. The rule counts both, for the multiprocessors and the shared
memory of the GPU. It does not use measured times. `tiles.json` does: for an architecture and a
layer (`layer_key`) it can name the tile that was fastest, which overrides the rule:

    {"sm_90": {"bf16 forward 128x27x27x96 256x5x5x48 stride 1 before 2 groups 2": "128x64"}}

`{}` is a valid table: the rule alone.
"""

import json
from functools import cache
from math import ceil
from pathlib import Path

from layers.device import SIMULATED, cuda

TILES = {"128x128": 128, "128x64": 64}
"""Filters of a tile, by its name."""

PER_PRODUCT = {"128x128": 1.0, "128x64": 1.1}
"""Time of a product in each, compared (`benchmarks/gpu_model.py`): the small one loads more."""

RESIDENT = {"128x128": 2, "128x64": 4}
"""Blocks of a multiprocessor that its registers allow (`benchmarks/kernel_report.py`)."""

SHARED = {"sm_80": 164, "sm_87": 164, "sm_90": 228, "sm_100": 228, "sm_103": 228, "simulated": 228}
"""KB of shared memory of a multiprocessor; 100 for all others with tensor cores for TF32 (CUDA C++
Programming Guide, "Compute Capabilities")."""

CARVEOUT = True
"""Whether a tensor-core kernel asks for as much shared memory as its resident blocks take, which
leaves the rest to the L1 cache. For a GPU to decide: False leaves the choice to the driver."""

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


def _gpu():
    """The architecture ("sm_90") and the number of multiprocessors of the current GPU."""
    if SIMULATED:
        return "simulated", MULTIPROCESSORS
    device = cuda.get_current_device()
    return "sm_{}{}".format(*device.compute_capability), device.MULTIPROCESSOR_COUNT


def resident_blocks(tile, architecture):
    """Blocks of a multiprocessor at a time, and the percentage of its shared memory they take."""
    # Three stages of k-tiles, rows of 64 bytes; CUDA takes one KB more of each block.
    of_block = 3 * 64 * (128 + TILES[tile]) // 1024 + 1
    shared = SHARED.get(architecture, 100)
    blocks = min(RESIDENT[tile], shared // of_block)
    return blocks, -(-100 * blocks * of_block // shared)


def relative_time(tile, filters, rows):
    """A launch's time by the rule, to be compared: columns that a multiprocessor computes."""
    architecture, multiprocessors = _gpu()
    blocks = rows * -(-filters // TILES[tile])
    resident, _ = resident_blocks(tile, architecture)
    waves = blocks / (multiprocessors * resident)
    if waves <= 1:
        busiest = ceil(blocks / multiprocessors)
    else:  # half of the loss by the last wave: blocks end at different times
        busiest = blocks / multiprocessors * (1 + ceil(waves) / waves) / 2
    return busiest * TILES[tile] * PER_PRODUCT[tile]


def choose_tile(key, filters, rows):
    """ "128x128" or "128x64" for the computation `key`: from the table, else by the rule.

    filters: of a group; rows: blocks of a launch for each column of tiles, of all groups and
    splits. The rule takes the tile whose launch takes less time: fewer columns without a filter,
    and a fuller last wave.
    """
    measured = _table().get(_gpu()[0], {}).get(key)
    return measured or min(TILES, key=lambda tile: relative_time(tile, filters, rows))


def ask_for_shared_memory(kernel, tile):
    """Tell the driver how much shared memory `kernel`, not yet compiled, needs (`CARVEOUT`)."""
    if CARVEOUT and not SIMULATED:
        _, percent = resident_blocks(tile, _gpu()[0])
        kernel.targetoptions["shared_memory_carveout"] = percent
