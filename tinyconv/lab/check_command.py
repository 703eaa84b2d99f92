"""`python -m tinyconv check [NAME...] [--shape 2,6,7,5]`: the checks, on the project's kernels."""

from __future__ import annotations

import argparse

from layers import simulator
from tinyconv.lab.cases import GROUPS, checked_shape, launches
from tinyconv.lab.issues import indented

HEADER = f"{'kernel':34}{'launched by':60}{'accesses':>9}  verdict"

RESULTS = "Wrong results are not looked for here, but by: python -m tinyconv gradcheck, and pytest"


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(GROUPS)} (default: all)"
    )
    parser.add_argument(
        "--shape", help="of the input, such as 2,6,7,5 (default: shapes chosen to be hostile)"
    )
    parser.add_argument(
        "--orders", type=int, default=3, help="shuffled orders of threads (default: %(default)s)"
    )


def main(options: argparse.Namespace) -> int:
    """Print a row for each launch, its issues below; 1 if there are any, else 0.

    ValueError for an unknown name, a shape that does not fit, or without the simulator.
    """
    if not simulator.installed:
        raise ValueError(f"kernels are checked in the simulator, which is {simulator.install()}")
    names = options.names or list(GROUPS)
    if options.shape and not options.names:
        raise ValueError(f"--shape is for the NAMEs it fits: {', '.join(GROUPS)}")
    shapes = {name: checked_shape(name, options.shape) for name in names}
    if options.orders < 0:
        raise ValueError(f"--orders cannot be negative: {options.orders}")
    count = found = 0
    for name, shape in shapes.items():
        for launch in launches(name, shape):
            report = launch.check(options.orders)
            if not count:
                print(HEADER)
            verdict = "ok" if report.ok else f"{len(report.issues)} found"
            print(f"{launch.name:34}{launch.title:60}{report.accesses:>9}  {verdict}")
            for issue in report.issues:
                print(indented(issue))
            count += 1
            found += len(report.issues)
    print(f"{count} launches, {found or 'nothing'} found")
    print(RESULTS)
    return 1 if found else 0
