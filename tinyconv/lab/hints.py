"""Hints for learners: what leads from an issue of a kernel to its fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from layers.simulator.trace import GLOBAL
from tinyconv.lab.issues import Issue, Report, element

COMPILE = "the simulator runs any Python; a GPU knows numbers, arrays, loops and branches."
FLOAT_INDEX = "an index has to be a whole number: // gives one, / gives a float."
GUARD = "which threads have no element? They have to return before they touch an array."
NEGATIVE = "a negative index is outside the array: only NumPy counts from the end."
BARRIER = (
    "every thread of a block has to reach the same syncthreads(): no return before it, and no "
    "branch around it."
)
OWNER = "let one thread own each output: it gathers what others have, none scatters to it."
WITHIN_BLOCK = (
    "threads with one number in two blocks own one output: threadIdx counts within a block, "
    "cuda.grid(1) over all of them."
)
SHARED_RACE = (
    "a barrier, cuda.syncthreads(), has to stand between one thread's write and another's read, "
    "and between that read and the next write."
)
UNWRITTEN = "fill all of an array before you read it."
MISSING = (
    "no thread owns these outputs, or a branch skips the write. Compare your index with the number "
    "of threads."
)
SEVERAL = "several threads own one output."
ALL_AXES = "Does your index use all of n, h, w and c?"


def hint(
    issue: Issue, report: Report, results: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> str:
    """The hint for an issue, or "".

    results: the arguments by name; outputs: the names of those that the kernel fills or updates.
    """
    if issue.kind == "index":
        return _of_index(issue, report, results, outputs)
    if issue.kind == "race" and not issue.array.isidentifier():
        return SHARED_RACE
    if issue.kind in ("race", "rewritten"):
        if _same_in_two_blocks(issue):
            return WITHIN_BLOCK
        axes = f" {ALL_AXES}" if getattr(results.get(issue.array), "ndim", 0) == 4 else ""
        return (OWNER if issue.kind == "race" else SEVERAL) + axes
    if issue.kind == "missing":
        inputs = _written_inputs(report, outputs)
        return f"it writes {', '.join(inputs)}, which is an input." if inputs else MISSING
    if issue.kind == "compile":
        float_index = "item" in issue.message and "float64" in issue.message
        return FLOAT_INDEX if float_index else COMPILE
    return {"barrier": BARRIER, "unwritten": UNWRITTEN}.get(issue.kind, "")


def _of_index(
    issue: Issue, report: Report, results: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> str:
    if issue.index is None or not issue.threads:
        return GUARD
    if min(issue.index) < 0:
        return NEGATIVE
    worker, array = issue.threads[0], results.get(issue.array)
    flat = report.grid[1:] == report.block[1:] == (1, 1)
    number = worker.block[0] * report.block[0] + worker.thread[0]
    if not flat or not isinstance(array, np.ndarray) or number >= results[outputs[0]].size:
        return GUARD
    for axis, (i, length) in enumerate(zip(issue.index, array.shape, strict=True)):
        if i >= length:
            return (
                f"this thread has an output of its own, so the guard is right: its index leaves "
                f"axis {axis} of {issue.array}, {i} of {length}."
            )
    return GUARD


def _same_in_two_blocks(issue: Issue) -> bool:
    """Whether threads of two blocks with the same number in their block are concerned."""
    blocks, threads = ({getattr(w, name) for w in issue.threads} for name in ("block", "thread"))
    return len(blocks) > 1 and len(threads) == 1


def _written_inputs(report: Report, outputs: Sequence[str]) -> list[str]:
    """Global arrays that the launch writes, though they are no outputs."""
    trace = report.trace
    if trace is None:
        return []
    written = np.unique(trace.accesses["array"][trace.accesses["write"]]).tolist()
    arrays = [trace.arrays[number] for number in written]
    return [a.name for a in arrays if a.space == GLOBAL and a.name not in outputs]


def shifted(name: str, expected: np.ndarray, got: np.ndarray, wrong: np.ndarray) -> str:
    """Whose number the first wrong element has, if nearly all wrong ones have one of another's.

    "" if they do not: then it would be chance.
    """
    values = np.sort(expected[np.isfinite(expected)], axis=None)
    found = got[wrong]
    if not values.size or not np.isfinite(found).all():
        return ""
    at = (
        np.clip(np.searchsorted(values, found), 1, values.size - 1)
        if values.size > 1
        else found * 0
    )
    at = at.astype(int)
    near = np.minimum(abs(values[at] - found), abs(values[at - 1] - found))
    others = np.argwhere(np.isclose(expected, found[0], rtol=1e-6, atol=0))
    alike = np.mean(near <= 1e-6 * np.maximum(1e-6, abs(found)))
    if alike < 0.8 or len(others) != 1:
        return ""
    return (
        f"  that is what {element(name, tuple(others[0].tolist()))} has to be: is an index shifted?"
    )
