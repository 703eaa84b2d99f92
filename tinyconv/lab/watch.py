"""Kernels of one's own, checked where they are launched: in a script, or a cell of a notebook.

    from tinyconv.lab.watch import laboratory, watch

    with laboratory():
        my_kernel[grid, block](x, y)

prints what each launch does wrong, and what it asks of memory. The same for one kernel, wherever
it is launched:

    @watch
    @cuda.jit
    def my_kernel(x, y): ...

Kernels have to run in the simulator: start with `NUMBA_ENABLE_CUDASIM=1 python FILE`, or, in a
notebook, with `%env NUMBA_ENABLE_CUDASIM=1` before the first import. On a GPU, launches are left
alone, and one line says so.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from layers import simulator
from layers.simulator import Trace
from layers.simulator.trace import GLOBAL, SHARED
from tinyconv.lab.checks import check_kernel, only_written
from tinyconv.lab.hints import hint
from tinyconv.lab.issues import Line, Report, line_at
from tinyconv.lab.picture import drawable, page
from tinyconv.lab.traffic import measure
from tinyconv.lab.traffic_table import Traffic

# --- what a launch costs, in three lines


def summary(traffic: Traffic) -> list[str]:
    """Coalescing, bank conflicts and bytes of a launch, with the worst line of each."""
    text = []
    if traffic.efficiency is not None:
        text.append(
            f"coalescing: {100 * traffic.efficiency:.0f}% of the sectors that move are needed"
        )
        if traffic.efficiency < 1:
            worst = max(traffic.lines, key=lambda line: line.sectors - line.ideal_sectors)
            text.append(
                f"  {worst.sectors_per_request:.3g} sectors for each {worst.op} of {worst.array} "
                f"at {line_at(worst.instruction)}"
            )
    if traffic.conflict_ways:
        ways = traffic.conflict_ways
        conflict = f"{ways} lanes in a queue at one bank" if ways > 1 else "none"
        text.append(f"bank conflicts: {conflict}")
        if ways > 1:
            (worst, *_) = (line for line in traffic.lines if line.conflict_ways == ways)
            text.append(f"  {worst.op} of {worst.array} at {line_at(worst.instruction)}")
    if traffic.floor_bytes:
        factor = traffic.traffic_bytes / traffic.floor_bytes
        text.append(
            f"bytes: {traffic.traffic_bytes:,} in sectors, {factor:.3g} times the "
            f"{traffic.floor_bytes:,} that must move"
        )
    return text


def doubles_of(report: Report) -> list[str]:
    """Lines for what computes in float64, in a launch whose arrays have no float64, and a hint."""
    trace = report.trace
    if trace is None or any(a.data.dtype.itemsize == 8 for a in trace.arrays if a.space != SHARED):
        return []
    lines = [f"computes in float64, which is slow on most GPUs: {line}" for line in report.doubles]
    hint = "  hint: a whole number with a float32 gives a float64; x.dtype.type(0) is of x's type"
    return [*lines, hint] if lines else []


# --- the context and the decorator


@contextmanager
def laboratory(
    outputs: Iterable[str] | None = None,
    *,
    orders: int = 3,
    drawn: bool | str | os.PathLike[str] | None = None,
    kernel: str | None = None,
) -> Iterator[list[Report]]:
    """Check every launch inside the `with` block; the list has a Report for each.

    outputs, orders: as for `check_kernel`, whose default is what a launch writes and never reads.
    drawn: where to write the page of each kernel, a folder; True is this one, False nowhere; by
    default a notebook shows it, and a script has none. A kernel's later launches are printed only
    if they differ in what is wrong.
    """
    reports: list[Report] = []
    if not simulator.installed:
        print(f"laboratory: launches are not checked: the simulator is {simulator.install()}")
        yield reports
        return
    said: set[tuple] = set()

    def handle(launched: Any, configuration: tuple, args: tuple) -> None:
        if kernel not in (None, launched.__name__):
            launched[configuration](*args)
            return
        grid, block, _, shared_bytes = configuration
        report = check_kernel(
            *(launched, grid, block, args, outputs), orders=orders, shared_bytes=shared_bytes
        )
        reports.append(report)
        found = report.kernel, *((issue.kind, issue.lines) for issue in report.issues)
        if found not in said:
            said.add(found)
            say(report)
            show(report, launched, drawn)

    with simulator.intercepted(handle):
        yield reports


def say(report: Report) -> None:
    """Print what a launch does wrong, with hints, and what it costs."""
    print(report)
    assert report.trace is not None
    arrays = {each.name: each.data for each in report.trace.arrays if each.space == GLOBAL}
    outputs = only_written(report.trace) or tuple(arrays)
    hints = dict.fromkeys(hint(issue, report, arrays, outputs) for issue in report.issues)
    for text in filter(None, hints):
        print(f"  hint: {text}")
    for line in (*doubles_of(report), *summary(measure(report.trace))):
        print(f"  {line}")


def show(report: Report, kernel: Any, drawn: bool | str | os.PathLike[str] | None) -> None:
    """Write the page of a launch into the folder `drawn`, or show it in a notebook."""
    if drawn is False or (drawn is None and not in_notebook()):
        return
    assert report.trace is not None
    try:
        text = page_of(report.trace, kernel)
    except ValueError as error:
        print(f"  no page: {error}")
        return
    if drawn is None:
        from IPython.display import HTML, display

        frame = f'<iframe srcdoc="{escape(text)}" width="100%" height="640" style="border:0">'
        display(HTML(f"{frame}</iframe>"))
    else:
        file = Path("." if drawn is True else drawn, f"{report.kernel}.html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
        print(f"  all its steps: {file}")


def page_of(trace: Trace, kernel: Any) -> str:
    """The page of a recorded launch; ValueError if it is too large."""
    return page(trace.kernel, [drawable(trace.kernel, trace, kernel)])


def in_notebook() -> bool:
    """Whether IPython runs this with a front end that can show a page."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Watched:
    """A kernel whose launches are checked; otherwise it is the kernel."""

    def __init__(self, kernel: Any, options: dict[str, Any]) -> None:
        self._kernel, self._options = kernel, options

    def __getitem__(self, configuration: tuple) -> Callable[..., None]:
        launch = self._kernel[configuration]

        def checked(*args: Any) -> None:
            with laboratory(**self._options):
                launch(*args)

        return checked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def watch(kernel: Any = None, **options: Any) -> Any:
    """Decorate a kernel, above `@cuda.jit`, to check its launches; options as of `laboratory`."""
    if kernel is None:
        return lambda kernel: Watched(kernel, options)
    return Watched(kernel, options)


# --- a script's launches


@dataclass(frozen=True)
class OwnLaunch:
    """A launch that a script made."""

    kernel: Any
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[Any, ...]
    shared_bytes: int


class _Enough(Exception):
    """Ends a script at the launch that was looked for."""


def named_script(name: str) -> tuple[Path, str | None] | None:
    """The file and kernel of "file.py:kernel" or "file.py"; None for another name.

    ValueError if there is no such file.
    """
    file, _, kernel = name.partition(".py:") if ".py:" in name else (name, "", "")
    if not kernel and not name.endswith(".py"):
        return None
    path = Path(f"{file}.py" if kernel else file)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path, kernel or None


def first_launch(file: Path, kernel: str | None) -> OwnLaunch:
    """Run a script up to its first launch (of `kernel`); ValueError if there is none."""
    found: list[OwnLaunch] = []

    def handle(launched: Any, configuration: tuple, args: tuple) -> None:
        if kernel in (None, launched.__name__):
            grid, block, _, shared_bytes = configuration
            found.append(OwnLaunch(launched, grid, block, args, shared_bytes))
            raise _Enough
        with suppress(simulator.SimulatorError):  # of another kernel
            launched[configuration](*args)

    with simulator.intercepted(handle):
        run_script(file)
    if not found:
        raise ValueError(f"{file} launches no kernel{f' {kernel}' if kernel else ''}")
    return found[0]


def run_script(file: Path) -> None:
    """Run a script as `python FILE` does; ValueError for an exception that it does not catch."""
    arguments, path = sys.argv, sys.path[:]
    sys.argv, sys.path[0] = [str(file)], str(file.resolve().parent)
    try:
        runpy.run_path(str(file), run_name="__main__")
    except (_Enough, SystemExit):
        pass
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f":{frames[-1].lineno}" if frames else ""
        text = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file}{where}: {type(error).__name__}: {text}") from error
    finally:
        sys.argv, sys.path[:] = arguments, path


__all__ = ["Line", "laboratory", "summary", "watch"]
