"""What a launch leaves out: elements read before they are written, outputs not written, or twice.

Elements are known by their addresses, as in `races.py`; a second parameter for the same memory
makes no difference.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layers.simulator.trace import ArrayInfo, Trace
from tinyconv.lab.issues import (
    Issue,
    Line,
    described,
    element,
    element_of,
    issue_at,
    line_at,
    line_numbers,
    more,
)
from tinyconv.lab.races import Touches, ordered

# --- reads of memory that nothing wrote


def unwritten(trace: Trace, t: Touches) -> list[Issue]:
    """One issue for each array and line that reads what nothing has written before."""
    if not len(t.row):
        return []
    # Of each element, its first write; what was read before that is poison.
    never = len(t.row)
    here = np.arange(never)
    first = np.minimum.reduceat(np.where(t.write, here, never), t.starts)
    first = np.repeat(first, np.diff(t.starts, append=never))
    early = np.flatnonzero(t.empty & ~t.write & (here < first))
    # Where nothing orders the two, they race, which is said elsewhere.
    written = early[first[early] < never]
    racing = written[~ordered(trace, t, written, first[written])]
    early = np.setdiff1d(early, racing)
    lines = line_numbers(trace)
    groups: dict[tuple[str, int], list[int]] = {}
    for at in early[np.argsort(t.row[early])].tolist():
        access = trace.accesses[t.row[at]]
        key = trace.arrays[access["array"]].name, int(lines[access["instruction"]])
        groups.setdefault(key, []).append(at)
    issues = []
    for (name, _), group in groups.items():
        row = int(t.row[group[0]])
        _, index = element_of(trace, row)
        count = len(np.unique(t.address[group]))
        later = "nothing ever writes it" if first[group[0]] == never else "it is written only later"
        message = f"{element(name, index)}{more(count)}:\n  {described(trace, row)}\n"
        message += f"  before anything has written it ({later})."
        issues.append(issue_at(trace, "unwritten", (row,), message, count))
    return issues


# --- coverage: each element of an output is written once


def coverage(trace: Trace, t: Touches, number: int) -> list[Issue]:
    """What of array `number` is never written, or more than once; by any parameter it overlaps."""
    memory = t.memory[trace.accesses["array"][t.row]]
    writes = np.flatnonzero(t.write & (memory == t.memory[number]))
    elements = _addresses(trace.arrays[number]).ravel()
    gaps = np.flatnonzero(~np.isin(elements, t.address[writes]))
    inside = writes[np.isin(t.address[writes], elements)]
    return [
        *_missing(trace, trace.arrays[number], gaps, t.row[writes]),
        *_rewritten(trace, trace.arrays[number], t.row[inside], t.address[inside]),
    ]


def unraveled(number: int, data: np.ndarray) -> tuple[int, ...]:
    """The index of an element by its number in `data`, the last axis fastest."""
    return tuple(int(i) for i in np.unravel_index(number, data.shape))


def _addresses(array: ArrayInfo) -> np.ndarray:
    """The address of each element, in the array's shape."""
    addresses = np.array(array.address)
    for size, stride in zip(array.data.shape, array.data.strides, strict=True):
        addresses = addresses[..., None] + np.arange(size) * stride
    return addresses


def lines_of(trace: Trace, rows: np.ndarray) -> tuple[Line, ...]:
    """The different lines that made the accesses in `rows`."""
    numbers = np.unique(trace.accesses["instruction"][rows])
    return tuple(dict.fromkeys(line_at(trace.instructions[number]) for number in numbers))


def _missing(trace: Trace, array: ArrayInfo, gaps: np.ndarray, writes: np.ndarray) -> list[Issue]:
    if not len(gaps):
        return []
    index = unraveled(gaps[0], array.data)
    lines = lines_of(trace, writes)
    where = "others are written" if len(gaps) < array.data.size else "memory near it is written"
    where = "\n  ".join(f"{where} at {line}" for line in lines) or "no line that ran writes to it"
    return [
        Issue(
            kind="missing",
            array=array.name,
            index=index,
            lines=lines,
            threads=(),
            message=f"{element(array.name, index)}{more(len(gaps))}, of {array.data.size}: "
            f"no thread writes it;\n  {where}",
            count=len(gaps),
        )
    ]


def _rewritten(
    trace: Trace, array: ArrayInfo, rows: np.ndarray, written: np.ndarray
) -> list[Issue]:
    """`rows` are writes of the elements `written`, sorted by these and then by time."""
    again = np.flatnonzero(np.diff(written) == 0)
    lines = line_numbers(trace)[trace.accesses["instruction"][rows]]
    pairs = np.sort(np.stack([lines[again], lines[again + 1]], axis=1), axis=1)
    keys, which = np.unique(pairs, axis=0, return_inverse=True)
    issues = []
    for key in range(len(keys)):
        group = again[which.ravel() == key]
        at = group[np.argmin(rows[group + 1])]  # the first in time
        a, b = rows[at], rows[at + 1]
        name, index = element_of(trace, a)
        count = len(np.unique(written[group]))
        message = f"{element(name, index)}{more(count)}, written more than once:\n"
        message += f"  {described(trace, a)}\n  {described(trace, b)}"
        issue = issue_at(trace, "rewritten", (a, b), message, count)
        issues.append(replace(issue, array=array.name))
    return issues
