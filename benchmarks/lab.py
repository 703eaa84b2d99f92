"""The cost of checking a kernel: a launch in the simulator, plain, recorded, and checked.

    python benchmarks/lab.py [--repeats 5]

Prints a Markdown table: the median time of a plain launch, and how many times longer it takes
when recorded, and when recorded and checked for everything but other orders (each of which costs
one more plain launch). The three alternate, so that a slow moment of the machine affects all.
"""

import argparse
import os
from statistics import median

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np
from machine import machine
from measuring import seconds, table
from numba import cuda, float32
from simulator import cases

from layers import simulator
from tinyconv.lab.cases import launches as case_launches
from tinyconv.lab.checks import check_kernel

SHAPES = {
    "conv": (2, 13, 13, 8),
    "max_pool": (2, 13, 13, 32),
    "lrn": (2, 13, 13, 32),
    "softmax": (64, 100),
}


@cuda.jit
def local_sums(x, y):
    products = cuda.local.array(4, float32)
    i = cuda.grid(1)
    for j in range(4):
        products[j] = x[i] * j
    total = float32(0)
    for j in range(4):
        total += products[j]
    y[i] = total


def launches():
    """(title, kernel, grid, block, arguments, outputs) of each row."""
    for title, kernel, grid, block, args in cases():
        names = kernel.py_func.__code__.co_varnames
        yield title, kernel, grid, block, args, (names[len(args) - 1],)
    x, y = np.ones((2, 8192), np.float32)
    yield "a local array in each of 8192 threads", local_sums, 32, 256, (x, y), ("y",)
    for name, shape in SHAPES.items():
        seen = set()
        for each in case_launches(name, shape):
            if each.name not in seen:  # of one layer's settings
                seen.add(each.name)
                kernel, outputs = each.case.kernel, each.case.outputs
                title = f"{each.name}, {each.title}"
                yield title, kernel, each.grid, each.block, each.args, outputs


def measure(kernel, grid, block, args, outputs, repeats) -> tuple[int, list[list[float]]]:
    """Accesses; and of plain, recorded and checked launches the seconds of each repeat."""
    accesses = 0

    def plain():
        kernel[grid, block](*args)

    def recorded():
        with simulator.record():
            plain()

    def checked():
        nonlocal accesses
        # A stencil leaves the edges of its output as they are; softmax fills its own in two steps.
        excuse = dict.fromkeys(outputs, "as it should be")
        report = check_kernel(
            kernel, grid, block, args, outputs, rewritten=excuse, partial=excuse, orders=0
        )
        assert report.ok, str(report)
        accesses = report.accesses

    times = [[seconds(run) for run in (plain, recorded, checked)] for _ in range(repeats)]
    return accesses, [list(column) for column in zip(*times, strict=True)]


def main() -> None:
    """Measure each case, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    simulator.install()
    rows, worst = [], 0.0
    for title, *launch in launches():
        accesses, times = measure(*launch, options.repeats)
        plain, recorded, checked = map(median, times)
        worst = max(worst, checked / plain)
        times = f"{1000 * plain:.1f} ms", f"{recorded / plain:.1f} ×", f"{checked / plain:.1f} ×"
        rows.append([title, f"{accesses:,}", *times])
    print(table(["kernel", "accesses", "plain", "recorded", "checked"], rows))
    print(f"\nAt most {worst:.1f} times a plain launch. Medians of {options.repeats} runs.")
    print(f"{machine('numba-cuda', 'greenlet', 'numpy')}.")


if __name__ == "__main__":
    main()
