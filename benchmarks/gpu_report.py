"""One report about one GPU: ceilings, every convolution, every layer, whole steps, beside PyTorch.

    python benchmarks/gpu_report.py               # writes benchmarks/results/<date>-<gpu>.md, .json
    python benchmarks/gpu_report.py --minutes 3   # fewer repeats, then fewer cases
    python benchmarks/gpu_report.py --autotune    # instead of it: writes .../fast/conv/tiles.json
    python benchmarks/gpu_report.py --rehearse    # the same code without a GPU, on tiny shapes

Needs an NVIDIA GPU, CuPy and numba-cuda; PyTorch (CUDA build) is compared with where it is
installed. Without a GPU: one line, and exit status 2.

Data are random, other ones in each run; the seed is printed, and `--seed` repeats it. Results are
checked before they are timed (`gpu_convs.py`, `gpu_layers.py`, `gpu_agreement.py`). Cases run in a
fixed order, each several times; medians are shown with the fastest and the slowest. Times of the
GPU are taken between CUDA events. --autotune is explained in `gpu_tune.py`.
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
REHEARSE = "--rehearse"
if __name__ == "__main__":
    os.environ["CUPY_TF32"] = "0"  # it would make CuPy's float32 products something else
    if REHEARSE in sys.argv[1:]:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np  # noqa: E402
from gpu_agreement import agreement_cases  # noqa: E402
from gpu_bench import Bench, ceiling_cases  # noqa: E402
from gpu_convs import conv_cases  # noqa: E402
from gpu_layers import layer_cases  # noqa: E402
from gpu_runner import Budget, Case, GpuClock, HostClock, Result, run_cases  # noqa: E402
from gpu_steps import COMPILED, step_cases, torch_step_cases  # noqa: E402
from gpu_tables import markdown  # noqa: E402
from gpu_tune import architecture_of, tile_cases, tuned_table, with_tiles  # noqa: E402
from machine import machine  # noqa: E402

from layers import Device, DeviceError  # noqa: E402
from layers.fast.conv.tile_table import PATH  # noqa: E402
from layers.fast.precision import settle  # noqa: E402
from tinyconv import alexnet  # noqa: E402
from tinyconv.data import random_arrays  # noqa: E402
from tinyconv.tools.gradient_cases import small_net  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BATCHES = 128, 1024
PACKAGES = "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "numpy", "torch"


drawn_once = functools.cache(random_arrays.normal)


def full_net() -> Any:
    """The paper's sizes, with the recipe that PyTorch has a twin for.

    Its 61 million weights are drawn for the first net and copied for the others: drawing them takes
    longer than most cases.
    """
    with mock.patch.object(importlib.import_module("tinyconv.initialize"), "normal", drawn_once):
        return alexnet(num_classes=1000, width=1.0, image_size=224, recipe="robust")


def tiny_net() -> Any:
    """Every kind of layer, in sizes that the simulator finishes."""
    net = small_net(np.random.default_rng(0))
    return net.to("cpu", np.float32)


def pytorch(device: Device) -> Any:
    """The module, if it is there and computes where `device` does; else None."""
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
        batch = 3 if device.is_cuda else 16
        return Bench(device, tiny_net, batch, 1000, 16, torch, rng)
    return Bench(device, full_net, BATCHES[0], 2**28, 8192, torch, rng)


def run_all(
    bench: Bench, clock: Any, budget: Budget, batches: tuple[int, ...], say: Any
) -> list[Result]:
    """Every section, each with its share of the time; what one does not need the next ones have."""
    sections = [
        (1, lambda: ceiling_cases(bench)),
        (10, lambda: agreement_cases(bench, bench.batch)),  # here most kernels are compiled
        (4, lambda: step_cases(bench, batches)),
        (3, lambda: torch_step_cases(bench, batches) if bench.torch else ()),
        (8, lambda: conv_cases(bench)),
        (4, lambda: layer_cases(bench)),
        (4, lambda: torch_step_cases(bench, batches, COMPILED) if bench.torch else ()),
    ]
    results: list[Result] = []
    for place, (weight, cases) in enumerate(sections):
        part = budget.part(weight / sum(later for later, _ in sections[place:]))
        results += run_cases(list(cases()), clock, part, say)
        clock.free()
    return results


def autotune(cases: Iterable[Case], clock: Any, budget: Budget, device: Device) -> int:
    """Times tiles, and writes the faster ones into tiles.json, but not in a rehearsal."""
    results = list(run_cases(list(cases), clock, budget, say))
    print(tuned_table(results))
    if device.is_cuda and not device.is_simulated:
        text = with_tiles(results, architecture_of(device), PATH)
        PATH.write_text(text, encoding="utf-8")
        print(f"{PATH} written", file=sys.stderr)
    return failed(results)


def failed(results: list[Result]) -> int:
    """The exit status: 1 if some case failed, else 0."""
    return int(any(result.why.startswith("failed") for result in results))


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
    if bench.device.is_cuda and not bench.device.is_simulated:
        runtime = bench.device.xp.cuda.runtime
        properties = runtime.getDeviceProperties(int(bench.device.name[5:]))
        facts |= {
            "multiprocessors": properties["multiProcessorCount"],
            "compute capability": f"{properties['major']}.{properties['minor']}",
            "memory GiB": round(properties["totalGlobalMem"] / 2**30, 1),
            "CUDA driver": runtime.driverGetVersion(),
            "CUDA runtime": runtime.runtimeGetVersion(),
        }
    return facts


def write(folder: Path, facts: dict[str, Any], results: list[Result]) -> list[Path]:
    """The report as Markdown and as JSON; their paths."""
    gpu = facts["device"].partition(", ")[2] or facts["device"]
    name = f"{facts['date']}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    text, numbers = folder / f"{name}.md", folder / f"{name}.json"
    text.write_text(markdown(facts, results), encoding="utf-8")
    rows = [result.as_dict() for result in results]
    content = json.dumps({"facts": facts, "results": rows}, indent=1)
    numbers.write_text(content + "\n", encoding="utf-8")
    return [text, numbers]


def say(result: Result) -> None:
    """One line for each case, on standard error."""
    took = result.why or f"{1e3 * result.median:,.3f} ms, {len(result.seconds)} times"
    if not result.why and not result.seconds:
        took = "agrees"
    print(f"{result.section}: {result.what}, {result.who}: {took}", file=sys.stderr, flush=True)


def rehearse(options: argparse.Namespace) -> int:
    """Everything but the GPU: tiny shapes, each case timed once, printed and not written."""
    device = Device(options.device)
    bench, clock = bench_on(device, tiny=True, seed=options.seed), HostClock()
    budget = Budget(math.inf)
    if options.autotune:
        if not device.is_cuda:
            raise DeviceError(f"{device}: tiles are for a GPU, or the simulated cuda:0")
        return autotune(tile_cases(bench, (2,), rounds=1), clock, budget, device)
    facts = description(bench, clock, options.seed, rehearsal=True)
    results = run_all(bench, clock, budget, (2, 3), say)
    print(markdown(facts, results))
    return failed(results)


def main(arguments: list[str] | None = None) -> int:
    """0: the report is written; 1: some case failed; 2: no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all, on a GPU (default 8)")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seed", type=int, help="of the data (default: another each time)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the report")
    parser.add_argument(REHEARSE, action="store_true", help="without a GPU: tiny, nothing written")
    parser.add_argument(
        "--autotune", action="store_true", help="time tiles, and write layers/fast/conv/tiles.json"
    )
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    try:
        if options.rehearse:
            return rehearse(options)
        device = Device(options.device)
        if not device.is_cuda or device.is_simulated:
            raise DeviceError(f"{device}: only a GPU has a report; --rehearse runs without one")
        if options.autotune:
            settle("tf32", device)  # there are tiles to choose from where there is TF32
    except (DeviceError, ValueError) as error:
        print(f"gpu_report.py: error: {error}", file=sys.stderr)
        return 2
    bench, budget = bench_on(device, tiny=False, seed=options.seed), Budget(options.minutes)
    clock = GpuClock(device.xp)
    if options.autotune:
        return autotune(tile_cases(bench, BATCHES), clock, budget, device)
    facts = description(bench, clock, options.seed, rehearsal=False)
    results = run_all(bench, clock, budget, BATCHES, say)
    for path in write(options.out, facts, results):
        with contextlib.suppress(ValueError):
            path = path.relative_to(Path.cwd())
        print(path)
    return failed(results)


if __name__ == "__main__":
    sys.exit(main())
