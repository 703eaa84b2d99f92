"""Data races in a recorded launch.

A *race*: two threads touch the same element, at least one of them writes, and nothing says which
comes first. Then a GPU may do it either way, and differently tomorrow. A result that happens to
be right proves nothing; nor does it help that both write the same value: the language calls that
undefined all the same, and a compiler may rely on there being none.

What orders two accesses of different threads, within one launch:

    a barrier of the block      `syncthreads` between the two. The trace counts them: accesses of
                                one block in different *epochs* are ordered.
    a barrier of lanes          `syncwarp(mask)`, for the lanes that met there; and onwards, as
                                order is handed on: if A meets B and later B meets C, then what A
                                did before comes before what C does after.
    nothing else                no two blocks are ever ordered, whatever their numbers; lanes of a
                                warp are not, even if an old GPU ran them in lockstep; and that the
                                one happened to run first today is no order.

How it is found. The simulator runs one thread at a time, so it never sees two at once; but it has
noted who touched what, and between which barriers. The accesses are sorted by address, so that
those of one element are neighbours, and cut into runs of one block and epoch. A run with a write
and two different threads is a race, unless barriers of lanes came in between. Where there were
any, each stretch of each lane gets a *vector clock*: how many stretches of every other lane are
certain to have come before it. At a `syncwarp` every lane takes the largest of all clocks; an
access comes before another if the clock of the second counts the stretch of the first.

An asynchronous copy (`layers/fast/conv/ptx.py`) writes its target twice here, where it is begun and
where it is waited for: on a GPU it may be at either moment, and has to be ordered at both.

An element is its address, for two parameters may be the same memory, in part or in whole. Calls
of `cuda.atomic` do not race with each other, but do with plain reads and writes.

What cannot be found: races that only other data, or other sizes, would bring about; order made by
other means (a flag in memory with fences, a cooperative grid), which is reported as a race though
a careful author may have got it right; views of one memory with elements of different sizes that
overlap only in part, as each element is known by its first byte alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import GLOBAL, Trace
from tinyconv.lab.issues import (
    Issue,
    described,
    element,
    element_of,
    issue_at,
    line_numbers,
    more,
    worker_of,
)

PAIRS_AT_ONCE = 1_000_000


@dataclass
class Touches:
    """The accesses of a launch, sorted: by address, and in order of time for each address.

    Left out are arrays that are only read, unless `empty` says that they hold nothing at first.
    """

    address: np.ndarray
    row: np.ndarray
    """In the trace's table of accesses."""
    write: np.ndarray
    segment: np.ndarray
    empty: np.ndarray
    """Whether the element's array held nothing when the launch, or the block, began."""
    starts: np.ndarray
    """Where the touches of a new address begin."""
    memory: np.ndarray
    """Of each array of the trace, the memory that it is part of."""
    clocks: np.ndarray
    """The vector clock of each segment of the trace."""


def memories(trace: Trace) -> np.ndarray:
    """A number for each array of the trace: arrays of the same number overlap in memory."""
    if not trace.arrays:
        return np.empty(0, np.int64)
    bounds = np.array(
        [
            # The general answer takes its time, and there may be a local array of each thread.
            (array.address, array.address + array.data.nbytes)
            if array.data.flags.c_contiguous
            else np.lib.array_utils.byte_bounds(array.data)
            for array in trace.arrays
        ]
    )
    order = np.argsort(bounds[:, 0], kind="stable")
    # In order of their first bytes, a new memory begins where all arrays so far have ended.
    reach = np.maximum.accumulate(bounds[order, 1])
    new = bounds[order[1:], 0] >= reach[:-1]
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(new)])
    return numbers


def _empty_arrays(trace: Trace, memory: np.ndarray, outputs: tuple[str, ...]) -> np.ndarray:
    """Of each array of the trace, whether it holds nothing at first.

    That is so for shared and local memory, and for parameters named in `outputs`, except for
    those that overlap another parameter: they hold what that one holds.
    """
    shared_by = np.bincount(memory, [array.space == GLOBAL for array in trace.arrays])
    return np.array(
        [
            array.space != GLOBAL or (array.name in outputs and shared_by[number] == 1)
            for array, number in zip(trace.arrays, memory, strict=True)
        ],
        bool,
    )


def touches(trace: Trace, outputs: tuple[str, ...]) -> Touches:
    """The sorted accesses of `trace`."""
    accesses, memory = trace.accesses, memories(trace)
    empty = _empty_arrays(trace, memory, outputs)
    array = accesses["array"]
    write = accesses["write"]
    written = np.bincount(memory[array[write]], minlength=len(memory)) > 0
    row = np.flatnonzero((written[memory] | empty)[array])
    array = array[row]
    first = np.array([info.address for info in trace.arrays], np.int64)
    size = np.array([info.data.itemsize for info in trace.arrays], np.int64)
    address = first[array] + accesses["offset"][row] * size[array]
    order = np.argsort(address, kind="stable")
    address, row = address[order], row[order]
    return Touches(
        address=address,
        row=row,
        write=write[row],
        segment=accesses["segment"][row],
        empty=empty[array[order]],
        starts=np.flatnonzero(np.diff(address, prepend=-1)),
        memory=memory,
        clocks=_clocks(trace),
    )


def races(trace: Trace, sorted_touches: Touches) -> list[Issue]:
    """One issue for each array and pair of lines that race."""
    t = sorted_touches
    if not len(t.row):
        return []
    segments = trace.segments[t.segment]
    block, thread = segments["block"], segments["thread"]
    pairs = [_conflicts(trace, t, t.starts, block)]
    # Within an address time runs on, block after block and epoch after epoch.
    begins = np.diff(block, prepend=-1) != 0
    begins |= np.diff(segments["epoch"], prepend=-1) != 0
    begins[t.starts] = True
    runs = np.flatnonzero(begins)
    if any(event.call == "syncwarp" for event in trace.barrier_events):
        pairs.append(_unordered_lanes(trace, t, runs, thread))
    else:
        pairs.append(_conflicts(trace, t, runs, thread))
    return _issues(trace, t, np.concatenate(pairs))


def _suspects(t: Touches, starts: np.ndarray, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Touches in runs with a write and more than one `who`; and the number of the run of each."""
    lengths = np.diff(starts, append=len(who))
    suspect = np.logical_or.reduceat(t.write, starts)
    suspect &= np.minimum.reduceat(who, starts) != np.maximum.reduceat(who, starts)
    chosen = np.flatnonzero(np.repeat(suspect, lengths))
    return chosen, np.repeat(np.arange(len(starts)), lengths)[chosen]


def _conflicts(trace: Trace, t: Touches, starts: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Pairs of touches in one run that race, as rows of (first, second).

    `who`: of each touch the thread, or the block; different ones are unordered. Of each run and
    pair of instructions one pair is enough, so an instruction's touches in a run are represented
    by those of the smallest and of the largest `who`.
    """
    chosen, run = _suspects(t, starts, who)
    if not len(chosen):
        return np.empty((0, 2), np.int64)
    kind = trace.accesses["instruction"][t.row[chosen]] * 2 + t.write[chosen]
    order = np.lexsort((who[chosen], kind, run))
    chosen, run, kind = chosen[order], run[order], kind[order]
    new = (np.diff(run, prepend=-1) != 0) | (np.diff(kind, prepend=-1) != 0)
    low = np.flatnonzero(new)
    high = np.append(low[1:], len(chosen)) - 1
    run, low, high = run[low], chosen[low], chosen[high]
    pairs = []
    for distance in range(len(run)):
        same = np.flatnonzero(run[: len(run) - distance] == run[distance:])
        if not len(same):
            break
        other = same + distance
        for a, b in ((low[same], high[other]), (high[same], low[other])):
            pairs.append(np.stack([a, b], axis=1)[who[a] != who[b]])
    return _racing(trace, t, np.concatenate(pairs))


def _racing(trace: Trace, t: Touches, pairs: np.ndarray) -> np.ndarray:
    """Those of `pairs` with a write in them, and not both of them atomic."""
    atomic = np.array([each.atomic for each in trace.instructions])[trace.accesses["instruction"]]
    a, b = pairs[:, 0], pairs[:, 1]
    both = atomic[t.row[a]] & atomic[t.row[b]]
    return pairs[(t.write[a] | t.write[b]) & ~both]


def _unordered_lanes(trace: Trace, t: Touches, runs: np.ndarray, thread: np.ndarray) -> np.ndarray:
    """Pairs of touches in one run that race, with the clocks of lanes: every write with all."""
    chosen, run = _suspects(t, runs, thread)
    first = np.searchsorted(run, run, "left")
    length = np.searchsorted(run, run, "right") - first
    writes = np.flatnonzero(t.write[chosen])
    pairs = [np.empty((0, 2), np.int64)]
    # As many writes at a time as have about PAIRS_AT_ONCE partners.
    parts = np.cumsum(length[writes]) // PAIRS_AT_ONCE
    for part in np.split(writes, np.flatnonzero(np.diff(parts)) + 1):
        if not len(part):
            continue
        n = length[part]
        within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        a, b = chosen[np.repeat(part, n)], chosen[np.repeat(first[part], n) + within]
        racing = _racing(trace, t, np.stack([a, b], axis=1)[~ordered(trace, t, a, b)])
        # One pair of each run and pair of instructions is enough.
        kind = trace.accesses["instruction"][t.row[racing]] * 2 + t.write[racing]
        kinds = 2 * len(trace.instructions)
        run_of = np.searchsorted(runs, racing[:, 0], "right")
        key = (run_of * kinds + kind[:, 0]) * kinds + kind[:, 1]
        pairs.append(racing[np.unique(key, return_index=True)[1]])
    return np.concatenate(pairs)


def ordered(trace: Trace, t: Touches, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pairs of touches, whether one is certain to come before the other."""
    one, other = trace.segments[t.segment[a]], trace.segments[t.segment[b]]
    by_barrier = (one["thread"] == other["thread"]) | (one["epoch"] != other["epoch"])
    before = t.clocks[t.segment[b], one["thread"] % WARP] > one["warp_epoch"]
    after = t.clocks[t.segment[a], other["thread"] % WARP] > other["warp_epoch"]
    by_lanes = (one["thread"] // WARP == other["thread"] // WARP) & (before | after)
    return (one["block"] == other["block"]) & (by_barrier | by_lanes)


def _clocks(trace: Trace) -> np.ndarray:
    """Of each segment, how many stretches of each lane of its warp are certain to come before.

    A lane's stretches are counted from 0, from one `syncwarp` to its next, through the whole life
    of its block; where block barriers cut one of them, its parts have the same clock.
    """
    now: dict[tuple[int, int], np.ndarray] = {}
    nothing = np.zeros(WARP, np.int32)
    stretches: dict[tuple[int, int, int], np.ndarray] = {}
    for event in trace.barrier_events:
        if event.call != "syncwarp":
            continue
        met = [(event.block, thread) for thread in event.threads]
        joined = np.max([now.get(who, nothing) for who in met], axis=0)
        for _, thread in met:
            # Its stretch so far has ended; only its own barriers move a lane's own count.
            joined[thread % WARP] = now.get((event.block, thread), nothing)[thread % WARP] + 1
        for who in met:
            now[who] = joined
            stretches[who[0], who[1], int(joined[who[1] % WARP])] = joined
    clocks = np.zeros((len(trace.segments), WARP), np.int32)
    if not stretches:
        return clocks
    for row, (block, thread, _, stretch) in enumerate(trace.segments.tolist()):
        clocks[row] = stretches.get((block, thread, stretch), nothing)
    return clocks


def _issues(trace: Trace, t: Touches, pairs: np.ndarray) -> list[Issue]:
    """The pairs by array and lines: the earliest as an example, the number of elements."""
    if not len(pairs):
        return []
    rows = np.sort(t.row[pairs], axis=1)
    names = [array.name for array in trace.arrays]
    # Parameters for the same memory go by the name of the first of them.
    _, first, memory = np.unique(t.memory, return_index=True, return_inverse=True)
    number = np.array([names.index(names[array]) for array in first[memory]])
    name = number[trace.accesses["array"][rows[:, 0]]]
    does = line_numbers(trace)[trace.accesses["instruction"][rows]] * 2
    does = np.sort(does + trace.accesses["write"][rows], axis=1)
    keys, which = np.unique(np.column_stack([name, does]), axis=0, return_inverse=True)
    issues = []
    for key in range(len(keys)):
        group = np.flatnonzero(which.ravel() == key)
        example = group[np.lexsort((rows[group, 1], rows[group, 0]))[0]]
        count = len(np.unique(t.address[pairs[group, 0]]))
        issues.append((rows[example].tolist(), count))
    return [_issue(trace, a, b, count) for (a, b), count in sorted(issues)]


def _issue(trace: Trace, a: int, b: int, count: int) -> Issue:
    name, index = element_of(trace, a)
    alias, place = element_of(trace, b)
    what = element(name, index)
    if (alias, place) != (name, index):
        what += f", which is also {element(alias, place)}"
    if worker_of(trace, a).block != worker_of(trace, b).block:
        why = "Blocks of one launch are never ordered."
    else:
        why = "No barrier that orders the two stands between them."
    if trace.accesses["write"][[a, b]].all():
        why += " Writing the same value would be a race all the same."
    message = f"{what}{more(count)}:\n  {described(trace, a)}\n  {described(trace, b)}\n  {why}"
    return issue_at(trace, "race", (a, b), message, count)
