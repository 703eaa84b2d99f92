"""What makes each stage of `gpu_day.py`, the facts at the report's head, and what is written."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import gpu_cases as timed
from gpu_bench import Bench
from gpu_checks import STEPS, Losses, check_cases, sanitizer_cases
from gpu_switches import switch_cases
from runner import Case, Result

from layers import Device
from layers.fast.conv.tile_table import PATH, TILES, read
from layers.fast.cublas import cublas_of
from layers.fast.precision import capability
from tinyconv.lab.cases import CASES

BATCHES = 128, 1024
SETTINGS = ("tf32", 128), ("bf16", 1024), ("fp32", 128)
"""Of the steps whose launches are timed, each by itself; the first two are predicted."""


def cases_of(stage: str, bench: Bench, options: Any) -> list[Case]:
    """All cases of a stage, in order."""
    tiny, batches, main_job = options.rehearse, BATCHES, ["--device", options.device]
    settings = SETTINGS
    if tiny:
        batches, settings = (2,), tuple((precision, 2) for precision, _ in SETTINGS)
        main_job = ["--device", "cpu", "--epochs", "1", "--width", "0.125", "--image-size", "64"]
    ways = {
        w: way for w, way in timed.WAYS.items() if not tiny or way not in ({}, {"graph": "one"})
    }
    steps = partial(timed.step_cases, bench)
    makers: dict[str, Callable[[], Iterable[Case]]] = {
        "a": lambda: timed.ceiling_cases(bench),
        "b": lambda: check_cases(bench, options.only == "hostile"),
        "c": lambda: Losses(bench, 2 if tiny else STEPS).cases(),
        "d": lambda: timed.training_cases(bench, main_job, 2 if tiny else 48),
        "e": lambda: chain(
            steps(batches, ways), timed.torch_step_cases(bench, batches, compiled=not tiny)
        ),
        "f": lambda: timed.conv_cases(bench),
        "g": lambda: chain(timed.launch_cases(bench, settings), timed.layer_cases(bench)),
        "h": lambda: (c._replace(section="columns") for c in steps(batches[:1], timed.COLUMNS)),
        "i": lambda: sanitizer_cases(bench, options),
        "j": lambda: timed.tile_cases(bench, batches, 1 if tiny else timed.ROUNDS),
        "k": lambda: switch_cases(bench, batches[0], *[("tf32",)] * tiny),
    }
    cases = list(makers[stage]())
    return cases[:2] if tiny and stage in "dh" else cases  # one precision or two will do


QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def facts(stage: str, bench: Bench, clock: Any) -> dict[str, Any]:
    """What stages "a" and "b" say of the machine and of the kernels, for the head of the report."""
    if stage == "b":
        cases = CASES.values()
        return {"kernels": [f"{case.name} {dtype}" for case in cases for dtype in case.dtypes]}
    if stage != "a":
        return {}
    found: dict[str, Any] = {"device": str(bench.device), "cache": clock.flushed}
    found["pytorch"] = bench.torch.__version__ if bench.torch else "not installed for this device"
    if program := shutil.which("nvidia-smi"):
        command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader"]
        found["nvidia-smi"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if bench.on_gpu:
        runtime = bench.device.xp.cuda.runtime
        properties = runtime.getDeviceProperties(bench.device.index)
        found |= {name: properties[name] for name in ("multiProcessorCount", "major", "minor")}
        found["memory GiB"] = round(properties["totalGlobalMem"] / 2**30, 1)
        found["CUDA driver"] = runtime.driverGetVersion()
        found["CUDA runtime"] = runtime.runtimeGetVersion()
        found["products"] = "cublas.py" if cublas_of(bench.device) else "CuPy"
    return {"facts": found}


def predictions(device: str) -> dict[str, dict[str, float]]:
    """By the `what` of a launch case, the predicted milliseconds of each kernel's launches.

    Of a GPU that the model does not know, nothing. RuntimeError if it lacks a tool.
    """
    import gpu_model

    known = [name for name in gpu_model.MACHINES if name in str(Device(device))]
    if not known:
        return {}
    if missing := gpu_model.sass.missing_tools():
        raise RuntimeError("; ".join(missing))
    found: dict[str, dict[str, float]] = {}
    for precision, batch in SETTINGS[:2]:
        times = found[f"{precision} {batch}"] = {}
        for each in gpu_model.step(known[0], precision, batch, "robust"):
            kernel = each.launch.kernel
            name = kernel.__name__ if kernel else "product"
            times[name] = times.get(name, 0.0) + 1e3 * each.seconds
    return found


# --- tiles


def write_tiles(results: list[Result], bench: Bench, path: Path = PATH) -> None:
    """layers/fast/conv/tiles.json, where the steps read it; other architectures' entries stay.

    For each product that was timed with all tiles the one with the best median of a round; of two
    that are equally fast the first one's name.
    """
    best: dict[str, dict[str, float]] = {}
    for result in results:
        if result.seconds:
            tiles = best.setdefault(result.what, {})
            tiles[result.who] = min(result.median, tiles.get(result.who, result.median))
    architecture, known = "sm_{}{}".format(*capability(bench.device)), read(path)
    known.setdefault(architecture, {}).update(
        {what: min(TILES, key=t.__getitem__) for what, t in best.items() if len(t) == len(TILES)}
    )
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
