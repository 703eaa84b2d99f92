"""The k-tiles of a kernel over time: loads, copies in flight, waits, barriers, products.

Everything is counted in the trace of one thread of a launch, in the order of its instructions: a
simulator knows no times. Shared memory consists of *stages* of equal size. Whenever the thread
stores to a stage that it has read before, or to another stage, the next k-tile begins. What it
loads from global memory before that belongs to that k-tile, and what it reads from the stage is
the product's. A group of asynchronous copies (`cp_async`) is in flight from its commit to the
wait that brings it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from layers.simulator.trace import GLOBAL, SHARED, Trace
from tinyconv.lab.picture_svg import MARGIN, WIDTH, document

GUTTER, HEIGHT = 84, 24
"""Pixels of the labels on the left, and of a row."""

LOAD, FLIGHT, STORE, MULTIPLY = "load", "in flight", "store", "multiply"


@dataclass
class KTile:
    """One k-tile: where it is stored, and from when to when it is what."""

    number: int
    stage: int
    spans: dict[str, list[float]] = field(default_factory=dict)
    """By LOAD, FLIGHT, STORE, MULTIPLY: [first, last], in instructions of the thread."""

    @property
    def read(self) -> bool:
        """Whether it is multiplied. What is loaded past the last k-tile is not."""
        return MULTIPLY in self.spans

    def extend(self, kind: str, first: float, last: float) -> None:
        """Stretch a span so that it holds these instructions."""
        span = self.spans.setdefault(kind, [first, last])
        span[0], span[1] = min(span[0], first), max(span[1], last)


@dataclass
class Timeline:
    """What one thread does."""

    k_tiles: list[KTile]
    barriers: list[float]
    waits: list[tuple[float, int]]
    """When, and how many groups may still be in flight."""
    commits: list[float]
    length: float
    asynchronous: bool

    def overlap(self) -> int:
        """How many k-tiles at most are in flight while another one is multiplied."""
        most = 0
        flights = [k.spans[FLIGHT] for k in self.k_tiles if FLIGHT in k.spans]
        for one in self.k_tiles:
            if one.read:
                first, last = one.spans[MULTIPLY]
                most = max(most, sum(f[0] <= first and last <= f[1] for f in flights))
        return most


def timeline(trace: Trace, stage_words: int, thread: int = 0) -> Timeline:
    """What `thread` of block 0 does; stage_words: the elements of a stage."""
    own = np.flatnonzero((trace.segments["block"] == 0) & (trace.segments["thread"] == thread))
    rows = np.flatnonzero(np.isin(trace.accesses["segment"], own)).tolist()
    events: list[tuple[int, int, Any]] = [(row, 2, row) for row in rows]
    events += [(g.after, 0, g) for g in trace.group_events if g.segment in own]
    events += [
        (b.after, 1, b) for b in trace.barrier_events if b.block == 0 and thread in b.threads
    ]
    begins = {
        instruction
        for array, write, instruction in trace.accesses[["array", "write", "instruction"]].tolist()
        if write and trace.arrays[array].space == SHARED
    }
    made = Timeline([], [], [], [], 0.0, bool(trace.group_events))
    held: dict[int, KTile] = {}  # by stage
    read: set[int] = set()  # stages read since they were stored to
    groups: list[list[KTile]] = []
    begun: list[KTile] = []
    loading: list[float] = []
    now = 0.0
    for _, kind, event in sorted(events, key=lambda event: event[:2]):
        if kind == 0:
            if event.call == "commit":
                made.commits.append(now)
                groups.append(begun)
                begun = []
            else:
                made.waits.append((now, event.newest))
                while len(groups) > event.newest:
                    for k_tile in groups.pop(0):
                        k_tile.extend(FLIGHT, now, now)
            continue
        if kind == 1:
            made.barriers.append(now)
            continue
        access = trace.accesses[event]
        info, instruction = trace.arrays[access["array"]], trace.instructions[access["instruction"]]
        if info.space not in (GLOBAL, SHARED) or instruction.arrival:
            continue
        if info.space == GLOBAL and int(access["instruction"]) in begins:
            continue  # of an asynchronous copy, which was counted where it began
        begin, now = now, now + 1 / instruction.width(info.data.itemsize)
        if info.space == GLOBAL:
            if not access["write"]:
                loading += [begin, now]
            continue
        stage = int(access["offset"]) // stage_words
        if not access["write"]:
            read.add(stage)
            held[stage].extend(MULTIPLY, begin, now)
            continue
        if not held or stage in read or made.k_tiles[-1].stage != stage:
            read.discard(stage)
            held[stage] = KTile(len(made.k_tiles), stage)
            made.k_tiles.append(held[stage])
            if loading:
                held[stage].extend(LOAD, min(loading), max(loading))
                held[stage].extend(FLIGHT, max(loading), begin)
                loading = []
        k_tile = held[stage]
        k_tile.extend(LOAD if made.asynchronous else STORE, begin, now)
        if made.asynchronous:
            k_tile.spans[FLIGHT] = [now, now]  # from the last of its copies on
            if k_tile not in begun:
                begun.append(k_tile)
    made.length = now
    return made


def in_words(made: Timeline, stages: int) -> Iterator[str]:
    """What the picture shows, counted."""
    most, barriers = made.overlap(), len(made.barriers)
    read = sum(k.read for k in made.k_tiles)
    buffers = {1: "one buffer", 2: "two buffers"}.get(stages, f"{stages} stages")
    if most:
        flying = "k-tile is" if most == 1 else "k-tiles are"
        yield f"{buffers}: up to {most} {flying} in flight while another one is multiplied;"
    else:
        yield f"{buffers}: no k-tile is in flight while another one is multiplied;"
    past = len(made.k_tiles) - read
    zeros = f", and {past} of zeros past the end" if past else ""
    yield f"{read} k-tiles, {barriers} barriers{zeros}"


def pipeline_svg(title: str, trace: Trace, stage_words: int, thread: int = 0) -> str:
    """The picture of one thread's k-tiles."""
    made = timeline(trace, stage_words, thread)
    stages = 1 + max(k.stage for k in made.k_tiles)
    scale = (WIDTH - 2 * MARGIN - GUTTER - 6) / made.length
    body = [
        f'<text class="t" y="14">{escape(trace.kernel)}: the pipeline</text>',
        f'<text class="s" y="32">{escape(title)} · thread {thread} of block 0</text>',
        '<text class="s" y="49">From left to right: its instructions in order. Lengths are numbers '
        "of accesses, not times.</text>",
    ]
    y = 62
    for line in in_words(made, stages):
        body.append(f'<text y="{y + 10}">{escape(line)}</text>')
        y += 17
    y += 28
    bottom = y + HEIGHT * len(made.k_tiles) + 4

    def at(instruction: float) -> str:
        return f"{GUTTER + scale * instruction:.1f}"

    for when in made.barriers:
        body.append(
            f'<path d="M{at(when)} {y - 4}V{bottom}" stroke="var(--bad)" stroke-width="1.6"/>'
        )
    for when, newest in made.waits:
        label = f"wait_group({newest})"
        body.append(
            f'<path d="M{at(when)} {y - 4}l-4 -7h8z" fill="var(--soft)"/>'
            f'<text class="x" x="{at(when)}" y="{y - 14}" '
            f'text-anchor="middle">{label}</text>'
        )
    for k_tile in made.k_tiles:
        top = y + HEIGHT * k_tile.number
        place = f"stage {k_tile.stage}" if stages > 2 else f"buffer {k_tile.stage}"
        zeros = "" if k_tile.read else ", zeros"
        body.append(
            f'<text y="{top + 11}">k-tile {k_tile.number}{zeros}</text>'
            f'<text class="x" y="{top + 21}">{place}</text>'
        )
        for kind in (FLIGHT, LOAD, STORE, MULTIPLY):
            if kind in k_tile.spans:
                first, last = k_tile.spans[kind]
                x, width = GUTTER + scale * first, scale * (last - first)
                body.append(bar(kind, x, top + 3, width, k_tile.stage))
    y = bottom + 16
    x = 0
    loads = "copies begun, and committed" if made.asynchronous else "loads into registers"
    flight = "in flight, until the wait" if made.asynchronous else "in flight, until the store"
    for kind, text in (
        *((LOAD, loads), (FLIGHT, flight)),
        *(() if made.asynchronous else ((STORE, "stores to shared memory"),)),
        (MULTIPLY, "multiplied"),
    ):
        body.append(bar(kind, x, y, 20, 0) + f'<text x="{x + 26}" y="{y + 12}">{text}</text>')
        x += 44 + int(6.9 * len(text))
    body.append(
        f'<path d="M{x + 4} {y - 2}v20" stroke="var(--bad)" stroke-width="1.6"/>'
        f'<text x="{x + 12}" y="{y + 12}">barrier</text>'
    )
    y += 38
    body.append(
        f'<text class="s" y="{y - 8}">A colour is a {"stage" if stages > 2 else "buffer"} of '
        "shared memory.</text>"
    )
    return document(f"{trace.kernel}: the pipeline", body, y)


def bar(kind: str, x: float, y: float, width: float, stage: int) -> str:
    """A span: filled where it is multiplied, framed where it is loaded, a line in flight."""
    colour, x, width = f"var(--w{stage % 8})", round(x, 1), max(1.0, round(width, 1))
    if kind == FLIGHT:
        dashes = 'stroke-width="3" stroke-dasharray="5 3"'
        return f'<path d="M{x:g} {y + 8}h{width:g}" stroke="{colour}" {dashes}/>'
    fill = colour if kind == MULTIPLY else "var(--mark)" if kind == STORE else "var(--paper)"
    return (
        f'<rect x="{x:g}" y="{y}" width="{width:g}" height="16" rx="2" fill="{fill}" '
        f'stroke="{colour}" stroke-width="1.6"/>'
    )
