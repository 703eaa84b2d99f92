"""`python -m tinyconv traffic NAME`: a table of what each kernel of a layer asks of memory."""

import argparse
import json
import math

from layers import simulator
from tinyconv.lab.runs import runs
from tinyconv.lab.subjects import SHAPES, checked_shape
from tinyconv.lab.traffic import measure

LARGEST = {"conv": 5_000, "tensor_tf32": 20_000, "tensor_bf16": 20_000}
LARGEST_OTHER = 100_000
"""Elements of an input: each access is recorded, which takes some hundred bytes."""


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument("name", metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument(
        "--shape", help="of the input, such as 2,13,13,96 for (N, H, W, C); a small one if missing"
    )
    parser.add_argument("--json", action="store_true", help="a list with all numbers, as JSON")


def main(options: argparse.Namespace) -> int:
    """Print the traffic of each kernel of a layer, its first settings; ValueError for wrong usage.

    Kernels run in the simulator: RuntimeError if that is off.
    """
    shape = checked_shape(options.name, options.shape) or SHAPES[options.name][0]
    largest = LARGEST.get(options.name, LARGEST_OTHER)
    if math.prod(shape) > largest:
        raise ValueError(
            f"--shape {options.shape} has {math.prod(shape):,} elements: each access is recorded, "
            f"so {options.name} takes {largest:,} at most"
        )
    title, run = next(iter(runs(options.name, shape).items()))
    try:
        with simulator.record() as traces:
            run()
    except IndexError as error:
        raise ValueError(f"{options.name} has no use for an input of {shape}: {error}") from error
    measured = [measure(trace) for trace in traces]
    if options.json:
        print(json.dumps([traffic.as_dict() for traffic in measured], indent=2))
        return 0
    print(f"{title}, input {shape}")
    for traffic in measured:
        print(f"\n{traffic}")
    return 0
