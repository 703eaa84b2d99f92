"""`python -m tinyconv draw-kernel NAME`: a page, or a picture, of what kernels do to memory.

The page is one file that needs no network: a browser opens it from the disk. An existing file is
overwritten, for it can be made anew from the kernels at any time. `steps.py` says what a step is.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tinyconv.lab.cases import GROUPS, Shape, checked_shape, named
from tinyconv.lab.cases import launches as case_launches
from tinyconv.lab.convolution_views import VIEWS
from tinyconv.lab.picture import MOST_CELLS, launched, page
from tinyconv.lab.picture_svg import svg_of
from tinyconv.lab.steps import Launch
from tinyconv.lab.watch import first_launch, named_script


def launches(name: str, shape: Shape | None = None) -> list[Launch]:
    """Every launch of `name`, a key of GROUPS, on an input of `shape` (None: one that shows well).

    ValueError for a shape that cannot be drawn.
    """
    shape = GROUPS[name].small if shape is None else shape
    if math.prod(shape) > MOST_CELLS:
        raise ValueError(f"a shape of {shape} is too large to be drawn: {MOST_CELLS:,} elements")
    return [
        launched(each.title, each.case.kernel, each.grid, each.block, each.args)
        for each in case_launches(name, shape)
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options to `parser`."""
    parser.add_argument(
        *("name",), nargs="?", metavar="NAME", help=f"FILE.py:KERNEL, or one of {', '.join(GROUPS)}"
    )
    parser.add_argument("--shape", help="of the input, such as 2,3,3,6 (default: a small one)")
    parser.add_argument("--out", metavar="FILE", help="default: NAME.html, or KERNEL.svg")
    parser.add_argument("--svg", action="store_true", help="draw one step instead of the page")
    parser.add_argument("--kernel", help="with --svg: which kernel (default: the first launched)")
    parser.add_argument("--block", type=int, metavar="N", help="with --svg: which block, from 0")
    parser.add_argument("--step", type=int, metavar="N", help="with --svg: which step, from 1")
    views = dict.fromkeys(view for known in VIEWS.values() for view in known)
    parser.add_argument(
        *("--view",), choices=views, help=f"another picture, of one of {', '.join(VIEWS)}"
    )
    parser.add_argument("--all-pictures", metavar="FOLDER", help="write all of docs/pictures")


def main(options: argparse.Namespace) -> int:
    """Write what was asked for and say where. ValueError for what cannot be drawn."""
    still = (options.kernel, options.block, options.step)
    if options.all_pictures is not None:
        others = (options.name, options.shape, options.out, options.view, *still)
        if options.svg or any(other is not None for other in others):
            raise ValueError("--all-pictures FOLDER goes alone")
        return all_pictures(Path(options.all_pictures))
    if options.name is None:
        raise ValueError(f"a NAME is missing: one of {', '.join(GROUPS)}")
    if not options.svg and still != (None, None, None):
        raise ValueError("--kernel, --block and --step choose a picture: they need --svg")
    name, own, kernel = options.name, named_script(options.name), options.kernel
    if not own:
        name, of_name = named(name)
        kernel = kernel or of_name
    if options.view:
        if options.svg or options.shape:
            raise ValueError("--view goes without --svg and --shape")
        if options.view not in VIEWS.get(name, {}):
            known = "; ".join(f"{each}: {', '.join(views)}" for each, views in VIEWS.items())
            raise ValueError(f"{name} has no view {options.view}; there are {known}")
        return written(
            Path(options.out or f"{name}_{options.view}.svg"), VIEWS[name][options.view]()
        )
    if own:
        if options.shape:
            raise ValueError("--shape is for the layers of this project")
        one = first_launch(*own)
        name = str(one.kernel.__name__)
        drawn = [launched(name, one.kernel, one.grid, one.block, one.args)]
    else:
        drawn = launches(name, checked_shape(name, options.shape))
    if options.svg:
        launch = find(name, drawn, kernel)
        name = f"{launch.trace.kernel}.svg"
        step = 1 if options.step is None else options.step
        if step < 1:
            raise ValueError(f"steps are numbered from 1, there is no step {step}")
        text = svg_of(launch, options.block or 0, step - 1)
    else:
        if kernel:
            find(name, drawn, kernel)
            drawn = [launch for launch in drawn if launch.trace.kernel == kernel]
        name, text = f"{kernel or name}.html", page(kernel or name, drawn)
    return written(Path(options.out or name), text)


def written(out: Path, text: str) -> int:
    """Write `text` and say where."""
    write(out, text)
    print(f"{out}: {len(text.encode()) / 1000:.0f} kB; open it in a browser")
    return 0


def find(name: str, drawn: list[Launch], kernel: str | None) -> Launch:
    """The first of the launches, or the first of `kernel`; ValueError if there is none."""
    for launch in drawn:
        if kernel is None or launch.trace.kernel == kernel:
            return launch
    kernels = dict.fromkeys(launch.trace.kernel for launch in drawn)
    raise ValueError(f"{name} launches no {kernel}; choose from {', '.join(kernels)}")


def write(file: Path, text: str) -> None:
    """Write `text`; ValueError if that is not possible."""
    try:
        file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}") from None


def all_pictures(folder: Path) -> int:
    """Write the picture of every kernel that has one, and all views, into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {folder}: {error.strerror}") from None
    count = 0
    for name, group in GROUPS.items():
        drawn = launches(name)
        for case in group.cases:
            if case.figure:
                text = svg_of(find(name, drawn, case.name), *case.figure)
                write(folder / f"{case.name}.svg", text)
                count += 1
    for name, views in VIEWS.items():
        for view, draw in views.items():
            write(folder / f"{name}_{view}.svg", draw())
            count += 1
    print(f"{folder}: {count} pictures")
    return 0
