"""The simulator of `layers/simulator/` beside Numba's own, on the same kernels.

    python benchmarks/simulator.py [--repeats 3]

Prints a Markdown table: the median time of a launch under each, and how many times faster ours
is. A process can use only one simulator, so each runs in a process of its own, alternately; their
results must be equal before any time is printed. A second table has what only ours can run:
emulated intrinsics of a warp, and asynchronous copies, plain and recorded.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np
from machine import machine
from numba import cuda, float32

ROOT = Path(__file__).resolve().parents[1]
N = 32768  # threads of a plain kernel
SIZE = 64  # of the matrices
TILE = 16  # a block is TILE by TILE threads
WARPS, COUNT = 8, 50  # of the kernels with emulated intrinsics


@cuda.jit
def stencil(x, y):
    i = cuda.grid(1)
    if 0 < i < x.shape[0] - 1:
        y[i] = x[i - 1] + x[i] + x[i + 1]


@cuda.jit(device=True, inline="always")
def sum_of_three(a, b, c):
    return a + b + c


@cuda.jit
def stencil_by_device_function(x, y):
    i = cuda.grid(1)
    if 0 < i < x.shape[0] - 1:
        y[i] = sum_of_three(x[i - 1], x[i], x[i + 1])


@cuda.jit
def tiled_product(a, b, c):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    column, row = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0)
    for k in range(0, a.shape[1], TILE):
        a_tile[ty, tx] = a[row, k + tx]
        b_tile[ty, tx] = b[k + ty, column]
        cuda.syncthreads()
        for j in range(TILE):
            total += a_tile[ty, j] * b_tile[j, tx]
        cuda.syncthreads()
    c[row, column] = total


def cases():
    """(title, kernel, blocks, threads, arguments); the last argument is the result."""
    random = np.random.default_rng(0)
    x = random.random(N, np.float32)
    y = np.zeros_like(x)
    a, b = random.random((2, SIZE, SIZE), np.float32)
    tiles = SIZE // TILE, SIZE // TILE
    return [
        (f"three-point stencil, {N} threads", stencil, N // 256, 256, (x, y)),
        ("the same by a device function", stencil_by_device_function, N // 256, 256, (x, y)),
        (
            f"shared-memory product, {SIZE}³ multiply-adds, blocks of {TILE}×{TILE}",
            tiled_product,
            tiles,
            (TILE, TILE),
            (a, b, np.zeros_like(a)),
        ),
    ]


def measure() -> None:
    """Run every case once in this process; print names, seconds and results as JSON."""
    answers = []
    for name, kernel, blocks, threads, args in cases():
        start = time.perf_counter()
        kernel[blocks, threads](*args)
        seconds = time.perf_counter() - start
        answers.append((name, seconds, args[-1].tobytes().hex()))
    print(json.dumps(answers))


def run(simulator: str) -> list:
    """The answers of `measure` in a new process under "ours" or "stock"."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, __file__, "--measure", simulator],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def instruction_cases() -> dict:
    """By name, kernels that execute an intrinsic COUNT times in each of WARPS warps."""
    from numba import uint32

    from layers.fast.conv.mma import cvt_rna_tf32, ldmatrix_x4, mma_bf16, mma_tf32
    from layers.fast.conv.ptx import cp_async, cp_async_commit_group, cp_async_wait_group

    def product(mma):
        @cuda.jit
        def kernel(x):
            words = cuda.local.array(4, uint32)
            sums = cuda.local.array(4, float32)
            for i in range(4):
                words[i] = 0
                sums[i] = 0
            for _ in range(COUNT):
                mma(words, 0, words, 0, sums, 0)

        return kernel

    @cuda.jit
    def load(x):
        tiles = cuda.shared.array(32 * WARPS * 4, uint32)
        words = cuda.local.array(4, uint32)
        for i in range(4):
            tiles[4 * cuda.threadIdx.x + i] = 0
        for _ in range(COUNT):
            ldmatrix_x4(words, 0, tiles, 4 * cuda.threadIdx.x)

    @cuda.jit
    def around(x):
        words = cuda.local.array(1, uint32)
        words[0] = 0
        for _ in range(COUNT):
            cvt_rna_tf32(words, 0)

    @cuda.jit
    def copy(x):
        tiles = cuda.shared.array(32 * WARPS * 4, uint32)
        for _ in range(COUNT):
            cp_async(tiles, 4 * cuda.threadIdx.x, x, 4 * cuda.threadIdx.x, True)
            cp_async_commit_group()
            cp_async_wait_group(0)

    return {
        "`mma_tf32`": product(mma_tf32),
        "`mma_bf16`": product(mma_bf16),
        "`ldmatrix_x4`": load,
        "`cvt_rna_tf32`": around,
        "`cp_async`, with its wait": copy,
    }


def print_instructions(repeats: int) -> None:
    """The second table."""
    from layers import simulator

    simulator.install()
    if not simulator.installed:
        sys.exit(simulator.install())
    x = np.zeros(32 * WARPS * 4, np.float32)

    def milliseconds(kernel, recorded: bool) -> float:
        with simulator.record() if recorded else nullcontext():
            start = time.perf_counter()
            kernel[1, 32 * WARPS](x)
            return (time.perf_counter() - start) * 1000 / (WARPS * COUNT)

    print("\n| one intrinsic, one warp | plain | recorded |\n|---|---:|---:|")
    for name, kernel in instruction_cases().items():
        plain, recorded = (
            median(milliseconds(kernel, recorded) for _ in range(repeats))
            for recorded in (False, True)
        )
        print(f"| {name} | {plain:.3f} ms | {recorded:.3f} ms |")


def main() -> None:
    """Measure both, compare their results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["ours", "stock"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.measure == "ours":
            from layers import simulator

            simulator.install()
            if not simulator.installed:
                sys.exit(simulator.install())
        return measure()

    runs = [(run("stock"), run("ours")) for _ in range(options.repeats)]
    first = runs[0][0]
    for answers in (answers for pair in runs for answers in pair):
        for (name, _, wanted), (_, _, result) in zip(first, answers, strict=True):
            if result != wanted:
                sys.exit(f"{name}: the results differ")

    print("| kernel | Numba's simulator | ours | times faster |\n|---|---:|---:|---:|")
    for i, (name, _, _) in enumerate(first):
        stock, ours = (median(pair[side][i][1] for pair in runs) for side in (0, 1))
        print(f"| {name} | {stock:.2f} s | {ours:.3f} s | {stock / ours:.0f} |")
    print_instructions(options.repeats)
    print(f"\nMedians of {options.repeats} runs. {machine('numba-cuda', 'greenlet', 'numpy')}.")


if __name__ == "__main__":
    main()
