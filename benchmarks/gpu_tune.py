"""`gpu_report.py --autotune`: which tile is faster, for every convolution of the net.

Each of the products of a step (forward, dL/dx, dL/dw) is timed with both tiles of
`layers/fast/conv/tile_table.py`, in both precisions and at both batch sizes, in rounds: all repeats
with 128x128, all with 128x64, and again. The best of the medians of a tile counts. The faster tiles
are written to layers/fast/conv/tiles.json under the GPU's architecture, where the steps read them;
entries of other architectures are kept. A product for which one of the tiles was not timed is left
to the rule.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from gpu_bench import Bench
from gpu_convs import convolutions, random_conv
from gpu_runner import Case, Job, Result
from gpu_tables import table

from layers import Conv2D, Device
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile_table import TILES, layer_key, read
from layers.fast.precision import capability
from layers.layer import Buffers

ROUNDS = 3
PRODUCTS = "forward", "input gradient", "filter gradient"
PRECISIONS = "tf32", "bf16"


def tile_cases(bench: Bench, batches: tuple[int, ...], rounds: int = ROUNDS) -> Iterator[Case]:
    """Both tiles in turn, for all products of a step."""
    for count in batches:
        for place, (layer, shape) in enumerate(convolutions(bench)):
            for direction in PRODUCTS:
                if place == 0 and direction == "input gradient":
                    continue  # nothing learns from the gradient with respect to the photo
                for precision in PRECISIONS:
                    x_shape, w_shape = (count, *shape), layer.weight.value.shape
                    geometry = layer.stride, layer.before, layer.groups
                    key = layer_key(direction, precision, x_shape, w_shape, *geometry)
                    for _ in range(rounds):
                        for tile in TILES:
                            make = one_product(bench, layer, x_shape, direction, precision, tile)
                            yield Case("tiles", key, tile, make)


def one_product(
    bench: Bench, layer: Conv2D, x_shape: tuple, direction: str, precision: str, tile: str
) -> Callable[[], Job]:
    """`make` of one product with one tile, after a look whether the other one gives the same."""

    def make() -> Job:
        x = bench.stored(bench.random(*x_shape), precision)
        y_shape = x_shape[0], *layer.output_shape(x_shape[1:])
        dy = bench.stored(bench.random(*y_shape), precision)
        conv = random_conv(bench, layer, "tensor")
        w, b = conv.weight.value, conv.bias.value
        rest = layer.stride, layer.before, layer.groups, Buffers(bench.device, np.float32)
        out = {"forward": dy, "input gradient": x, "filter gradient": w}[direction]
        out = bench.device.empty(out.shape, out.dtype)

        def run(tile: str = tile) -> None:
            if direction == "forward":
                tensor_forward(x, w, b, out, *rest, relu=True, tile=tile)
            elif direction == "input gradient":
                tensor_input_gradient(dy, w, out, *rest, tile=tile)
            else:
                tensor_filter_gradient(x, dy, out, *rest, tile=tile)

        results = []
        for name in TILES:
            run(name)
            results.append(bench.device.to_host(out).copy())
        if not np.array_equal(*results):
            raise ValueError("the two tiles give different bits")
        return Job(run)

    return make


# --- what was found


def best_medians(results: list[Result]) -> dict[str, dict[str, float]]:
    """By product, and by tile, seconds; only the products that were timed with both tiles."""
    found: dict[str, dict[str, float]] = {}
    for result in results:
        tiles = found.setdefault(result.what, {})
        if result.seconds:
            tiles[result.who] = min(result.median, tiles.get(result.who, float("inf")))
    return {what: tiles for what, tiles in found.items() if len(tiles) == len(TILES)}


def faster(tiles: dict[str, float]) -> str:
    """The tile that takes less time; of two equal ones the first."""
    return min(tiles, key=lambda tile: tiles[tile])


def tuned_table(results: list[Result]) -> str:
    """Markdown: every product, its times, the tile to take."""
    best = best_medians(results)
    rows = []
    for what in dict.fromkeys(result.what for result in results):
        if tiles := best.get(what):
            times = (f"{1e3 * tiles[name]:,.4f}" for name in TILES)
            rows.append([what, faster(tiles), *times])
        else:
            why = next((r.why for r in results if r.what == what and r.why), "?")
            rows.append([what, why, *[""] * len(TILES)])
    return table(["product", "faster", *(f"{name}, ms" for name in TILES)], rows)


def architecture_of(device: Device) -> str:
    """As the table of tiles calls it: "sm_90"."""
    return "sm_{}{}".format(*capability(device))


def with_tiles(results: list[Result], architecture: str, path: Path) -> str:
    """The text of the table at `path` with what was found on this architecture put into it."""
    known = read(path)
    found = {what: faster(tiles) for what, tiles in best_medians(results).items()}
    known[architecture] = {**known.get(architecture, {}), **found}
    return json.dumps(known, indent=1, sort_keys=True) + "\n"
