"""Who loads, stores and owns what in one block: a launch on numbered arrays.

Each element of each float32 array has a number of its own. After the launch shared memory holds the
last k-tile, and every number there names the element that it came from; so do the numbers that a
lane holds in registers. Who stored it, and who wrote an output, is in the trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layers import simulator
from layers.simulator.arrays import WARP
from layers.simulator.trace import GLOBAL, LOCAL, SHARED, ArrayInfo, Trace


@dataclass
class Numbered:
    """A launch on numbered arrays, and what one of its blocks left in shared memory."""

    trace: Trace
    firsts: list[int]
    """The number of the first element of each array of `names`, ascending."""
    names: list[str]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of arrays that the kernel takes flat."""

    def origins(self, values: np.ndarray) -> list[tuple[str, int] | None]:
        """For each number of 32 bits the element, (array, offset), that had it; else None."""
        found: list[tuple[str, int] | None] = []
        for value in values.reshape(-1).view(np.float32).tolist():
            if not value >= 1:  # zeros of the padding, and poison
                found.append(None)
                continue
            at = int(np.searchsorted(self.firsts, value, "right")) - 1
            found.append((self.names[at], int(value) - self.firsts[at]))
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an argument, as the layer has it."""
        data = next(a.data for a in self.trace.arrays if a.space == GLOBAL and a.name == name)
        return self.shapes.get(name, data.shape)


def numbered(
    kernel: Any, grid: Any, block: Any, args: tuple[Any, ...], shapes: Mapping[str, tuple[int, ...]]
) -> Numbered:
    """Launch `kernel[grid, block]` on arrays like those of `args`, numbered from 1 on."""
    parameters = kernel.fn.__code__.co_varnames
    firsts, names, arguments, free = [], [], list(args), 1
    for at, argument in enumerate(args):
        if isinstance(argument, np.ndarray) and argument.dtype == np.float32:
            numbers = np.arange(free, free + argument.size, dtype=np.float32)
            arguments[at] = numbers.reshape(argument.shape)
            firsts.append(free)
            names.append(parameters[at])
            free += argument.size
    assert free < 1 << 24  # exact in float32
    with simulator.record() as traces:
        kernel[grid, block](*arguments)
    return Numbered(traces[0], firsts, names, shapes)


@dataclass
class Tile:
    """Who loads, stores and owns what in block 0."""

    run: Numbered
    loads: dict[str, dict[int, set[int]]]
    """By array: of each element of the last k-tile the threads that loaded it."""
    stores: list[tuple[ArrayInfo, dict[int, int]]]
    """Of each shared array: of each word that holds an element, the thread that stored it."""
    owns: dict[str, dict[int, set[int]]]
    """By array: of each output the thread that writes it."""
    reads: list[dict[int, set[int]]]
    """Of each shared array: of each word the threads that read it between the last two barriers."""


def tile_of(run: Numbered) -> Tile:
    """What `run` tells of block 0."""
    trace = run.trace
    thread_of, block_of = (
        trace.segments[n][trace.accesses["segment"]] for n in ("thread", "block")
    )
    epoch = trace.segments["epoch"][trace.accesses["segment"]]
    in_block = block_of == 0
    loads: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    owns: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    stores, reads = [], []
    for number, info in enumerate(trace.arrays):
        rows = np.flatnonzero(in_block & (trace.accesses["array"] == number))
        write, offset = (trace.accesses[name][rows] for name in ("write", "offset"))
        if info.space == GLOBAL and info.name not in owns:
            for at, thread in zip(
                offset[write].tolist(), thread_of[rows[write]].tolist(), strict=True
            ):
                owns[info.name][at].add(thread)
        elif info.space == SHARED and info.block == 0:
            last = dict(zip(offset[write].tolist(), thread_of[rows[write]].tolist(), strict=True))
            origins = run.origins(info.data)
            held = {at: thread for at, thread in last.items() if origins[at]}
            for at, thread in held.items():
                name, element = origins[at] or ("", 0)
                loads[name][element].add(thread)
            stores.append((info, held))
            late = rows[~write]
            late = late[epoch[late] == epoch[late].max(initial=0)]
            seen: dict[int, set[int]] = defaultdict(set)
            for at, thread in zip(
                trace.accesses["offset"][late].tolist(), thread_of[late].tolist(), strict=True
            ):
                seen[at].add(thread)
            reads.append(seen)
    return Tile(run, loads, stores, {name: dict(o) for name, o in owns.items() if o}, reads)


def fragments(run: Numbered, warp: int, source: str, words: int) -> dict[int, set[int]]:
    """Which lane holds which element of `source` in the first `words` words of its last fragment.

    A lane's last local array that holds elements of `source` and nothing else is its fragment.
    """
    lanes: dict[int, set[int]] = defaultdict(set)
    last: dict[int, list[tuple[str, int] | None]] = {}
    for info in run.trace.arrays:
        if info.space == LOCAL and info.block == 0 and (info.thread or 0) // WARP == warp:
            words_held = info.data.dtype == np.uint32
            origins = run.origins(info.data)
            if words_held and all(origin and origin[0] == source for origin in origins):
                last[(info.thread or 0) % WARP] = origins
    for lane, origins in last.items():
        for origin in origins[:words]:
            assert origin is not None
            lanes[origin[1]].add(lane)
    return dict(lanes)
