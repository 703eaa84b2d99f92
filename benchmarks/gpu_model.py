"""The time of a training step on a GPU, predicted launch by launch without one.

    python benchmarks/gpu_model.py [--batch 128] [--precision tf32] [--machine H200]
    python benchmarks/gpu_model.py --totals     # a column for each machine and precision

A step of AlexNet (crop, forward, loss, backward, update) is run on a device without memory, which
takes down every launch: kernel, grid, types and shapes. Each kernel is compiled as a launch on that
GPU compiles it, and the hot path of its machine code is counted (`hot_path.py`). A launch takes

    GAP + max(bytes, issue, latency)

    bytes      every argument array once, at the bandwidth that a copy reaches
    issue      instructions of the warps on the busiest multiprocessor, at IPC a clock
    latency    rounds of loads that wait for each other, LATENCY each, for all waves of blocks

A product on tensor cores takes its k-tiles, those of padding among them, one after the other on
each multiprocessor. A k-tile has five limits: mma, issue, L2, shared memory, and occupancy: what a
warp does alone, one thing after the other, which only other warps hide. As they overlap in part,
the sum of their sixth powers is that of its time: this exponent gives the rates of a review within
a tenth. What the L1 cache saves of L2 is counted by replaying its lines. Half of the loss by the
last wave is counted, as blocks end at different times.

The model knows no caches but these, no clocks that fall with the temperature, and no host. It is
there to tell which launch costs most, and what a change takes away; ±35 % for a single launch.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
import sass  # noqa: E402
from gpu_launches import Launch, launches_of  # noqa: E402
from hot_path import Path as HotPath  # noqa: E402
from hot_path import hot_path  # noqa: E402
from l1_replay import Multiprocessor, columns_of, l2_share  # noqa: E402
from measuring import table  # noqa: E402

# --- constants

COPIED = 0.81
"""Of the published bandwidth, what a copy reaches: 3.9 of an H200's 4.8 TB/s (the review of commit
ecb12d7; Hopper microbenchmarks give 0.80 to 0.84)."""

GAP = 2e-6
"""Seconds from one kernel of a graph to the next, of launch and drain (same review: 1.5 to 2.5)."""

LATENCY, LATENCY_L2 = 650e-9, 450e-9
"""Seconds that a load waits for memory, and for the L2 cache where all arrays fit into it
(same review; of a loaded machine)."""

LIBRARY = 0.45
"""Of the tensor cores' peak, what cuBLAS reaches for AlexNet's fully connected layers: few rows, so
that the last wave is often half empty. Fits the review's 225 µs and 890 µs."""

EXPONENT = 6

L1_MARGIN = 28 * 1024
"""Bytes of what shared memory leaves of the L1 cache that other loads and the driver take."""

WAIT = 100
"""Clocks of a k-tile in which a warp waits: a barrier, and two rounds of loads from shared memory
of 33 each (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
Microbenchmarking", 2024; as many on Ada)."""


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU, each with its source."""

    architecture: tuple[int, int]
    multiprocessors: int
    clock: float
    """Hz, under load."""
    bandwidth: float
    """Bytes a second, published."""
    ipc: float
    """Warp instructions a clock and multiprocessor, of code that is mostly integer arithmetic."""
    peak: dict[str, float]
    """Floating-point operations a second by precision, published, dense."""
    mma: float
    """Of them, what mma.sync reaches."""
    l2: float
    """Bytes a second from the L2 cache."""
    l2_bytes: float
    l1_bytes: int
    """Of a multiprocessor, shared memory and L1 cache together."""
    carveouts: tuple[int, ...]
    """What of them can be shared memory, in KB (CUDA C++ Programming Guide)."""


MACHINES = {
    # NVIDIA's data sheet (H200 SXM); 2.8 of 4 IPC, mma.sync at 0.6 of wgmma's peak and 5.5 TB/s
    # from L2: the review, after published microbenchmarks. 1.75 GHz of 1.98 under load.
    "H200": Machine(
        *((9, 0), 132, 1.75e9, 4.8e12, 2.8),
        {"fp32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12},
        *(0.6, 5.5e12, 50e6, 256 * 1024, (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)),
    ),
    # NVIDIA's Ada white paper; mma.sync is what its peak is given for; L2 as measured by Chips and
    # Cheese ("Microbenchmarking Nvidia's RTX 4090", 2022).
    "RTX 4090": Machine(
        *((8, 9), 128, 2.52e9, 1.008e12, 2.8),
        {"fp32": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12},
        *(0.9, 5e12, 72e6, 128 * 1024, (0, 8, 16, 32, 64, 100)),
    ),
    # NVIDIA's RTX Blackwell white paper; the rest as on an RTX 4090, whose tensor cores and caches
    # are of the same size for each multiprocessor; L2 by the clock.
    "RTX 5090": Machine(
        *((12, 0), 170, 2.41e9, 1.792e12, 2.8),
        {"fp32": 104.8e12, "tf32": 104.8e12, "bf16": 209.5e12},
        *(0.9, 6.3e12, 96e6, 128 * 1024, (0, 8, 16, 32, 64, 100)),
    ),
    # NVIDIA's Turing white paper; two instructions of float32 a clock, hence 1.8; 1.35 GHz of 1.59
    # within 70 W; L2 as measured by Jia et al. ("Dissecting the NVidia Turing T4 GPU", 2019).
    "T4": Machine(
        *((7, 5), 40, 1.35e9, 320e9, 1.8),
        {"fp32": 8.1e12},
        *(0.9, 1.27e12, 4e6, 96 * 1024, (32, 64)),
    ),
}

CASES = (
    ("H200", "tf32", 128),
    ("H200", "bf16", 1024),
    ("RTX 4090", "tf32", 128),
    ("RTX 4090", "bf16", 128),
    ("RTX 5090", "tf32", 128),
    ("T4", "fp32", 128),
)
"""What `--totals` prints: machine, precision, batch."""

# --- how often the loops of a kernel run


def by_four(count: float) -> tuple[float, float]:
    """Rounds of the loops that the compiler makes of one: the remainder, and four at a time."""
    return count % 4, count // 4


def two_rows(sizes: tuple[Any, ...]) -> float:
    """Rounds of a first pass, of two rows for each thread of a column."""
    from layers.fast.reductions import BLOCK, COLUMNS

    _, columns, rows_of_part = (size for size in sizes if type(size) is int)
    across = min(-(-columns // COLUMNS), BLOCK // 4)
    return rows_of_part / (BLOCK // across) / 2


TRIPS: dict[str, Callable[[tuple[Any, ...]], list[float]]] = {
    "max_pool_vectorized_forward": lambda sizes: [sizes[7]],
    "max_pool_vectorized_backward": lambda sizes: [sizes[7], 0, 0],
    "masked_gradient": lambda sizes: [two_rows(sizes), 1, 1],
    "sum_rows": lambda sizes: [*by_four(two_rows(sizes)), 1, 1],
    "sum_parts": lambda sizes: [*by_four(sizes[2] - 1), 0, 0],
    "sum_many_parts": lambda sizes: [*by_four(sizes[0][0] / 32)],
    "image_to_s2d": lambda sizes: [sizes[6] // max(1, 128 // (sizes[7] // 4))],
    "softmax_rows": lambda sizes: [*by_four(sizes[0][1] / 128)] * 3,
    "totals": lambda sizes: [*by_four(sizes[0][0] / 128)],
    "conv_bias_gradient": lambda sizes: [*by_four(sizes[0][0] / 128)],
    "tiled_forward_vectorized": lambda sizes: [1, depth(sizes) / 8, 1],
    "tiled_forward_scalar": lambda sizes: [1, depth(sizes) / 8, 1],
    "tiled_filter_vectorized": lambda sizes: [sizes[13] / 8, 1],
    "tiled_filter_scalar": lambda sizes: [sizes[13] / 8, 1],
}
"""By kernel, from the shapes and numbers of a launch: rounds of its loops, as `hot_path` takes
them. Kernels that are missing have no loops, or only loops of one round."""


def depth(sizes: tuple[Any, ...]) -> float:
    """K of a forward convolution."""
    channels, size, groups = sizes[6], sizes[10], sizes[13]
    return size * size * channels / groups


# --- times


@dataclass(frozen=True)
class Counted:
    """A kernel as compiled for a launch."""

    listing: str
    registers: int
    shared: int


@cache
def compiled(kernel: Any, types: tuple[Any, ...], architecture: tuple[int, int]) -> Counted:
    """The machine code of a launch."""
    from compile_kernels import ptx_of

    kernel = SimpleNamespace(py_func=kernel)
    used, listing = sass.assemble(ptx_of(kernel, types, architecture), architecture)
    return Counted(listing, used["registers"], used["shared"])


@dataclass(frozen=True)
class Prediction:
    """The time of a launch, and what it consists of."""

    launch: Launch
    seconds: float
    bound: str
    """Of the limits, the largest: "bytes", "issue", "latency"; "mma", "L2", "shared", "warps"."""
    waves: float
    instructions: float
    """Of a thread, or of a k-tile for tensor cores."""


def predict(launch: Launch, machine: Machine, precision: str) -> Prediction:
    """The time of one launch."""
    if launch.kernel is None:
        return predict_product(launch, machine, precision)
    found, at_once, waves = residency(launch, machine)
    if launch.name.startswith("tensor_"):
        return predict_tensor(launch, found, machine, precision, at_once, waves)
    trips = TRIPS.get(launch.name, lambda sizes: [])(launch.sizes)
    path = hot_path(found.listing, trips)
    times = {
        "bytes": bytes_of(launch) / (COPIED * machine.bandwidth),
        "issue": issue(launch, path, machine),
        "latency": latency(launch, path, machine) * max(1, waves),
    }
    bound = max(times, key=lambda name: times[name])
    return Prediction(launch, GAP + times[bound], bound, waves, path.instructions)


def residency(launch: Launch, machine: Machine) -> tuple[Counted, int, float]:
    """A launch as compiled, its blocks of a multiprocessor at a time, and its waves of blocks."""
    found = compiled(launch.kernel, launch.types, machine.architecture)
    at_once, _ = sass.occupancy(machine.architecture, launch.threads, found.registers, found.shared)
    return found, at_once, launch.blocks / (machine.multiprocessors * max(1, at_once))


def bytes_of(launch: Launch) -> float:
    """Bytes that a launch moves: each array once, but those that SGD reads and writes."""
    again = 2 * launch.sizes[0][0] * 4 if launch.name == "sgd" else 0
    return launch.moved + again


def issue(launch: Launch, path: HotPath, machine: Machine) -> float:
    """Seconds in which the busiest multiprocessor issues its warps' instructions."""
    blocks = math.ceil(launch.blocks / machine.multiprocessors)
    if launch.blocks > 20 * machine.multiprocessors:
        blocks = launch.blocks / machine.multiprocessors
    warps = math.ceil(launch.threads / 32)
    return blocks * warps * path.instructions / (machine.ipc * machine.clock)


def latency(launch: Launch, path: HotPath, machine: Machine) -> float:
    """Seconds in which a thread waits for its loads, one round after the other."""
    in_loops = sum(loop.trips for loop in path.loops if loop.moved)
    of_loops = sum(loop.trips * loop.moved for loop in path.loops)
    rounds = in_loops + (1 if path.moved > of_loops else 0)
    return rounds * (LATENCY_L2 if launch.moved < machine.l2_bytes else LATENCY)


def predict_product(launch: Launch, machine: Machine, precision: str) -> Prediction:
    """A product of the library."""
    m, n, k = launch.sizes
    times = {
        "bytes": launch.moved / (COPIED * machine.bandwidth),
        "mma": 2 * m * n * k / (LIBRARY * machine.peak[precision]),
    }
    bound = max(times, key=lambda name: times[name])
    return Prediction(launch, GAP + times[bound], bound, 0, 0)


def predict_tensor(
    launch: Launch, found: Counted, machine: Machine, precision: str, at_once: int, waves: float
) -> Prediction:
    """A convolution on tensor cores, k-tile by k-tile."""
    counts = [x.instructions for x in hot_path(found.listing).loops if "HMMA" in x.work]
    whole = sass.main_loop(found.listing)  # where the hot path leaves the loop out, as on sm_80
    instructions = max(counts) if counts else whole.instructions if whole else 0
    limits, k_tiles = k_tile_limits(launch, instructions, machine, precision, at_once)
    needed = at_once * (found.shared + 1024)
    left = machine.l1_bytes - 1024 * min(k for k in machine.carveouts if 1024 * k >= needed)
    if left > L1_MARGIN:
        here = Multiprocessor(machine.multiprocessors, at_once, (left - L1_MARGIN) // 128)
        limits["L2"] *= l2_share(launch, here, BK[precision])
    clocks = sum(value**EXPONENT for value in limits.values()) ** (1 / EXPONENT)
    full = launch.blocks * (k_tiles + 3) * clocks / machine.multiprocessors / machine.clock
    tail = (1 + math.ceil(waves) / waves) / 2 if waves > 1 else 1 / waves
    bound = max(limits, key=lambda name: limits[name])
    return Prediction(launch, GAP + full * tail, bound, waves, instructions)


BK = {"tf32": 16, "bf16": 32}
"""Terms of a k-tile."""


def k_tile_limits(
    launch: Launch, instructions: int, machine: Machine, precision: str, at_once: int
) -> tuple[dict[str, float], float]:
    """Clocks of a multiprocessor for a block's k-tile, by what limits it; and how many it has."""
    bk = BK[precision]
    warps = launch.threads // 32
    bm, bn = 128, columns_of(launch)
    if "filter" in launch.name:
        k_tiles = launch.sizes[14] / bk
    else:
        channels, size, groups = launch.sizes[7], launch.sizes[11], launch.sizes[14]
        k_tiles = math.ceil(size * size * channels // groups / bk)
    per_clock = machine.multiprocessors * machine.clock
    loaded = (bm + bn) * 64
    mma = 2 * bm * bn * bk / (machine.mma * machine.peak[precision] / per_clock)
    columns = bm * bn // warps // 64  # a warp has 64 rows
    products = 2 * 64 // 16 * columns // 8  # HMMA of a warp: fragments of 16 × 8, two deep
    alone = mma * 4 / warps + instructions - products + WAIT
    return {
        "mma": mma,
        "issue": warps * instructions / machine.ipc,
        "L2": loaded / (machine.l2 / per_clock),
        "shared": (loaded + warps * (64 + columns) * 64) / 128,
        "warps": alone / max(1, at_once),
    }, k_tiles


# --- the tables


def step(machine: str, precision: str, batch: int, recipe: str) -> list[Prediction]:
    """The predicted launches of a step."""
    here = MACHINES[machine]
    launches = launches_of(here, precision, batch, recipe)
    return [predict(launch, here, precision) for launch in launches]


def launch_table(predictions: list[Prediction]) -> str:
    """A row for each launch."""
    rows = [
        [
            found.launch.title,
            found.launch.name,
            f"{found.launch.blocks:,}" if found.launch.kernel else "",
            f"{found.waves:.2f}" if found.launch.kernel else "",
            f"{found.instructions:,.0f}" if found.launch.kernel else "",
            f"{bytes_of(found.launch) / 1e6:,.1f}",
            found.bound,
            f"{found.seconds * 1e6:,.0f}",
        ]
        for found in predictions
    ]
    names = ["step", "kernel", "blocks", "waves", "instructions", "MB", "bound by", "µs"]
    return table(names, rows)


GROUPS = {
    "crop, space-to-depth": ("crop", "image_to", "image_from", "filters", "flipped"),
    "convolutions": ("tensor", "tiled"),
    "LRN": ("lrn",),
    "pooling": ("max_pool",),
    "cuBLAS": ("cuBLAS",),
    "sums of parts, bias gradients": ("sum_", "masked", "conv_bias"),
    "SGD": ("sgd",),
}


def groups(predictions: list[Prediction]) -> dict[str, float]:
    """Milliseconds by kind of kernel, and of the step."""
    sums = dict.fromkeys([*GROUPS, "others"], 0.0)
    for found in predictions:
        fits = (kind for kind, starts in GROUPS.items() if found.launch.name.startswith(starts))
        sums[next(fits, "others")] += 1e3 * found.seconds
    return {**sums, "step": sum(sums.values())}


def totals(recipe: str) -> str:
    """A column for each of CASES."""
    columns = [groups(step(*case, recipe)) for case in CASES]
    names = [f"{machine}, {precision}, {batch:,}" for machine, precision, batch in CASES]
    rows = [
        [kind, *(f"{column[kind]:.2f}" for column in columns)]
        for kind in [*GROUPS, "others", "step"]
    ]
    rates = (
        f"{1e3 * case[2] / col['step']:,.0f}" for case, col in zip(CASES, columns, strict=True)
    )
    return table(["ms", *names], [*rows, ["images/s", *rates]])


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 2: a tool is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machine", choices=list(MACHINES), default="H200")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="tf32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--recipe", default="robust")
    parser.add_argument("--totals", action="store_true")
    options = parser.parse_args(arguments)
    if missing := sass.missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 2
    if options.totals:
        print(totals(options.recipe))
        return 0
    if options.precision not in MACHINES[options.machine].peak:
        print(f"{options.machine} has no {options.precision}: use fp32", file=sys.stderr)
        return 2
    found = step(options.machine, options.precision, options.batch, options.recipe)
    print(launch_table(found))
    print()
    print(table(["kind", "ms"], [[k, f"{v:.2f}"] for k, v in groups(found).items()]))
    return 0


if __name__ == "__main__":
    os.environ.pop("NUMBA_ENABLE_CUDASIM", None)  # the simulator has no compiler
    sys.exit(main())
