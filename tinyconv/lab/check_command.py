"""Find races, stray indices, unwritten outputs, and what no compiler takes.

tinyconv check                            every kernel of the project
tinyconv check lrn --shape 2,6,7,5        those of a layer
tinyconv check my_script.py               every launch of a script of your own
tinyconv check my_script.py:my_kernel     its launches of one kernel
"""

from __future__ import annotations

import argparse

from layers import simulator
from tinyconv.lab import compiler
from tinyconv.lab.cases import GROUPS, checked_shape, launches, named
from tinyconv.lab.issues import indented
from tinyconv.lab.watch import laboratory, named_script, run_script

HEADER = f"{'kernel':34}{'launched by':60}{'accesses':>9}  verdict"

RESULTS = (
    "Wrong results are not looked for here, but by: python -m tinyconv gradcheck --simulate, and "
    "pytest"
)


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument(
        *("names",),
        nargs="*",
        metavar="NAME",
        help=f"FILE.py, FILE.py:KERNEL, {', '.join(GROUPS)} (default: all of the project)",
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
    if options.orders < 0:
        raise ValueError(f"--orders cannot be negative: {options.orders}")
    scripts = {name: script for name in names if (script := named_script(name))}
    if scripts and options.shape:
        raise ValueError("--shape is for the layers of this project")
    chosen = [named(name) for name in names if name not in scripts]
    shapes = {name: checked_shape(name, options.shape) for name, _ in chosen}
    for name in shapes:
        # Compiled while others run in the simulator.
        for case in GROUPS[name].cases:
            compiler.submit_types(case.kernel, case.argument_types(case.dtypes[0]))
    count = found = rows = 0
    unable = None
    for file, kernel in scripts.values():
        with laboratory(orders=options.orders, kernel=kernel) as reports:
            run_script(file)
        if not reports:
            raise ValueError(f"{file} launches no kernel{f' {kernel}' if kernel else ''}")
        count += len(reports)
        found += sum(len(report.issues) for report in reports)
        unable = reports[0].not_compiled
    for name, shape in shapes.items():
        kernels = {kernel for group, kernel in chosen if group == name}
        for launch in launches(name, shape):
            if not kernels & {None, launch.name}:
                continue
            report = launch.check(options.orders)
            if not rows:
                print(HEADER)
            rows += 1
            verdict = "ok" if report.ok else f"{len(report.issues)} found"
            print(f"{launch.name:34}{launch.title:60}{report.accesses:>9}  {verdict}")
            for issue in report.issues:
                print(indented(issue))
            count += 1
            found += len(report.issues)
            unable = report.not_compiled
    print(f"{count} launch{'es' * (count != 1)}, {found or 'nothing'} found")
    print(f"not compiled: {unable}" if unable else "compiled as well, for sm_80")
    print(RESULTS)
    return 1 if found else 0
