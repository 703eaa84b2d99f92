"""`python -m tinyconv check [NAME...] [--shape 2,6,7,5]`: the checks, on the project's kernels."""

from __future__ import annotations

import argparse

from layers import simulator
from tinyconv.lab.checks import check_subject
from tinyconv.lab.findings import indented
from tinyconv.lab.subjects import SHAPES, checked_shape, subjects

HEADER = f"{'kernel':34}{'launched by':60}{'accesses':>9}  verdict"


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(SHAPES)} (default: all)"
    )
    parser.add_argument(
        "--shape", help="of the input, such as 2,6,7,5 (default: shapes chosen to be hostile)"
    )
    parser.add_argument(
        "--orders", type=int, default=3, help="shuffled orders of threads (default: %(default)s)"
    )


def main(options: argparse.Namespace) -> int:
    """Print a row for each launch, its findings below; 1 if there are any, else 0.

    ValueError for an unknown name, a shape that does not fit, or without the simulator.
    """
    if not simulator.installed:
        raise ValueError(f"kernels are checked in the simulator, which is {simulator.install()}")
    names = options.names or list(SHAPES)
    if options.shape and not options.names:
        raise ValueError(f"--shape is for the NAMEs it fits: {', '.join(SHAPES)}")
    shapes = {name: checked_shape(name, options.shape) for name in names}
    if options.orders < 0:
        raise ValueError(f"--orders cannot be negative: {options.orders}")
    launches = found = 0
    for name, shape in shapes.items():
        for subject in subjects(name, shape):
            report = check_subject(subject, options.orders)
            if not launches:
                print(HEADER)
            verdict = "ok" if report.ok else f"{len(report.findings)} found"
            print(f"{subject.name:34}{subject.title:60}{report.accesses:>9}  {verdict}")
            for finding in report.findings:
                print(indented(finding))
            launches += 1
            found += len(report.findings)
    print(f"{launches} launches, {found or 'nothing'} found")
    return 1 if found else 0
