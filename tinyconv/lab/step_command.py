"""Stop in the thread of a kernel that owns an output, and step through it with pdb.

tinyconv step max_pool --output 1,2,3,0          a layer's first kernel
tinyconv step lrn_backward_kernel                a kernel by its name
tinyconv step my_script.py:my_kernel --output 5  a kernel of your own: its first launch
"""

from __future__ import annotations

import argparse
import bdb

from tinyconv.lab.cases import GROUPS, checked_shape, launches, named
from tinyconv.lab.stepping import step
from tinyconv.lab.watch import OwnLaunch, first_launch, named_script


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"a kernel, FILE.py:KERNEL, or {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--output", metavar="INDEX", help="of an element, such as 1,2,3,0 (default: the first)"
    )
    parser.add_argument("--array", help="which output (default: the kernel's first)")
    parser.add_argument("--shape", help="of a layer's input (default: a small one)")


def main(options: argparse.Namespace) -> int:
    """Step; ValueError for a name, an index or a shape that does not fit."""
    output = options.array
    own = named_script(options.name)
    if own:
        if options.shape:
            raise ValueError("--shape is for the layers of this project")
        launch = first_launch(*own)
    else:
        launch, outputs, title = known_launch(options.name, options.shape, output)
        output = output or (outputs or (None,))[0]
        print(title)
    text = options.output
    try:
        index = tuple(int(side) for side in text.split(",")) if text else None
    except ValueError:
        raise ValueError(f"--output is numbers such as 1,2,3,0, not {text!r}") from None
    try:
        step(launch.kernel, launch.grid, launch.block, launch.args, output, index,
             launch.shared_bytes)  # fmt: skip
    except bdb.BdbQuit:
        print("stopped; the kernel has not finished")
    return 0


def known_launch(
    name: str, shape: str | None, array: str | None = None
) -> tuple[OwnLaunch, tuple[str, ...], str]:
    """The first launch of a kernel, or of a group; its outputs, and the title of its layer.

    array: of a group the first kernel that has this output; None: the first of all.
    """
    group, kernel = named(name)
    of_group = GROUPS[group].cases
    cases = [case for case in of_group if array in (None, *case.outputs)] or of_group
    small = GROUPS[group].small
    # At least two images, so that their order in memory shows.
    sides = checked_shape(group, shape) or (max(2, small[0]), *small[1:])
    for each in launches(group, sides):
        if each.name == kernel or (not kernel and each.case in cases):
            grid, block = each.grid, each.block
            launch = OwnLaunch(each.case.kernel, grid, block, each.args, 0)  # type: ignore[arg-type]
            return launch, each.case.outputs, each.title
    raise ValueError(f"no run of {group} launches {name}")
