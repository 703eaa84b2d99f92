"""`python -m tinyconv traffic NAME`: a table of what each kernel of a layer asks of memory."""

import argparse
import json
import math

from layers import simulator
from tinyconv.lab.cases import CASES, GROUPS, checked_shape
from tinyconv.lab.traffic import measure


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument("name", metavar="NAME", help=", ".join(GROUPS))
    parser.add_argument(
        "--shape", help="of the input, such as 2,13,13,96 for (N, H, W, C); a small one if missing"
    )
    parser.add_argument("--json", action="store_true", help="a list with all numbers, as JSON")


def main(options: argparse.Namespace) -> int:
    """Print the traffic of each kernel of a layer, its first settings; ValueError for wrong usage.

    Kernels run in the simulator: RuntimeError if that is off.
    """
    shape = checked_shape(options.name, options.shape)
    group = GROUPS[options.name]
    shape = shape or group.shapes[0]
    if math.prod(shape) > group.largest:
        raise ValueError(
            f"--shape {options.shape} has {math.prod(shape):,} elements: each access is recorded, "
            f"so {options.name} takes {group.largest:,} at most"
        )
    title, run = next(iter(group.run(shape).items()))
    with simulator.record() as traces:
        run()
    measured = [measure(trace, CASES[trace.kernel].operations) for trace in traces]
    if options.json:
        print(json.dumps([traffic.as_dict() for traffic in measured], indent=2))
        return 0
    print(f"{title}, input {shape}")
    for traffic in measured:
        print(f"\n{traffic}")
    return 0
