"""`python -m tinyconv traffic NAME`: a table of what each kernel of a layer asks of memory."""

import argparse
import json
import math

from layers import simulator
from tinyconv.lab.cases import CASES, GROUPS, checked_shape, named
from tinyconv.lab.traffic import measure
from tinyconv.lab.traffic_table import Traffic
from tinyconv.lab.watch import first_launch, named_script


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument("name", metavar="NAME", help=f"FILE.py:KERNEL, {', '.join(GROUPS)}")
    parser.add_argument(
        "--shape", help="of the input, such as 2,13,13,96 for (N, H, W, C); a small one if missing"
    )
    parser.add_argument("--json", action="store_true", help="a list with all numbers, as JSON")


def main(options: argparse.Namespace) -> int:
    """Print the traffic of each kernel of a layer, its first settings; ValueError for wrong usage.

    Kernels run in the simulator: RuntimeError if that is off.
    """
    if own := named_script(options.name):
        if options.shape:
            raise ValueError("--shape is for the layers of this project")
        one = first_launch(*own)
        with simulator.record() as traces:
            one.kernel[one.grid, one.block, 0, one.shared_bytes](*one.args)
        report(options.name, [measure(trace) for trace in traces], options.json)
        return 0
    name, kernel = named(options.name)
    shape = checked_shape(name, options.shape)
    group = GROUPS[name]
    shape = shape or group.shapes[0]
    if math.prod(shape) > group.largest:
        raise ValueError(
            f"--shape {options.shape} has {math.prod(shape):,} elements: each access is recorded, "
            f"so {name} takes {group.largest:,} at most"
        )
    title, run = next(iter(group.run(shape).items()))
    with simulator.record() as traces:
        run()
    traces = [trace for trace in traces if kernel in (None, trace.kernel)]
    if not traces:
        raise ValueError(f"no run of {name} launches {kernel} for this shape")
    cases = [CASES.get(trace.kernel) for trace in traces]
    measured = [
        measure(trace, case.operations if case else None)
        for trace, case in zip(traces, cases, strict=True)
    ]
    report(f"{title}, input {shape}", measured, options.json)
    return 0


def report(title: str, measured: list[Traffic], as_json: bool) -> None:
    """Print what was measured."""
    if as_json:
        print(json.dumps([traffic.as_dict() for traffic in measured], indent=2))
        return
    print(title)
    for traffic in measured:
        print(f"\n{traffic}")
