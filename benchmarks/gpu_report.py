"""One report about one GPU: ceilings, every convolution, every layer, whole steps, beside PyTorch.

    python benchmarks/gpu_report.py               # writes benchmarks/results/<date>-<gpu>.md, .json
    python benchmarks/gpu_report.py --minutes 3   # fewer repeats, then fewer cases
    python benchmarks/gpu_report.py --autotune    # instead of it: writes .../fast/conv/tiles.json
    python benchmarks/gpu_report.py --rehearse    # the same code without a GPU, on tiny shapes

Needs an NVIDIA GPU, CuPy and numba-cuda; PyTorch (CUDA build) is compared with where it is
installed. Without a GPU: one line, and exit status 2.

Data are random, other ones in each run; the seed is printed, and `--seed` repeats it. Results are
checked before they are timed (`gpu_cases.py`). Cases run in a fixed order, each several times
(`gpu_runner.py`); medians are shown with the fastest and the slowest. The report is written again
after each case, so that a run that is killed leaves what it has found.

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
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
REHEARSE = "--rehearse"
if __name__ == "__main__":
    os.environ["CUPY_TF32"] = "0"  # it would make CuPy's float32 products something else
    if REHEARSE in sys.argv[1:]:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import gpu_cases as cases  # noqa: E402
import numpy as np  # noqa: E402
from gpu_cases import IN_WORDS, Bench  # noqa: E402
from gpu_runner import GpuClock, HostClock, Result, run_sections  # noqa: E402
from machine import machine  # noqa: E402
from measuring import table  # noqa: E402

from layers import Device, DeviceError  # noqa: E402
from layers.fast.conv.tile_table import PATH, TILES, read  # noqa: E402
from layers.fast.precision import capability, settle  # noqa: E402
from tinyconv import alexnet  # noqa: E402
from tinyconv.tools.gradient_cases import small_net  # noqa: E402

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
        (1, lambda: cases.ceiling_cases(bench)),
        (10, lambda: cases.agreement_cases(bench)),  # here most kernels are compiled
        (4, lambda: cases.step_cases(bench, batches)),
        (3, lambda: cases.torch_step_cases(bench, batches)),
        (8, lambda: cases.conv_cases(bench)),
        (4, lambda: cases.layer_cases(bench)),
        (4, lambda: cases.torch_step_cases(bench, batches, cases.COMPILED)),
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


# --- tables

WARNING = (
    "**A rehearsal: tiny shapes, and no GPU. It shows that every case runs and is checked; its "
    "times say nothing.**"
)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def share(rate: float, ceiling: float | None) -> str:
    """`rate` as a share of the ceiling, if that was measured."""
    return f"{rate / ceiling:.0%}" if ceiling else ""


def of_product(result: Result, ceilings: dict[str, float]) -> str:
    """The share of the matrix product's rate in the precision that the result's name tells."""
    words = next((words for words in IN_WORDS.values() if words and words in result.who), "")
    return share(result.operations / result.median, ceilings.get(f"matrix product{words}"))


def peak(result: Result, ceilings: dict[str, float]) -> str:
    found = result.notes.get("peak bytes")
    return f"{found / 2**20:,.0f}" if found else ""


def replayed(result: Result, ceilings: dict[str, float]) -> str:
    words = {None: "", True: "yes", False: "no: launched one by one"}
    return words[result.notes.get("replayed")]


Cell = Callable[[Result, dict[str, float]], str]
CELLS: dict[str, Cell] = {
    "ms": lambda r, _: ms(r.median),
    "fastest to slowest": lambda r, _: f"{ms(min(r.seconds))} to {ms(max(r.seconds))}",
    "times": lambda r, _: f"{len(r.seconds)}",
    "GB/s": lambda r, _: f"{r.moved / r.median / 1e9:,.1f}" if r.moved else "",
    "TFLOP/s": lambda r, _: f"{r.operations / r.median / 1e12:,.2f}" if r.operations else "",
    "of the copy bandwidth": lambda r, c: share(r.moved / r.median, c.get("copy bandwidth")),
    "of the matrix product": of_product,
    "images/s": lambda r, _: f"{r.images / r.median:,.0f}",
    "host ms": lambda r, _: ms(statistics.median(r.host_seconds)),
    "peak MiB": peak,
    "replayed": replayed,
}
"""By the name of a column, a result's cell, given what the ceilings are."""

TIMES = "ms", "fastest to slowest", "times"
PRODUCTS = "TFLOP/s", "of the matrix product"
SECTIONS = {
    "ceilings": (
        "Measured ceilings",
        ("GB/s", "TFLOP/s"),
        "A copy counts its bytes twice, once read and once written. The products are the "
        "library's; a share below is of the product in the same precision.",
    ),
    "steps": (
        "Whole steps, by batch size",
        ("images/s", *PRODUCTS, "host ms", "peak MiB", "replayed"),
        "Host ms: until everything of a step is queued. Peak: of the library's own memory pool "
        "(for ours, all that it holds). Images are on the GPU; our labels come from the host. "
        "PyTorch's LRN, groups and dropout are its own modules; BF16 is its autocast.",
    ),
    "convolutions": (
        "Convolutions",
        PRODUCTS,
        "Forward includes the bias; the filter gradient includes the bias gradient. What our "
        "kernels rearrange before they multiply is timed with them. Where the padding differs from "
        "side to side PyTorch's is done before, untimed; in BF16 all its arrays are bfloat16 "
        "before. Its backward passes are timed as autograd runs them.",
    ),
    "layers": (
        "The other layers",
        ("GB/s", "of the copy bandwidth"),
        "GB/s: bytes that have to move (docs/limits.md) in the time taken; an array that is read "
        "twice counts once. Of PyTorch's passes both are timed as autograd runs them.",
    ),
    "tiles": ("Tiles, round by round", (), "A product by its key in tiles.json."),
}
"""Title, columns, and what they mean."""


def section_table(name: str, results: list[Result], ceilings: dict[str, float]) -> str:
    """A row for each result; those with one `what` are together."""
    columns = *TIMES, *SECTIONS[name][1]
    rows = []
    for what in dict.fromkeys(result.what for result in results):
        for r in (result for result in results if result.what == what):
            cells = [r.why] + [""] * (len(columns) - 1)
            if r.seconds:
                cells = [CELLS[column](r, ceilings) for column in columns]
            rows.append([what, r.who, *cells])
    return table(["what", "who", *columns], rows, text=2)


def agreement(results: list[Result]) -> str:
    """What was compared, and how well it agrees."""
    lines = []
    for result in results:
        outcome, notes = result.why or "agree", result.notes
        if "ours" in notes:
            outcome += f", to {notes['largest relative difference']:.1e} of the loss"
            outcome += f"; the last is {notes['ours'][-1]:.6f} and {notes['theirs'][-1]:.6f}"
        if notes.get("equal bits"):
            outcome += " to the bit"
        lines.append(f"- {result.what}, {result.who}: {outcome}.")
    return "\n".join(lines)


def missing(results: list[Result], most: int) -> str:
    """Which cases failed, were dropped, or were repeated less than `most` times."""
    lines = [f"- {r.section}: {r.what}, {r.who}: {r.why}." for r in results if r.why]
    fewer = [r for r in results if r.seconds and len(r.seconds) < most]
    if fewer:
        text = ", ".join(f"{r.what} ({r.who}: {len(r.seconds)})" for r in fewer)
        lines.append(f"- Repeated less than {most} times, to keep to the minutes: {text}.")
    return "\n".join(lines) or "Nothing: every case ran as often as it should."


def markdown(facts: dict[str, Any], results: list[Result]) -> str:
    """The whole report."""
    parts = [f"# {facts['device']}", *([WARNING] if facts["rehearsal"] else [])]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    ceilings = {
        r.what: (r.moved or r.operations) / r.median
        for r in results
        if r.section == "ceilings" and r.seconds
    }
    agreed = [result for result in results if result.section == "agreement"]
    if agreed:
        parts += ["## Agreement", agreement(agreed)]
    for name, (title, _, note) in SECTIONS.items():
        if rows := [result for result in results if result.section == name]:
            parts += [f"## {title}", note, section_table(name, rows, ceilings)]
    parts += ["## What is missing", missing(results, facts["repeats"])]
    return "\n\n".join(parts) + "\n"


def write(path: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """The report as Markdown and as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(markdown(facts, results), encoding="utf-8")
    content = json.dumps({"facts": facts, "results": [asdict(r) for r in results]}, indent=1)
    path.with_suffix(".json").write_text(content + "\n", encoding="utf-8")


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

    of_tiles = functools.partial(cases.tile_cases, bench, batches, 1 if tiny else cases.ROUNDS)
    run_sections([(1, of_tiles)] if tune else sections(bench, batches), clock, minutes, keep)
    print(markdown(facts, found) if tiny else path)
    if tune and not tiny:
        architecture = "sm_{}{}".format(*capability(device))
        PATH.write_text(with_tiles(found, architecture, PATH), encoding="utf-8")
        print(PATH)
    return int(any(result.why.startswith("failed") for result in found))


if __name__ == "__main__":
    sys.exit(main())
