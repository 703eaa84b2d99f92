"""Step through a CUDA kernel with pdb: one thread of local response normalization, no GPU needed.

    python examples/step_through_lrn.py
    python examples/step_through_lrn.py --thread 6

The input is the worked example of docs/lrn.md and a second pixel. The kernel is
`lrn_forward_kernel` in layers/lrn.py; only its threads are simulated. For any other kernel, also
one of your own: `python -m tinyconv step --help`.
"""

import os

# Numba reads this when it is first imported, so it is set before the layers, which import numba. In
# a shell: NUMBA_ENABLE_CUDASIM=1 python ...
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import argparse
import bdb
import sys

import numpy as np

from layers import LocalResponseNorm, simulator
from layers.device import SIMULATOR, THREADS
from layers.lrn import lrn_forward_kernel
from tinyconv.lab.stepping import call_with_breakpoint

X = np.array([[[[1, 2, 1, 3], [2, 1, 1, 0]]]], np.float32)  # (N, H, W, C) = (1, 1, 2, 4)

WHAT_TO_TYPE = """\
Type at the prompt, and press Enter after each:

    n                     run this line and show the next
    p i                   print a variable; after their lines have run, also p row, p total, p low
    p x[row, i]           or any expression
    p cuda.threadIdx      the index of this thread in its block
    ll                    show the whole kernel, with an arrow at this line
    c                     continue to the end
    q                     quit
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--thread",
        type=int,
        default=1,
        help=f"the thread to stop in, 0 to {THREADS - 1} (default 1); threads from {X.size} on own "
        "no element",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.thread < THREADS:
        parser.error(f"--thread {options.thread}: the block has threads 0 to {THREADS - 1}")
    return options


def introduce(layer: LocalResponseNorm, thread: int) -> None:
    print(
        f"LRN of {X.shape[2]} pixels with {X.shape[3]} channels each; size {layer.size}, "
        f"k {layer.k:g}, α {layer.alpha:g}, β {layer.beta:g}."
    )
    for row, values in enumerate(X.reshape(-1, X.shape[-1])):
        print(f"    row {row}: ", *(f"{value:g}" for value in values))
    print(f"The launch is one block of {THREADS} threads for {X.size} elements.")
    if thread < X.size:
        row, channel = divmod(thread, X.shape[-1])
        print(f"pdb will stop in thread {thread}, the owner of row {row}, channel {channel}.\n")
    else:
        print(f"pdb will stop in thread {thread}, which owns no element and returns.\n")
    print(WHAT_TO_TYPE)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not simulator.installed:
        print(f"step_through_lrn.py: error: cannot step through {SIMULATOR}", file=sys.stderr)
        return 2
    layer = LocalResponseNorm(size=3, k=2.0, alpha=0.5, beta=0.75)
    introduce(layer, options.thread)

    layer.to("cuda:0")
    condition = f"cuda.grid(1) == {options.thread}"
    try:
        y = call_with_breakpoint(lrn_forward_kernel, condition, layer.forward, X)
    except bdb.BdbQuit:
        print("stopped; the kernel has not finished")
        return 0

    host = LocalResponseNorm(size=3, k=2.0, alpha=0.5, beta=0.75).forward(X)
    print("\nAll threads have run.     kernel     host loop  difference")
    for (_, _, row, i), value in np.ndenumerate(y):
        other = host[0, 0, row, i]
        print(f"    y[{row}, {i}]             {value:.6f}   {other:.6f}   {value - other:.0e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
