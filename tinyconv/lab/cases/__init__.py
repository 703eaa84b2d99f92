"""This project's kernels as test cases: the one table of them, with a file for each folder.

The laboratory's commands, the tests that check and compile kernels, and the scripts in
`benchmarks/` all read it. A new kernel gets a KernelCase (`case.py`) in a group of one of these
files; the tests name kernels that have none. What looks at launches (`checks.py`, `traffic.py`,
`steps.py`, ...) knows nothing of this table and works on any kernel.
"""

from collections.abc import Callable, Iterator
from typing import Any

from layers import simulator
from tinyconv.lab.cases import book, conv, fast, training
from tinyconv.lab.cases.case import CaseLaunch, KernelCase, KernelGroup, Shape

GROUPS: dict[str, KernelGroup] = {
    **book.GROUPS,
    **fast.GROUPS,
    **conv.GROUPS,
    **training.GROUPS,
}
"""By the NAME that the commands know them by."""

CASES: dict[str, KernelCase] = {
    case.name: case for group in GROUPS.values() for case in group.cases
}
"""Every kernel of the project, by name."""


def checked_shape(name: str, text: str | None) -> Shape | None:
    """The shape that a user gave for `name`, "2,13,13,96"; None for None.

    ValueError, in one line, for an unknown name, for text that is not a shape, and for a shape of
    the wrong number of sides.
    """
    if name in CASES:
        group = next(key for key, group in GROUPS.items() if CASES[name] in group.cases)
        raise ValueError(f"{name} is one of the kernels of {group}: give that name")
    if name not in GROUPS:
        raise ValueError(f"no kernels are called {name!r}: choose from {', '.join(GROUPS)}")
    if text is None:
        return None
    try:
        shape = tuple(int(side) for side in text.split(","))
    except ValueError:
        shape = ()
    shapes = GROUPS[name].shapes
    if len(shape) not in {len(known) for known in shapes} or min(shape) < 1:
        sides = ",".join(map(str, shapes[0]))
        raise ValueError(f"--shape of {name} is positive numbers such as {sides}, not {text!r}")
    return shape


def launches(
    name: str, shape: Shape | None = None, dtype: str | None = None
) -> Iterator[CaseLaunch]:
    """The launches of a group for an input of `shape`; None: the hostile ones.

    dtype: one of the group's; None: its first. KeyError for another name; ValueError for a shape
    that does not fit.
    """
    group = GROUPS[name]
    for one in group.shapes if shape is None else (shape,):
        for title, run in group.run(one, dtype).items():
            yield from recorded(f"{title}, {'×'.join(map(str, one))}", run)


def recorded(title: str, run: Callable[[], Any]) -> Iterator[CaseLaunch]:
    """The launches that `run()` makes, with their very arguments."""
    with simulator.record() as traces:
        run()
    for trace in traces:
        if trace.kernel not in CASES:
            raise ValueError(
                f"{trace.kernel} has no KernelCase: add one to a group of tinyconv/lab/cases/"
            )
        grid, block = ((side.x, side.y, side.z) for side in (trace.grid, trace.block))
        yield CaseLaunch(title, CASES[trace.kernel], grid, block, trace.arguments)
