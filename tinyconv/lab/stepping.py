"""Stop in the one thread of a kernel that owns an output, and step through it.

    step(kernel, grid, block, args, "y", (1, 2, 3, 0))

runs the launch twice: once recorded, to find the thread that writes y[1, 2, 3, 0] and what it
reads, and once under pdb, which stops at that thread's first line.
"""

from __future__ import annotations

import pdb
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from layers import simulator
from layers.simulator import Trace
from layers.simulator.intrinsics import skip_patterns
from layers.simulator.trace import GLOBAL
from tinyconv.lab.checks import Memory, arrays_of, only_written
from tinyconv.lab.issues import Worker, element, line_at, worker_of

WHAT_TO_TYPE = """\
Type at the prompt, and press Enter after each:

    n                     run this line and show the next; s also steps into a function
    p index               print a variable, or any expression; with p, for n, c, p, q, h and w
                          alone are commands
    until LINE            run up to this line of the file
    ll                    show the whole kernel, with an arrow at this line
    c                     continue to the end
    q                     quit
"""

SHOWN = 6
"""Of the elements that one line reads."""


def step(
    kernel: Any,
    grid: Any,
    block: Any,
    args: tuple[Any, ...],
    output: str | None = None,
    index: tuple[int, ...] | None = None,
    shared_bytes: int = 0,
) -> None:
    """Stop in the thread that writes element `index` of the parameter `output`.

    output: None for the first parameter that the launch writes and does not read, else writes.
    index: None for its first element.
    ValueError if there is no such array, or element, or if no thread writes it; bdb.BdbQuit if the
    user quits.
    """
    memory = Memory(dict(arrays_of(kernel, args)), ())
    launch = kernel[grid, block, 0, shared_bytes]
    with simulator.record() as traces:
        try:
            launch(*args)
        except simulator.SimulatorError as error:
            print(f"the kernel fails: {error}\n")
    memory.restore(memory.before)
    (trace,) = traces
    name = output or first_output(trace)
    if index is None:
        index = (0,) * next((a.data.ndim for a in trace.arrays if a.name == name), 0)
    row = writer_of(trace, name, index)
    worker = worker_of(trace, row)
    number = trace.segments[trace.accesses["segment"][row]]
    print(f"{trace.kernel}, grid {grid}, block {block}: {element(name, index)} is written by")
    print(f"{worker} (number {number['thread']} of block {number['block']}). It reads")
    for line in reads_of(trace, int(number["block"]), int(number["thread"])):
        print(f"    {line}")
    print(f"\n{WHAT_TO_TYPE}", flush=True)
    call_with_breakpoint(kernel, condition(kernel, worker), launch, *args)


def first_output(trace: Trace) -> str:
    """The parameter that `step` is about if none is named."""
    written = np.unique(trace.accesses["array"][trace.accesses["write"]])
    names = [trace.arrays[n].name for n in written.tolist() if trace.arrays[n].space == GLOBAL]
    if not names:
        raise ValueError(f"{trace.kernel}: this launch writes no array")
    return (*only_written(trace), *names)[0]


def writer_of(trace: Trace, name: str, index: tuple[int, ...]) -> int:
    """The row of the access that first writes an element; ValueError as in `step`."""
    arrays = {array.name: n for n, array in enumerate(trace.arrays) if array.space == GLOBAL}
    if name not in arrays:
        raise ValueError(f"{trace.kernel} has no array {name!r}, only {', '.join(arrays)}")
    shape = trace.arrays[arrays[name]].data.shape
    if len(index) != len(shape) or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
        last = ",".join(str(side - 1) for side in shape)
        raise ValueError(
            f"{name} has the shape {shape}: there is no element {','.join(map(str, index))}, but "
            f"{','.join('0' * len(shape))} to {last} (--shape SHAPE makes "
            "the input of a layer here larger)"
        )
    data = trace.arrays[arrays[name]].data
    offset = sum(i * s // data.itemsize for i, s in zip(index, data.strides, strict=True))
    accesses = trace.accesses
    rows = np.flatnonzero(
        accesses["write"] & (accesses["array"] == arrays[name]) & (accesses["offset"] == offset)
    )
    if not len(rows):
        raise ValueError(f"no thread of {trace.kernel} writes {element(name, index)}")
    return int(rows[0])


def reads_of(trace: Trace, block: int, thread: int) -> list[str]:
    """For each line at which a thread reads an array: the elements, and the line."""
    segments = np.flatnonzero(
        (trace.segments["block"] == block) & (trace.segments["thread"] == thread)
    )
    chosen = np.isin(trace.accesses["segment"], segments) & ~trace.accesses["write"]
    found: dict[tuple[int, int], dict[tuple[int, ...], None]] = {}
    for access in trace.accesses[chosen]:
        index = trace.arrays[access["array"]].index(int(access["offset"]))
        found.setdefault((int(access["instruction"]), int(access["array"])), {})[index] = None
    text = []
    for (instruction, array), elements in found.items():
        info, shown = trace.arrays[array], list(elements)
        if info.space != GLOBAL:
            what = f"{len(shown)} element{'s' * (len(shown) > 1)} of the {info.name}"
        else:
            what = ", ".join(element(info.name, index) for index in shown[:SHOWN])
            if len(shown) > SHOWN:
                what += f", and {len(shown) - SHOWN} more"
        text.append(f"{what}\n        at {line_at(trace.instructions[instruction])}")
    return text or ["nothing"]


def condition(kernel: Any, worker: Worker) -> str:
    """What holds in this thread alone, in the words of the kernel's own source."""
    from layers.device import cuda

    names = kernel.py_func.__globals__
    name = next(name for name, value in names.items() if value is cuda)
    places = (("threadIdx", worker.thread), ("blockIdx", worker.block))
    return " and ".join(
        f"{name}.{place}.{axis} == {at}"
        for place, position in places
        for axis, at in zip("xyz", position, strict=True)
    )


def call_with_breakpoint(
    kernel: Any, when: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    """function(*arguments); pdb stops at the top of `kernel` where the condition `when` holds.

    The same as `b kernel, when` and then `c` at the prompt of pdb.
    """
    code = kernel.py_func.__code__
    # Without `skip`, `s` (step into a call) would show how the simulator looks up an index.
    debugger = pdb.Pdb(skip=[*skip_patterns(), "numpy*"])
    debugger.reset()
    problem = debugger.set_break(
        code.co_filename, code.co_firstlineno, cond=when, funcname=code.co_name
    )
    if problem:
        raise RuntimeError(problem)
    debugger.botframe = sys._getframe()  # the outermost frame that pdb shows
    debugger.set_continue()
    sys.settrace(debugger.trace_dispatch)
    try:
        return function(*arguments)
    finally:
        sys.settrace(None)
        debugger.clear_all_breaks()
