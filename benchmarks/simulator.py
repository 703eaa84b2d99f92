"""The simulator of `layers/simulator/` beside Numba's own, on the same kernels.

    python benchmarks/simulator.py [--repeats 3]

Prints a Markdown table: the median time of a launch under each, and how many times faster ours
is. A process can use only one simulator, so each runs in a process of its own, alternately; their
results must be equal before any time is printed.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np
from machine import machine
from measuring import in_turns, seconds, table
from numba import cuda, float32

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
N = 32768  # threads of a plain kernel
SIZE = 64  # of the matrices
TILE = 16  # a block is TILE by TILE threads


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


def measure(ours: bool) -> list[tuple[float, bytes]]:
    """In a new process: seconds and result of every case."""
    if ours:
        from layers import simulator

        simulator.install()
        if not simulator.installed:
            sys.exit(simulator.install())
    answers = []
    for _, kernel, blocks, threads, args in cases():
        took = seconds(partial(kernel[blocks, threads], *args))
        answers.append((took, args[-1].tobytes()))
    return answers


def run(ours: bool) -> list[tuple[float, bytes]]:
    """The answers of `measure` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, ours).result()


def main() -> None:
    """Measure both, compare their results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    found = in_turns({"stock": partial(run, False), "ours": partial(run, True)}, repeats)
    rows = []
    for place, (name, *_) in enumerate(cases()):
        answers = {who: [answer[place] for answer in each] for who, each in found.items()}
        if len({result for each in answers.values() for _, result in each}) > 1:
            sys.exit(f"{name}: the results differ")
        stock, ours = (median(took for took, _ in each) for each in answers.values())
        rows.append([name, f"{stock:.2f} s", f"{ours:.3f} s", f"{stock / ours:.0f}"])
    print(table(["kernel", "Numba's simulator", "ours", "times faster"], rows))
    print(f"\nMedians of {repeats} runs. {machine('numba-cuda', 'greenlet', 'numpy')}.")


if __name__ == "__main__":
    main()
