"""What a kernel does wrong, found without a GPU.

On a GPU `compute-sanitizer` watches a kernel and tells of races, stray indices and memory that is
read before it is written. The simulator sees every access as well, so here a laptop does the same:

    report = check_kernel(kernel, grid, block, args, outputs=("y",))
    report.ok, report.issues
    print(report)

What is looked for: KINDS in `issues.py`; `races.py` explains what a race is and how it is found.
The simulator runs a kernel as Python, so the compiler, if there is one, is asked as well
(`compiler.py`).

Outputs are parameters that come in empty and go out full. Who fills them in two steps, or not in
full, says so and why: `rewritten={"probabilities": "exp first, then divided by the sum"}`.

What cannot be found: faults that this launch does not have, but another shape would (so try
hostile ones, as those in `cases/`); results that are wrong without any of the above, such as
an element of a tile that is left over from the round before; and what the simulator cannot show
(`layers/simulator/__init__.py`).

`benchmarks/lab.py` measures what all this costs but for the other orders, each of which is one
more plain launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from layers import simulator
from layers.simulator import SimulatorError, Trace
from layers.simulator.trace import GLOBAL
from layers.simulator.warps import poison
from tinyconv.lab import compiler
from tinyconv.lab.coverage import coverage, lines_of, unraveled, unwritten
from tinyconv.lab.issues import Issue, Report, element, failure, more
from tinyconv.lab.races import races, touches

Reasons = Mapping[str, str]

# --- one call


def check_kernel(
    kernel: Any,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    args: tuple[Any, ...],
    outputs: Iterable[str] | None = (),
    *,
    rewritten: Reasons | None = None,
    partial: Reasons | None = None,
    orders: int = 3,
    seed: int = 0,
    shared_bytes: int = 0,
) -> Report:
    """Launch `kernel[grid, block](*args)` in the simulator and report what it does wrong.

    outputs: names of the parameters that come in empty; None: those that the launch writes and
    never reads. rewritten, partial: by name, why an output is written more than once, or not in
    full. orders: how many more times to run it, blocks and threads shuffled, seeds `seed`,
    `seed + 1`, ..., up to the first that differs. shared_bytes: dynamic shared memory of a block.

    The arrays of `args` are written, as by any launch, and end with the results of threads in
    their usual order. Before every run outputs that are named are filled with NaN, or the most
    extreme integer, so that an element without a writer shows in the result too; an output that
    overlaps another argument is left as it is. ValueError for a name that is not an array
    parameter; RuntimeError if the simulator is not installed.
    """
    named = tuple(outputs or ())
    excused = {**(rewritten or {}), **(partial or {})}
    arrays = dict(arrays_of(kernel, args))
    for name in (*named, *excused):
        if name not in arrays:
            raise ValueError(
                f"{kernel.__name__}: no array parameter {name!r}, only {', '.join(arrays)}"
            )
    memory = Memory(arrays, named)
    compiled = compiler.submit(kernel, args)
    launch = kernel[grid, block, 0, shared_bytes]
    error: SimulatorError | None = None
    with simulator.record() as traces:
        memory.prepare()
        try:
            launch(*args)
        except SimulatorError as raised:
            error = raised
    (trace,) = traces
    report = Report(
        kernel=trace.kernel,
        grid=(trace.grid.x, trace.grid.y, trace.grid.z),
        block=(trace.block.x, trace.block.y, trace.block.z),
        accesses=len(trace.accesses),
        excused=excused,
        trace=trace,
    )
    verdict = compiled.result()
    report.not_compiled, report.doubles = verdict.unable, verdict.doubles
    if outputs is None:
        named = only_written(trace)
    if error is not None:
        # What it did until then is looked at, but gaps in the outputs are no fault of their own
        # then, and other orders would fail too.
        t = touches(trace, named)
        found = [failure(error), *races(trace, t), *unwritten(trace, t)]
        report.issues = verdict.issues + found
        return report
    found = check_trace(trace, named, rewritten=rewritten, partial=partial)
    report.issues = verdict.issues + found
    result = memory.contents()
    for number in range(seed, seed + orders):
        memory.prepare()
        try:
            with simulator.shuffled(number):
                launch(*args)
            found = _differences(trace, result, memory.contents(), number)
        except SimulatorError as raised:
            found = [failure(raised, f"\n  Only with its threads in the order of seed {number}.")]
        report.orders += 1
        report.issues += found
        if found:  # one order that differs proves it
            break
    memory.restore(result)
    return report


def only_written(trace: Trace) -> tuple[str, ...]:
    """Names of the parameters that the launch writes and never reads."""
    accesses = trace.accesses
    read, written = (np.unique(accesses["array"][accesses["write"] == w]) for w in (False, True))
    numbers = np.setdiff1d(written, read)
    return tuple(trace.arrays[n].name for n in numbers.tolist() if trace.arrays[n].space == GLOBAL)


def check_trace(
    trace: Trace,
    outputs: Collection[str] = (),
    *,
    rewritten: Reasons | None = None,
    partial: Reasons | None = None,
) -> list[Issue]:
    """The races, unwritten reads and gaps in the outputs of a recorded launch that succeeded.

    Of one that failed, pass no outputs: it had no time to fill them. For names and reasons see
    `check_kernel`; ValueError for an output that is not an array.
    """
    t = touches(trace, tuple(outputs))
    found = races(trace, t) + unwritten(trace, t)
    names = [array.name for array in trace.arrays]
    for name in outputs:
        if name not in names:
            raise ValueError(f"{trace.kernel}: no array {name!r}, only {', '.join(names)}")
        skip = {"rewritten"} if name in (rewritten or ()) else set()
        skip |= {"missing"} if name in (partial or ()) else set()
        gaps = coverage(trace, t, names.index(name))
        found += [gap for gap in gaps if gap.kind not in skip]
    return found


# --- other orders


class Memory:
    """The arrays of a launch and what they held before it, to run it again from there.

    The arrays stay the same ones, only their contents are restored; overlaps remain.
    """

    def __init__(self, arrays: dict[str, np.ndarray], outputs: tuple[str, ...]) -> None:
        self.arrays = {name: array for name, array in arrays.items() if array.flags.writeable}
        self.before = self.contents()
        self.empty = [
            name
            for name in outputs
            if name in self.arrays
            and not any(
                np.may_share_memory(arrays[name], other)
                for key, other in arrays.items()
                if key != name
            )
        ]

    def contents(self) -> dict[str, np.ndarray]:
        """A copy of what the arrays hold now."""
        return {name: array.copy() for name, array in self.arrays.items()}

    def restore(self, contents: dict[str, np.ndarray]) -> None:
        """Put `contents` into the arrays."""
        for name, array in self.arrays.items():
            array[...] = contents[name]

    def prepare(self) -> None:
        """As before the launch, the outputs poisoned."""
        self.restore(self.before)
        for name in self.empty:
            self.arrays[name][...] = poison(self.arrays[name].dtype)


def arrays_of(kernel: Any, args: tuple[Any, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays among a launch's arguments, by the names of the kernel's parameters."""
    return _arrays(list(inspect.signature(kernel.py_func).parameters), args)


def _arrays(names: list[str], args: tuple[Any, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays among a launch's arguments, by the names that the simulator gives them."""
    for i, value in enumerate(args):
        name = names[i] if i < len(names) else f"argument {i}"
        value = getattr(value, "value", value)  # of cuda.In, Out, InOut
        value = getattr(value, "_ary", value)  # of cuda.to_device
        if isinstance(value, tuple):
            yield from _arrays([f"{name}[{j}]" for j in range(len(value))], value)
        elif isinstance(value, np.ndarray):
            yield name, value


def _differences(
    trace: Trace, result: dict[str, np.ndarray], other: dict[str, np.ndarray], seed: int
) -> list[Issue]:
    """An issue for each array that has other bits in `other` than in `result`."""
    issues = []
    for name, array in result.items():
        bits, others = (
            np.frombuffer(values[name].tobytes(), np.uint8).reshape(array.size, array.itemsize)
            for values in (result, other)
        )
        differ = np.flatnonzero((bits != others).any(axis=1))
        if not len(differ):
            continue
        index = unraveled(differ[0], array)
        numbers = [i for i, info in enumerate(trace.arrays) if info.name == name]
        writes = trace.accesses["write"] & np.isin(trace.accesses["array"], numbers)
        lines = lines_of(trace, np.flatnonzero(writes))
        where = "".join(f"\n  It is written at {line}" for line in lines)
        issues.append(
            Issue(
                kind="order",
                array=name,
                index=index,
                lines=lines,
                threads=(),
                message=f"{element(name, index)}{more(len(differ))}: {array[index]} with threads "
                f"and blocks in order of their numbers,\n  {other[name][index]} in the order of "
                f"seed {seed}.{where}",
                count=len(differ),
            )
        )
    return issues
