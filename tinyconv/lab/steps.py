"""The steps of a kernel: from the accesses of single threads to what warps ask for at once.

A *request* is what the memory of a GPU is asked for at once: one load or store instruction,
executed by the lanes of one warp together. The simulator runs thread after thread instead, so the
requests have to be put together from its trace. The k-th time that a lane executes an instruction,
counted from the last barrier of the block, is taken to be the same moment as the k-th time of every
other lane.

A *step* is that moment for a whole block: the k-th execution of one instruction between two
barriers, with one request for each warp that takes part (and for each array, should lanes differ in
that). Warps need not be in step on a GPU; side by side they are easier to compare.

Steps are in program order: one comes before another if some thread does them in that order. Where
threads take different branches they may contradict each other, or leave an order open; then lower k
comes first, then the instruction that comes first in the code.

What this cannot know: lanes that skip an iteration of a loop are paired with the others' next one,
and a GPU may split a step where lanes have branched. A compiler may also keep in a register what
the source reads twice. Local arrays are left out; a `copy_vec4` (`layers/fast/conv/ptx.py`) is one
step. An asynchronous copy is two: where it is begun and where it is waited for.

`traffic.py` explains what a request costs, `requests.py` counts it. `sectors` and `ideal` are of
global memory, `ways` is the longest queue at a bank of shared memory (1: no conflict). An atomic
operation is shown as a write.
"""

from __future__ import annotations

import heapq
import linecache
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import LOCAL, SHARED, ArrayInfo, Trace
from tinyconv.lab.requests import READ, SECTOR, costs, lanes_of, numbers, starts

# --- requests


@dataclass(frozen=True)
class Request:
    """What the lanes of one warp ask of one array at once."""

    warp: int
    lanes: tuple[int, ...]
    array: int
    """Of Launch.arrays."""
    cells: tuple[int, ...]
    """For each of `lanes` its element, counted in the order of the indices, last one fastest."""
    sectors: int
    ideal: int
    ways: int
    bad: bool
    """Shown in red: lanes queue at a bank, or are scattered over sectors."""


def scattered(sectors: int, lanes: Sequence[int], offsets: Sequence[int], itemsize: int) -> bool:
    """Whether a request moves more than one sector beyond what its lanes would need side by side.

    One more is the price of a run that begins in the middle of a sector. Where lanes have branched
    away, what would have been theirs between two neighbours is not held against the others.
    """
    wanted = set(offsets)
    for i in range(1, len(lanes)):
        low, high = sorted(offsets[i - 1 : i + 1])
        if high - low <= lanes[i] - lanes[i - 1]:
            wanted.update(range(low, high))
    return sectors > -(-len(wanted) * itemsize // SECTOR) + 1


# --- steps


@dataclass(frozen=True)
class Step:
    """The `occurrence`-th execution of an instruction since the last barrier, by a whole block."""

    instruction: int
    """Of Trace.instructions."""
    occurrence: int
    write: bool
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Mark:
    """A barrier, between two steps."""

    after: int
    """How many steps come before it."""
    call: str
    file: str
    line: int


@dataclass(frozen=True)
class Block:
    """A block's steps and the barriers between them."""

    number: int
    steps: tuple[Step, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Array:
    """An array as it is drawn. A shared one stands for that of every block."""

    name: str
    space: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    in_order: bool
    """Whether neighbours on the page are neighbours in memory."""
    skew: int
    """How many elements of its first sector come before it."""
    values: dict[int | None, np.ndarray]
    """After the launch, flat; by block, or None for an array that all blocks see."""


class Launch:
    """One launch, ready to be drawn: its arrays, and the steps of each block."""

    def __init__(self, title: str, trace: Trace, function: Callable | None = None) -> None:
        self.title = title
        self.trace = trace
        self.function = function
        self.arrays: list[Array] = []
        self._drawn: dict[int, int] = {}  # number in the trace -> number here
        self._draw_arrays()
        self._lanes = lanes_of(trace)
        self._request = numbers(self._lanes["request"], self._lanes["array"])
        self._costs = costs(self._lanes, self._request)
        self._rows = np.searchsorted(self._lanes["block"], np.arange(trace.blocks + 1)).tolist()
        self._blocks: dict[int, Block] = {}

    def _draw_arrays(self) -> None:
        addresses, _ = starts(self.trace)
        known: dict[tuple, int] = {}
        of_block: Counter = Counter()
        for number, info in enumerate(self.trace.arrays):
            if info.space == LOCAL:
                continue
            key: tuple = (number,)
            if info.space == SHARED:  # the n-th one of its block
                key = ("shared", of_block[info.block])
                of_block[info.block] += 1
            if key not in known:
                known[key] = len(self.arrays)
                data = info.data
                self.arrays.append(
                    Array(
                        variable_name(info, self.trace),
                        info.space,
                        data.shape,
                        str(data.dtype),
                        data.itemsize,
                        data.flags.c_contiguous,
                        int(addresses[number]) % SECTOR // data.itemsize,
                        {},
                    )
                )
            self._drawn[number] = known[key]
            self.arrays[known[key]].values[info.block] = np.array(info.data).reshape(-1)

    def block(self, number: int) -> Block:
        """Block `number`; ValueError if there is none."""
        if not 0 <= number < self.trace.blocks:
            raise ValueError(
                f"{self.trace.kernel} was launched with blocks 0 to {self.trace.blocks - 1}, "
                f"there is no block {number}"
            )
        if number not in self._blocks:
            self._blocks[number] = self._make_block(number)
        return self._blocks[number]

    def _make_block(self, number: int) -> Block:
        trace = self.trace
        lanes = self._lanes[slice(*self._rows[number : number + 2])]
        columns = [lanes[name] for name in ("epoch", "occurrence", "instruction")]
        columns.append(lanes["op"] != READ)
        keys = list(zip(*(column.tolist() for column in columns), strict=True))
        orders: dict[int, dict[int, list[tuple]]] = defaultdict(lambda: defaultdict(list))
        of_key: dict[tuple, list[int]] = defaultdict(list)
        threads = lanes["thread"].tolist()
        for at, (key, thread) in enumerate(zip(keys, threads, strict=True), self._rows[number]):
            orders[key[0]][thread].append(key)
            of_key[key].append(at)
        order = [key for epoch in sorted(orders) for key in in_program_order(orders[epoch])]
        steps = tuple(
            Step(i, nth, bool(write), tuple(self._requests(of_key[epoch, nth, i, write])))
            for epoch, nth, i, write in order
        )
        position = {key: i for i, key in enumerate(order)}
        marks = []
        done: Counter = Counter()  # by thread: the steps up to the last it has taken part in
        before = 0
        for event in trace.barrier_events:  # they and the accesses are in the order of time
            if event.block != number:
                continue
            while before < len(lanes) and lanes["row"][before] < event.after:
                done[threads[before]] = max(done[threads[before]], position[keys[before]] + 1)
                before += 1
            after = max(done[thread] for thread in event.threads)
            marks.append(Mark(after, event.call, event.file, event.line))
        return Block(number, steps, tuple(marks))

    def _requests(self, rows: list[int]) -> Iterator[Request]:
        """Those that `rows` of the lanes make, which execute an instruction together."""
        lanes, request = self._lanes[rows], self._request[rows]
        for number in np.unique(request).tolist():
            own = np.sort(lanes[request == number], order="thread")
            array, width, shared = own[["array", "width", "shared"]][0].tolist()
            info, drawn = self.trace.arrays[array], self.arrays[self._drawn[array]]
            lane = np.repeat(own["thread"] % WARP, width).tolist()
            offsets = (own["offset"][:, None] + np.arange(width)).ravel().tolist()
            cells = offsets
            if not drawn.in_order:
                indices = [info.index(offset) for offset in offsets]
                cells = [int(np.ravel_multi_index(i, drawn.shape)) for i in indices]
            sectors, ideal, _, ways, _ = (int(cost[number]) for cost in self._costs)
            bad = ways > 1 if shared else scattered(sectors, lane, offsets, drawn.itemsize)
            yield Request(
                *(int(own["thread"][0]) // WARP, tuple(lane), self._drawn[array], tuple(cells)),
                *(sectors, ideal, ways, bad),
            )

    def step(self, block: int, step: int) -> Step:
        """Step `step`, from 0, of block `block`; ValueError (which counts from 1) if none."""
        steps = self.block(block).steps
        if not 0 <= step < len(steps):
            raise ValueError(
                f"block {block} of {self.trace.kernel} has {len(steps)} steps, "
                f"there is no step {step + 1}"
            )
        return steps[step]


def variable_name(info: ArrayInfo, trace: Trace) -> str:
    """The variable that holds a shared array, where its line says so; else the array's name."""
    line = re.fullmatch(r"shared array of line (\d+)", info.name)
    text = linecache.getline(trace.file, int(line[1])) if line else ""
    variable = re.match(r"\s*(\w+) = cuda\.shared\.array\(", text)
    return variable[1] if variable else info.name


def in_program_order(threads: dict[int, list[tuple]]) -> list[tuple]:
    """The keys (..., k, instruction, write) in an order that suits every thread, if one exists."""
    before: dict[tuple, set[tuple]] = {key: set() for keys in threads.values() for key in keys}
    for keys in threads.values():
        for one, following in zip(keys, keys[1:], strict=False):
            before[following].add(one)
    after: dict[tuple, set[tuple]] = {key: set() for key in before}
    for key, earlier in before.items():
        for one in earlier:
            after[one].add(key)
    left = set(before)
    ready = [key for key in left if not before[key]]
    heapq.heapify(ready)
    order = []
    while left:
        key = heapq.heappop(ready) if ready else min(_first_knot(left, before, after))
        left.remove(key)
        order.append(key)
        for following in after[key]:
            before[following].discard(key)
            if not before[following] and following in left:
                heapq.heappush(ready, following)
    return order


def _first_knot(left: set[tuple], before: dict, after: dict) -> set[tuple]:
    """Keys that each come before all others of them, by some thread's word, and after none else.

    Of a depth-first walk the key that is finished last can be reached from no other knot; its own
    knot are the keys from which it can be reached.
    """
    seen: set[tuple] = set()
    last = next(iter(left))
    for start in sorted(left):
        if start not in seen:
            seen |= _reached(start, left - seen, after)
            last = start
    return _reached(last, left, before)


def _reached(start: tuple, allowed: set[tuple], edges: dict) -> set[tuple]:
    found, todo = {start}, [start]
    while todo:
        for key in edges[todo.pop()]:
            if key in allowed and key not in found:
                found.add(key)
                todo.append(key)
    return found
