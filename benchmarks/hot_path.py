"""The instructions that a thread of a compiled kernel executes: its hot path, out of its SASS.

The listing is divided into basic blocks. Of all paths from the entry to an EXIT the hot one makes
the fewest calls, then moves the most bytes of global memory, then does so by the fewest loads and
stores; of those left it is the longest. So it is the path of a thread inside of the array, through
vectorized rather than scalar accesses; it has the quick half of a 64-bit division (32 bits, without
a call), and skips none. A loop counts as often as `trips` says. A predicated instruction counts
like any other: it takes an issue slot.

This is a static count. `gpu_model.py` makes times of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

LABEL = re.compile(r"(\.L\w+|\$?\S+):\s*$")
CODE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?\w+)\s+)?(.*?)\s*;")
GLOBAL = re.compile(r"^(LDG|STG|LDGSTS|RED|ATOMG)\b")
WIDE = re.compile(r"\.(U8|S8|U16|S16|64|128)\b")
BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
DIVISION = re.compile(r"^CALL\S*\s.*__cuda_sm\d+_(?:div|rem)_[su]64")


Weight = tuple[float, float, float, float]
"""Calls, bytes (negative), loads and stores, instructions (negative): a smaller one is hotter."""
NOTHING: Weight = (0, 0, 0, 0)


@dataclass
class Block:
    """Instructions that follow each other, and the blocks that can follow."""

    lines: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    ends: bool = False
    """Whether the kernel can end after it."""

    @property
    def weight(self) -> Weight:
        """Of all its instructions."""
        calls = sum(line.startswith("CALL") for line in self.lines)
        sizes = [size for size in map(moved, self.lines) if size]
        return calls, -sum(sizes), len(sizes), -len(self.lines)


@dataclass(frozen=True)
class Loop:
    """A loop on the hot path."""

    begin: int
    """Number of its first instruction in the listing."""
    instructions: int
    """Of one round, without those of inner loops."""
    moved: int
    """Bytes of global memory that a thread moves in one round, without inner loops."""
    trips: float
    work: frozenset[str]
    """Kinds of instructions in its blocks, hot or not: "HMMA"."""


@dataclass(frozen=True)
class Path:
    """What one thread executes."""

    instructions: float
    moved: float
    """Bytes of global memory, as its loads and stores ask for them."""
    loops: tuple[Loop, ...]
    divisions: int
    """Divisions in 64 bits, anywhere in the kernel."""


def moved(line: str) -> int:
    """Bytes that an instruction loads from global memory, or stores there."""
    if not GLOBAL.match(line):
        return 0
    wide = WIDE.search(line.split()[0])
    return BYTES[wide[1]] if wide else 4


def blocks_of(listing: str) -> tuple[list[Block], list[int]]:
    """The blocks in order, and the number of the instruction that each begins with."""
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(lines)
        elif code := CODE.match(line):
            lines.append((code[1] or "", code[2]))
    targets: dict[int, int] = {}
    for place, (_, text) in enumerate(lines):
        if text.startswith("BRA") and (to := re.search(r"(\.L\w+)\)?\s*$", text)):
            targets[place] = labels[to[1]]
    jumps = [p for p, (_, text) in enumerate(lines) if re.match(r"BRA|EXIT|RET|BRX|JMP", text)]
    starts = sorted({0, *labels.values(), *targets.values(), *(p + 1 for p in jumps)})
    starts = [start for start in starts if start < len(lines)]
    number = {start: i for i, start in enumerate(starts)}
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        block = Block([text for guard, text in lines[start:end] if guard != "@!PT"])
        guard, last = lines[end - 1]
        conditional = bool(guard) or bool(re.match(r"BRA\S*\s+!?U?P\d", last))
        if end - 1 in targets:
            block.after.append(number[targets[end - 1]])
        block.ends = last.startswith(("EXIT", "RET"))
        falls = not re.match(r"BRA|EXIT|RET|BRX|JMP", last) or conditional
        if falls and end in number:
            block.after.append(number[end])
        blocks.append(block)
    return blocks, starts


def hot_path(listing: str, trips: Sequence[float] = ()) -> Path:
    """The hot path of the kernel whose SASS this is.

    trips: how often each loop runs, in the order in which loops begin in the listing, inner ones
    among them; 1 for those that `trips` is too short for. ValueError if there is no path to EXIT.
    """
    blocks, starts = blocks_of(listing)
    nodes = _reachable(blocks, set(range(len(blocks))), 0)
    headers = sorted(_headers(blocks, nodes, -1))
    counts = dict(zip(headers, [*trips, *[1.0] * len(headers)], strict=False))
    best = _walk(blocks, nodes, 0, -1, counts)
    if best is None:
        raise ValueError("no path leads from the kernel's entry to EXIT")
    loops = [
        Loop(starts[header], round(-turn[3]), round(-turn[1]), counts[header], best.work[header])
        for header, turn in sorted(best.loops.items())
    ]
    divisions = sum(bool(DIVISION.match(line)) for block in blocks for line in block.lines)
    return Path(-best.total[3], -best.total[1], tuple(loops), divisions)


# --- ways through the blocks
#
# A loop is a set of blocks each of which is reached from each; its header is the one that is
# entered first. Without the edges back to the header, inner loops are found in the same way.


@dataclass(frozen=True)
class Way:
    """A way to the end: its weight, that outside of loops, that of a round of each, its work."""

    total: Weight = NOTHING
    outside: Weight = NOTHING
    loops: dict[int, Weight] = field(default_factory=dict)
    work: dict[int, frozenset[str]] = field(default_factory=dict)


def _plus(a: Weight, b: Weight, times: float = 1) -> Weight:
    return tuple(x + times * y for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _reachable(blocks: list[Block], nodes: set[int], entry: int, header: int = -1) -> set[int]:
    """The blocks of `nodes` that `entry` leads to, itself included, not through `header`."""
    seen: set[int] = set()
    waiting = [entry]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [n for n in blocks[node].after if n in nodes and n != header]
    return seen


def _loops(blocks: list[Block], nodes: set[int], header: int) -> dict[int, frozenset[int]]:
    """By block, the loop that it is in; without edges back to `header`."""
    reach: dict[int, set[int]] = {
        node: set().union(
            *(
                _reachable(blocks, nodes, n, header)
                for n in blocks[node].after
                if n in nodes and n != header
            )
        )
        for node in nodes
    }
    return {
        node: frozenset(other for other in reach[node] if node in reach[other])
        for node in nodes
        if node in reach[node]
    }


def _headers(blocks: list[Block], nodes: set[int], header: int) -> set[int]:
    """The headers of all loops in `nodes`."""
    found: set[int] = set()
    for part in set(_loops(blocks, nodes, header).values()):
        entered = {n for node in nodes - part for n in blocks[node].after if n in part}
        first = min(entered or part)
        found |= {first} | _headers(blocks, set(part), first)
    return found


def _walk(
    blocks: list[Block], nodes: set[int], entry: int, header: int, counts: dict[int, float]
) -> Way | None:
    """The hottest way from `entry` within `nodes` to EXIT, or back to `header` if that is one."""
    loops = _loops(blocks, nodes, header)
    known: dict[int, Way | None] = {}

    def from_(node: int) -> Way | None:
        if node not in known:
            known[node] = find(node)
        return known[node]

    def find(node: int) -> Way | None:
        part = loops.get(node, frozenset())
        weight, own, inner, work = blocks[node].weight, blocks[node].weight, {}, {}
        if part:
            turn = _walk(blocks, set(part), node, node, counts)
            if turn is None:
                return None
            weight, own = _plus(NOTHING, turn.total, counts.get(node, 1)), NOTHING
            inner = {**turn.loops, node: turn.outside}
            kinds = (re.split(r"[.\s]", line)[0] for b in part for line in blocks[b].lines)
            work = {**turn.work, node: frozenset(kinds)}
        members = part or {node}
        after = {n for member in members for n in blocks[member].after} - set(part)
        ways = [from_(n) for n in sorted(after) if n in nodes and n != header]
        if header in after or (header < 0 and any(blocks[member].ends for member in members)):
            ways.append(Way())
        if not (known_ways := [way for way in ways if way is not None]):
            return None
        best = min(known_ways, key=lambda way: way.total)
        total, outside = _plus(weight, best.total), _plus(own, best.outside)
        return Way(total, outside, {**best.loops, **inner}, {**best.work, **work})

    return from_(entry)
