"""This project's kernels as test cases: the one table of them, with a file for each folder.

The laboratory's commands, the tests that check and compile kernels, and the scripts in
`benchmarks/` all read it. A new kernel gets a KernelCase (`case.py`) in a group of one of these
files; the tests name kernels that have none. What looks at launches (`checks.py`, `traffic.py`,
`steps.py`, ...) knows nothing of this table and works on any kernel.
"""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
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


LAYERS = {
    "conv2d": "conv",
    "maxpool2d": "max_pool",
    "avgpool2d": "avg_pool",
    "locallyconnected2d": "locally_connected",
    "localresponsenorm": "lrn",
    "relu": "relu",
    "tanh": "tanh",
    "dropout": "dropout",
    "linear": "linear",
    "softmaxcrossentropy": "softmax",
}
"""The group of each class of layer, which is in lower case."""


def plain(name: str) -> str:
    """A name in lower case without underscores: MaxPool2D and max_pool begin alike."""
    return name.lower().replace("_", "")


def named(name: str) -> tuple[str, str | None]:
    """The key of GROUPS that a user means, and the kernel of it; None: all of its kernels.

    name: of a group, a kernel or a layer's class, or the beginning of one; "pool" is max_pool.
    ValueError, in one line, if that is none of them, or several.
    """
    group_of = {
        case: key for key, group in GROUPS.items() for case in (c.name for c in group.cases)
    }
    if name in group_of:
        return group_of[name], name
    groups, start = {plain(key): key for key in GROUPS}, plain(name)
    known = {**LAYERS, "pool": "max_pool", **groups}
    if start in known:
        return known[start], None
    found = list(dict.fromkeys(key for each, key in known.items() if each.startswith(start)))
    of_book = [key for key in found if key in book.GROUPS]
    if start and 1 in (len(found), len(of_book)):
        return (found if len(found) == 1 else of_book)[0], None
    kernels = [kernel for kernel in group_of if plain(kernel).startswith(start)]
    if start and len(kernels) == 1:
        return group_of[kernels[0]], kernels[0]
    if start and found:
        raise unknown("layer or kernel", name, found, guess=False)
    raise unknown("layer or kernel", name, GROUPS, (*CASES, *LAYERS))


def unknown(
    what: str,
    name: str,
    choices: Iterable[str],
    others: Iterable[str] = (),
    guess: bool = True,
) -> ValueError:
    """The error for a name that fits nothing: what may be meant, if `guess`, and all choices.

    others: names that are understood, too, but not listed.
    """
    choices = list(choices)
    close = get_close_matches(name.lower(), [*choices, *others]) if guess else []
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return ValueError(f"no {what} is called {name!r}: {meant}choose from {', '.join(choices)}")


def checked_shape(name: str, text: str | None) -> Shape | None:
    """The shape that a user gave for a group, "2,13,13,96"; None for None.

    ValueError, in one line, for text that is not a shape, and for a shape of the wrong number of
    sides.
    """
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
