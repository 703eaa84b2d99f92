"""One report about one GPU: ceilings, every convolution, every layer, whole steps, beside PyTorch.

    python benchmarks/gpu_report.py               # writes benchmarks/results/<date>-<gpu>.md, .json
    python benchmarks/gpu_report.py --minutes 3   # fewer repeats, then fewer cases
    python benchmarks/gpu_report.py --autotune    # instead of it: writes .../fast/conv/tiles.json
    python benchmarks/gpu_report.py --rehearse    # the same code without a GPU, on tiny shapes

Needs an NVIDIA GPU, CuPy and numba-cuda; PyTorch (CUDA build) is compared with where it is
installed. Without a GPU: one line, and exit status 2.

Data are random, other ones in each run; the seed is printed, and `--seed` repeats it. Results are
checked before they are timed (`gpu_cases.py`, `gpu_steps.py`, `gpu_layers.py`). Cases run in a
fixed order, each several times (`gpu_runner.py`); medians are shown with the fastest and the
slowest. The report (`gpu_tables.py`) is written again after each case, so that a run that is killed
leaves what it has found.

--autotune times each of the products of a step (forward, dL/dx, dL/dw) with both tiles of
`layers/fast/conv/tile_table.py`, in both precisions and at both batch sizes, in rounds; its report
is <date>-<gpu>-tiles. The tile with the best median of a round is written to
layers/fast/conv/tiles.json under the GPU's architecture, where the steps read it; entries of other
architectures are kept. A product for which one of the tiles was not timed is left to the rule.
"""

import argparse
import copy
import datetime
import functools
import json
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
REHEARSE = "--rehearse"
if __name__ == "__main__":
    os.environ["CUPY_TF32"] = "0"  # it would make CuPy's float32 products something else
    if REHEARSE in sys.argv[1:]:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np  # noqa: E402
from gpu_cases import COMPILED, Bench, ceiling_cases  # noqa: E402
from gpu_layers import conv_cases, layer_cases  # noqa: E402
from gpu_runner import GpuClock, HostClock, Result, run_sections  # noqa: E402
from gpu_steps import agreement_cases, step_cases, torch_step_cases  # noqa: E402
from gpu_tables import markdown, ms, write  # noqa: E402
from gpu_tiles import ROUNDS, tile_cases  # noqa: E402
from machine import machine  # noqa: E402

from layers import Device, DeviceError  # noqa: E402
from layers.fast.conv.tile_table import PATH, TILES, read  # noqa: E402
from layers.fast.precision import capability, settle  # noqa: E402
from tinyconv import alexnet  # noqa: E402
from tinyconv.lab.cases.book import small_net  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BATCHES = 128, 1024
UNLIMITED = 1e9
"""Minutes of a rehearsal."""

PACKAGES = "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "numpy", "torch"

# --- what is measured


@functools.cache
def drawn_net() -> Any:
    return alexnet(num_classes=1000, width=1.0, image_size=224, recipe="robust")


def full_net() -> Any:
    """The paper's sizes, with the recipe that PyTorch has a twin for.

    A copy, as drawing 61 million weights takes longer than most cases. (A net's devices hold the
    module NumPy, which cannot be copied.)
    """
    return copy.deepcopy(drawn_net(), {id(np): np})


def tiny_net() -> Any:
    """Every kind of layer, in sizes that the simulator finishes."""
    return small_net(np.random.default_rng(0)).to("cpu", np.float32)


def pytorch(device: Device) -> Any:
    """The module, if it is installed and computes where `device` does; else None."""
    try:
        import torch
    except ImportError:
        return None
    if device.is_cuda and not device.is_simulated and not torch.cuda.is_available():
        return None
    return torch


def bench_on(device: Device, tiny: bool, seed: int) -> Bench:
    """The sizes of the report, or tiny ones."""
    rng, torch = np.random.default_rng(seed), pytorch(device)
    if tiny:  # simulated threads take their time, the host does not
        return Bench(device, tiny_net, 3 if device.is_cuda else 16, 1000, 16, torch, rng)
    return Bench(device, full_net, BATCHES[0], 2**28, 8192, torch, rng)


def sections(bench: Bench, batches: tuple[int, ...]) -> list[Any]:
    """The weight of each section, and its cases."""
    return [
        (1, lambda: ceiling_cases(bench)),
        (10, lambda: agreement_cases(bench)),  # here most kernels are compiled
        (4, lambda: step_cases(bench, batches)),
        (3, lambda: torch_step_cases(bench, batches)),
        (8, lambda: conv_cases(bench)),
        (4, lambda: layer_cases(bench)),
        (4, lambda: torch_step_cases(bench, batches, COMPILED)),
    ]


def description(bench: Bench, clock: Any, seed: int, rehearsal: bool) -> dict[str, Any]:
    """The device, the versions, and how it was timed."""
    facts = {
        "device": str(bench.device),
        "machine": machine(*PACKAGES),
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "cache": clock.flushed,
        "repeats": clock.most_repeats,
        "pytorch": bench.torch.__version__ if bench.torch else "not installed for this device",
        "rehearsal": rehearsal,
    }
    if not rehearsal:
        runtime = bench.device.xp.cuda.runtime
        found = runtime.getDeviceProperties(bench.device.index)
        facts |= {name: found[name] for name in ("multiProcessorCount", "major", "minor")}
        facts["memory GiB"] = round(found["totalGlobalMem"] / 2**30, 1)
        facts["CUDA driver"] = runtime.driverGetVersion()
        facts["CUDA runtime"] = runtime.runtimeGetVersion()
    return facts


# --- tiles


def best_medians(results: list[Result]) -> dict[str, dict[str, float]]:
    """By product, and by tile, seconds; only the products that were timed with both tiles."""
    found: dict[str, dict[str, float]] = {}
    for result in results:
        tiles = found.setdefault(result.what, {})
        if result.seconds:
            tiles[result.who] = min(result.median, tiles.get(result.who, float("inf")))
    return {what: tiles for what, tiles in found.items() if len(tiles) == len(TILES)}


def with_tiles(results: list[Result], architecture: str, path: Path) -> str:
    """The text of the table at `path` with the faster tiles; of two equal ones the first's name."""
    known = read(path)
    found = {what: min(TILES, key=tiles.get) for what, tiles in best_medians(results).items()}
    known[architecture] = {**known.get(architecture, {}), **found}
    return json.dumps(known, indent=1, sort_keys=True) + "\n"


# --- command line


def say(result: Result) -> None:
    """One line for each case, on standard error."""
    took = result.why or "agrees"
    if result.seconds:
        took = f"{ms(result.median)} ms, {len(result.seconds)} times"
    print(f"{result.section}: {result.what}, {result.who}: {took}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """0: the report is written; 1: some case failed; 2: no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="for all, on a GPU (default 8)")
    add("--device", default="cuda:0")
    add("--seed", type=int, default=secrets.randbelow(2**32), help="of the data")
    add("--out", type=Path, default=RESULTS, help="folder for the report")
    add(REHEARSE, action="store_true", help="without a GPU: tiny, nothing written")
    add("--autotune", action="store_true", help="time tiles, and write layers/fast/conv/tiles.json")
    options = parser.parse_args(arguments)
    tiny, tune = options.rehearse, options.autotune
    try:
        device = Device(options.device)
        if not tiny and (not device.is_cuda or device.is_simulated):
            raise DeviceError(f"{device}: only a GPU has a report; --rehearse runs without one")
        if tune and not device.is_cuda:
            raise DeviceError(f"{device}: tiles are for a GPU, or the simulated cuda:0")
        if tune:
            settle("tf32", device)  # there are tiles to choose from where there is TF32
    except (DeviceError, ValueError) as error:
        print(f"gpu_report.py: error: {error}", file=sys.stderr)
        return 2
    bench = bench_on(device, tiny, options.seed)
    clock = HostClock() if tiny else GpuClock(device.xp)
    minutes, batches = (UNLIMITED, (2,)) if tiny else (options.minutes, BATCHES)
    facts = description(bench, clock, options.seed, tiny)
    gpu = re.sub(r"[^a-z0-9]+", "-", facts["device"].rpartition(", ")[2].lower()).strip("-")
    path = options.out / f"{facts['date']}-{gpu}{'-tiles' if tune else ''}.md"
    found: list[Result] = []

    def keep(result: Result) -> None:
        say(result)
        found.append(result)
        if not tiny:
            write(path, facts, found)

    of_tiles = functools.partial(tile_cases, bench, batches, 1 if tiny else ROUNDS)
    run_sections([(1, of_tiles)] if tune else sections(bench, batches), clock, minutes, keep)
    print(markdown(facts, found) if tiny else path)
    if tune and not tiny:
        architecture = "sm_{}{}".format(*capability(device))
        PATH.write_text(with_tiles(found, architecture, PATH), encoding="utf-8")
        print(PATH)
    return int(any(result.why.startswith("failed") for result in found))


if __name__ == "__main__":
    sys.exit(main())
