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

What this cannot know: lanes that skip a turn of a loop are paired with the others' next turn, and a
GPU may split a step where lanes have branched. A compiler may also keep in a register what the
source reads twice. Local arrays are left out; a `copy_vec4` (`layers/fast/conv/ptx.py`) is one
step. An asynchronous copy is two: where it is begun and where it is waited for.

What a request costs is told, and counted for many at once, in `traffic.py`; here it is worked out
for one at a time. `sectors` and `ideal` are of global memory, `ways` is the longest queue at a bank
of shared memory (1: no conflict). An atomic operation is shown as a write.
"""

from __future__ import annotations

import heapq
import linecache
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import GLOBAL, LOCAL, SHARED, ArrayInfo, Trace
from tinyconv.lab.requests import BANKS, SECTOR, WORD, starts

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


def sectors_and_ideal(offsets: Iterable[int], itemsize: int, skew: int = 0) -> tuple[int, int]:
    """Of a request to global memory for the elements at `offsets`."""
    distinct = set(offsets)
    starts = [(offset + skew) * itemsize for offset in distinct]
    touched = {byte // SECTOR for start in starts for byte in (start, start + itemsize - 1)}
    return len(touched), -(-len(distinct) * itemsize // SECTOR)


def scattered(lanes: Sequence[int], offsets: Sequence[int], itemsize: int, skew: int = 0) -> bool:
    """Whether a request moves more than one sector beyond what its lanes would need side by side.

    One more is the price of a run that begins in the middle of a sector. Where lanes have branched
    away, what would have been theirs between two neighbours is not held against the others.
    """
    wanted = set(offsets)
    for i in range(1, len(lanes)):
        low, high = sorted(offsets[i - 1 : i + 1])
        if high - low <= lanes[i] - lanes[i - 1]:
            wanted.update(range(low, high))
    return sectors_and_ideal(offsets, itemsize, skew)[0] > -(-len(wanted) * itemsize // SECTOR) + 1


def conflict_ways(lanes: Iterable[int], offsets: Iterable[int], itemsize: int) -> int:
    """The longest queue at a bank, of a request to shared memory.

    Elements of 8 bytes go in two halves of the warp, those of 16 in quarters.
    """
    parts: dict[int, set[int]] = defaultdict(set)
    lanes_at_once = WARP * WORD // max(WORD, itemsize)
    for lane, offset in zip(lanes, offsets, strict=True):
        first = offset * itemsize // WORD
        parts[lane // lanes_at_once].update(range(first, first + max(1, itemsize // WORD)))
    return max(max(Counter(w % BANKS for w in words).values()) for words in parts.values())


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
        blocks = trace.segments["block"][trace.accesses["segment"]]
        self._rows = np.searchsorted(blocks, np.arange(trace.blocks + 1)).tolist()
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
                        self._name(info),
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

    def _name(self, info: ArrayInfo) -> str:
        """The variable that holds a shared array, where its line says so; else the array's name."""
        line = re.fullmatch(r"shared array of line (\d+)", info.name)
        text = linecache.getline(self.trace.file, int(line[1])) if line else ""
        variable = re.match(r"\s*(\w+) = cuda\.shared\.array\(", text)
        return variable[1] if variable else info.name

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
        first, last = self._rows[number : number + 2]
        accesses = trace.accesses[first:last]
        seen: Counter = Counter()
        touched: dict[tuple, list[tuple[int, int, int]]] = defaultdict(list)
        orders: dict[int, dict[int, list[tuple]]] = defaultdict(lambda: defaultdict(list))
        rows: list[tuple[int, int, tuple]] = []
        segments = trace.segments.tolist()
        for row, (array, offset, write, segment, i) in enumerate(accesses.tolist(), first):
            if array not in self._drawn or (trace.instructions[i].atomic and not write):
                continue
            _, thread, epoch, _ = segments[segment]
            width = trace.instructions[i].width(trace.arrays[array].data.itemsize)
            turn, part = divmod(seen[epoch, thread, i, write], width)
            key = epoch, turn, i, write
            seen[epoch, thread, i, write] += 1
            touched[key].append((thread, array, offset))
            orders[epoch][thread] += [key] if part == 0 else []
            rows.append((row, thread, key))
        keys = [key for epoch in sorted(orders) for key in in_program_order(orders[epoch])]
        steps = tuple(
            Step(p, turn, write, tuple(self._requests(touched[epoch, turn, p, write], p)))
            for epoch, turn, p, write in keys
        )
        position = {key: i for i, key in enumerate(keys)}
        marks = []
        done: Counter = Counter()  # by thread: the steps up to the last it has taken part in
        before = 0
        for event in trace.barrier_events:  # they and the accesses are in the order of time
            if event.block != number:
                continue
            while before < len(rows) and rows[before][0] < event.after:
                _, thread, key = rows[before]
                done[thread] = max(done[thread], position[key] + 1)
                before += 1
            after = max(done[thread] for thread in event.threads)
            marks.append(Mark(after, event.call, event.file, event.line))
        return Block(number, steps, tuple(marks))

    def _requests(self, touched: list[tuple[int, int, int]], instruction: int) -> Iterator[Request]:
        groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for thread, array, offset in sorted(touched):
            groups[thread // WARP, array].append((thread % WARP, offset))
        for (warp, array), pairs in groups.items():
            info = self.trace.arrays[array]
            drawn = self.arrays[self._drawn[array]]
            width = self.trace.instructions[instruction].width(drawn.itemsize)
            lanes, offsets = zip(*pairs, strict=True)
            cells = offsets
            if not drawn.in_order:
                indices = [info.index(offset) for offset in offsets]
                cells = tuple(int(np.ravel_multi_index(i, drawn.shape)) for i in indices)
            sectors = ideal = ways = 0
            if info.space == GLOBAL:
                sectors, ideal = sectors_and_ideal(offsets, drawn.itemsize, drawn.skew)
                bad = scattered(lanes, offsets, drawn.itemsize, drawn.skew)
            else:
                wide = [offset // width for offset in offsets[::width]]
                ways = conflict_ways(lanes[::width], wide, drawn.itemsize * width)
                bad = ways > 1
            yield Request(warp, lanes, self._drawn[array], cells, sectors, ideal, ways, bad)

    def step(self, block: int, step: int) -> Step:
        """Step `step`, from 0, of block `block`; ValueError (which counts from 1) if none."""
        steps = self.block(block).steps
        if not 0 <= step < len(steps):
            raise ValueError(
                f"block {block} of {self.trace.kernel} has {len(steps)} steps, "
                f"there is no step {step + 1}"
            )
        return steps[step]


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
