"""Marks the exercises of `examples/exercises/`: results, races and stray accesses, then the grade.

    mark(kernel, specification, inputs, goal=Goal(coalescing=1))

runs the kernel in the simulator on each of the inputs, compares with what the NumPy function gives,
and stops at the first input on which something is wrong. If all is right it grades what the kernel
asks of memory. The kernel's parameters are those of the specification, then its outputs.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layers import Layer, simulator
from tinyconv.gradient_check import HEADER, check_gradients
from tinyconv.lab.checks import check_kernel
from tinyconv.lab.hints import hint, shifted
from tinyconv.lab.issues import Line, Report, element, indented, worker_of
from tinyconv.lab.stepping import reads_of, writer_of
from tinyconv.lab.traffic import measure
from tinyconv.lab.watch import doubles_of, page_of, summary

THREADS = 128

PATIENCE = 20
"""Seconds after which a launch is said to be slow: a loop in it may be endless."""

ORDER = ("compile", "index", "barrier", "error", "race", "unwritten", "missing", "rewritten")


@dataclass(frozen=True)
class Goal:
    """The grade that an exercise asks for; None: no matter."""

    coalescing: float | None = None
    """The least share of needed sectors."""
    conflicts: int | None = None
    """The most lanes in a queue at one bank: 1 is none."""
    bytes: float | None = None
    """The most bytes in sectors, as a multiple of those that must move."""


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32, the same in every run."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def a_thread_each(output: np.ndarray) -> tuple[int, int]:
    """Blocks and threads with at least one thread for each element."""
    return -(-output.size // THREADS), THREADS


# --- marking a kernel


def mark(
    kernel: Any,
    specification: Callable[..., Any],
    inputs: Sequence[tuple[Any, ...]],
    launch: Callable[[Any], tuple[Any, Any]] = a_thread_each,
    goal: Goal | None = None,
    updates: tuple[str, ...] = (),
) -> None:
    """Print what is wrong, or the grade; SystemExit(1) unless the exercise is passed.

    specification: from inputs to the output, or a tuple of outputs. inputs: argument lists, the
    last one for the grade. launch: from the first output to grid and block. updates: parameters
    that the kernel changes; the specification then returns what they become.
    """
    path = Path(kernel.py_func.__code__.co_filename)
    open_gaps(kernel.py_func, path)
    if not simulator.installed:
        raise SystemExit(f"exercises are marked in the simulator, which is {simulator.install()}")
    report = None
    for arguments in inputs:
        expected = specification(*arguments)
        outputs = expected if isinstance(expected, tuple) else (expected,)
        args = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in arguments)
        names = list(inspect.signature(kernel.py_func).parameters)
        made = () if updates else tuple(np.empty_like(output) for output in outputs)
        filled = () if updates else tuple(names[len(args) : len(args) + len(made)])
        grid, block = launch(outputs[0])
        with told_if_slow(kernel):
            report = check_kernel(kernel, grid, block, (*args, *made), filled, orders=1)
        results = dict(zip(names, (*args, *made), strict=True))
        wrong = []
        stopped = any(issue.kind in ("index", "barrier", "error") for issue in report.issues)
        if not stopped:
            for name, output in zip(updates or filled, outputs, strict=True):
                wrong += differences(name, output, results[name], report)
        if wrong or not report.ok:
            shapes = ", ".join(str(a.shape) for a in arguments if isinstance(a, np.ndarray))
            print(f"on inputs of shape {shapes}:")
            tell(report, results, updates or filled, wrong)
            # What stopped a launch is not among the accesses that a page could show.
            failed(path, "" if stopped else draw(path, report, kernel))
    assert report is not None
    count = f"{len(inputs)} input{'s' * (len(inputs) > 1)}"
    print(f"right on {count}: no race, no stray access, every output written once")
    reached = grade(report, goal or Goal())
    drawn = draw(path, report, kernel)
    if not reached:
        failed(path, drawn)
    passed(path, drawn)


@contextmanager
def told_if_slow(kernel: Any) -> Iterator[None]:
    """Print which line of the kernel runs, once PATIENCE seconds are over."""
    runner, code = threading.get_ident(), kernel.py_func.__code__

    def tell_line() -> None:
        frame = None
        for _ in range(100):  # until it is not between two threads
            frame = frame or sys._current_frames().get(runner)
            while frame and frame.f_code is not code:
                frame = frame.f_back
        where = f" at {Line.of(code.co_filename, frame.f_lineno)}" if frame else ""
        print(f"still running after {PATIENCE} s{where}", flush=True)
        print("  hint: does a loop never end? Ctrl-C stops it, and names the line once more.")

    timer = threading.Timer(PATIENCE, tell_line)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tell(
    report: Report, results: dict[str, np.ndarray], outputs: Sequence[str], wrong: list[str]
) -> None:
    """Print the issues, the most telling first, each with its hint, and wrong results."""
    told = {issue.kind: issue for issue in reversed(report.issues) if issue.kind in ORDER}
    if "race" in told and told["race"].array in outputs:  # which these two follow from
        told = {kind: issue for kind, issue in told.items() if kind not in ("missing", "rewritten")}
    for kind in [kind for kind in ORDER if kind in told][:3]:
        print(indented(told[kind]))
        if text := hint(told[kind], report, results, outputs):
            print(textwrap.fill(f"hint: {text}", 90, initial_indent="  ", subsequent_indent="  "))
    # Wrong results of a race are no riddle of their own.
    if wrong and not {"race", "unwritten", "compile"} & set(told):
        print("\n".join(wrong))


def differences(name: str, expected: np.ndarray, got: np.ndarray, report: Report) -> list[str]:
    """Where a result is wrong first, and what its thread has read."""
    tolerance = 1e-4 * max(1.0, float(np.abs(expected).max(initial=0)))
    close = np.isclose(got, expected, rtol=1e-4, atol=tolerance * 1e-1)
    if close.all():
        return []
    index = tuple(int(i) for i in np.argwhere(~close)[0])
    text = [
        f"  wrong at {element(name, index)}: expected {expected[index]:.6g}, got {got[index]:.6g} "
        f"({np.count_nonzero(~close)} of {close.size} elements are wrong)"
    ]
    if moved := shifted(name, expected, got, ~close):
        text.append(moved)
    trace = report.trace
    assert trace is not None
    try:
        row = writer_of(trace, name, index)
    except ValueError:  # no thread writes it, which the issues say
        return text
    number = trace.segments[trace.accesses["segment"][row]]
    text.append(f"  {worker_of(trace, row)} wrote it, after it had read")
    text += [f"    {r}" for r in reads_of(trace, int(number["block"]), int(number["thread"]))]
    return text


def grade(report: Report, goal: Goal) -> bool:
    """Print what a launch asks of memory beside the goal; whether the goal is reached."""
    assert report.trace is not None
    traffic = measure(report.trace)
    reached = True

    def beside(asked: str, good: bool) -> str:
        nonlocal reached
        reached &= good
        return f"  goal: {asked}: {'reached' if good else 'NOT YET'}"

    for line in (*doubles_of(report), *summary(traffic)):
        text = f"  {line}"
        if line.startswith("coalescing") and goal.coalescing is not None:
            good = (traffic.efficiency or 0) >= goal.coalescing
            text += beside(f"{goal.coalescing:.0%}", good)
        elif line.startswith("bank conflicts") and goal.conflicts is not None:
            most = f"at most {goal.conflicts}" if goal.conflicts > 1 else "none"
            text += beside(most, traffic.conflict_ways <= goal.conflicts)
        elif line.startswith("bytes") and goal.bytes is not None:
            factor = traffic.traffic_bytes / traffic.floor_bytes
            text += beside(f"{goal.bytes:g} times", factor <= goal.bytes)
        print(text)
    if goal.conflicts is not None and not traffic.conflict_ways:
        print("  shared memory is not used" + beside("use it", False))
    return reached


# --- marking what runs on the host


def mark_layer(layer: Layer, x: np.ndarray) -> None:
    """Mark a layer's `backward` by central differences; SystemExit(1) unless it agrees."""
    path = Path(inspect.getfile(type(layer)))
    open_gaps(type(layer), path)
    rows = check_gradients(layer.to("cpu", np.float64), x)
    print(f"  {HEADER}")
    for row in rows:
        print(f"  {row}")
    if not all(row.ok for row in rows):
        print("  hint: write y as a function of one x, and take the derivative once more: by the")
        print("  product rule every factor that depends on x gives a term.")
        failed(path)
    passed(path)


def mark_training(train: Callable[[], list[float]], below: float) -> None:
    """Mark a training loop, which returns its losses; SystemExit(1) unless the last is small."""
    path = Path(train.__code__.co_filename)
    with np.errstate(all="ignore"):
        losses = train()
    first, last = losses[0], losses[-1]
    print(f"  loss: {first:.4f} at first, {last:.4f} after {len(losses)} steps; goal: {below}")
    if last < below:
        passed(path)
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses)))
        print(
            f"  hint: it isn't finite from step {step} on: is the rate too large, or a sign wrong?"
        )
    elif len(set(losses)) == 1:
        print(
            "  hint: not one bit of it changes, so no weight does. Print a weight before and after"
        )
        print("  one step; which line should have changed it, and what does that line change?")
    elif last > first:
        print("  hint: it rises: some step goes uphill. Which sign is wrong?")
    else:
        print("  hint: it falls, but slowly: compare a derivative with (f(w + h) - f(w - h)) / 2h.")
    failed(path)


# --- gaps, pages, the end


def open_gaps(function: Any, path: Path) -> None:
    """SystemExit(1) with one line if a gap, written `...`, has not been filled."""
    lines, first = inspect.getsourcelines(function)
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            gap = Line.of(str(path), first + node.lineno - 1)
            print(f"{title_of(path)}: fill the gap, then run it again\n    {gap}")
            raise SystemExit(1)


def draw(path: Path, report: Report, kernel: Any) -> str:
    """Write the page of a launch; where it is, or "" if the launch is too large."""
    file = Path("runs", "exercises", f"{path.stem}.html")
    assert report.trace is not None
    try:
        text = page_of(report.trace, kernel)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
    except (ValueError, OSError):  # too large, or a folder that cannot be written: no harm
        return ""
    return str(file)


def title_of(path: Path) -> str:
    """`exercise 4` of a file 04_max_pool.py; its name otherwise."""
    number = re.match(r"\d+", path.name)
    return f"exercise {int(number[0])}" if number else path.name


def failed(path: Path, drawn: str = "") -> None:
    """Say that it is not done yet; SystemExit(1)."""
    if drawn:
        print(f"see your kernel step by step: {drawn}")
    print(f"{title_of(path)}: not yet")
    raise SystemExit(1)


def passed(path: Path, drawn: str = "") -> None:
    """Say that it is done, and what follows; SystemExit(0)."""
    if drawn:
        print(f"see your kernel step by step: {drawn}")
    print(f"{title_of(path)}: passed")
    following = [file for file in exercises_in(path.resolve().parent) if file.name > path.name]
    if following:
        print(f"next: python -m tinyconv exercise {int(following[0].name[:2])}")
    raise SystemExit(0)


def exercises_in(folder: Path) -> Iterable[Path]:
    """The files of exercises, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


__all__ = ["Goal", "mark", "mark_layer", "mark_training", "numbers"]
