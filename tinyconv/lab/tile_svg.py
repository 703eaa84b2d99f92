"""One whole tile of a convolution, larger than life: which thread loads, stores and owns what.

`numbered.py` finds out; nothing is drawn from the kernel's own arithmetic.

A rectangle is what one thread loads, stores or owns; its number is the thread's, its colour the
warp's. "×2" are two threads. Thick frames are those of one thread, about which the text below says
where they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import ArrayInfo
from tinyconv.lab.numbered import Numbered, Tile, tile_of
from tinyconv.lab.picture_svg import MARGIN, WIDTH, document
from tinyconv.lab.requests import BANKS
from tinyconv.lab.steps import variable_name

ROW = 12
"""Pixels of a row."""

NUMBERS = (
    "\n.k{font-size:8px;font-weight:650;fill:var(--on);text-anchor:middle}"
    "\n.r{fill:var(--soft);font-size:9px;text-anchor:end}"
)
"""Style of the numbers in rectangles, and of those beside rows."""

Owners = Mapping[int, Iterable[int]]
"""By element, counted in the order of the indices: threads."""


# --- panels


@dataclass(frozen=True)
class Part:
    """A rectangle of a panel."""

    row: int
    column: int
    rows: int
    columns: int
    thread: int
    """The first of those that share it."""
    threads: int = 1
    warp: int = 0
    marked: bool = False
    """Whether it is the marked thread's."""
    read: bool = False
    """Whether the marked thread reads it, though another one stored it."""


@dataclass
class Panel:
    """A table of rectangles with numbers."""

    title: str
    pitch: float
    """Pixels of a column."""
    columns: int
    labels: list[str]
    """Of its rows."""
    parts: list[Part]
    strip: int = 64
    """The most rows below each other; others are beside them."""
    ground: bool = False
    """Whether places without a part are drawn."""

    @property
    def gutter(self) -> float:
        """Pixels of the labels."""
        return 4 + 5 * max(map(len, self.labels), default=0)

    @property
    def strip_width(self) -> float:
        """Pixels of a strip with its labels."""
        return self.gutter + self.columns * self.pitch + 5

    @property
    def width(self) -> float:
        """In all."""
        strips = -(-len(self.labels) // self.strip) * self.strip_width
        return max(strips, 6.2 * len(self.title))

    @property
    def height(self) -> float:
        """In all."""
        return 20 + ROW * min(self.strip, len(self.labels))

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """The upper left corner of a place."""
        strip, row = divmod(row, self.strip)
        x = strip * self.strip_width + self.gutter + column * self.pitch
        return round(x, 1), 20 + row * ROW

    def draw(self) -> Iterator[str]:
        """Its parts as SVG, from its upper left corner on."""
        yield f'<text y="11">{escape(self.title)}</text>'
        for row, label in enumerate(self.labels):
            x, y = self.corner(row, 0)
            yield f'<text class="r" x="{x - 3:g}" y="{y + 9}">{label}</text>'
            if self.ground:
                width = self.columns * self.pitch - 1
                yield f'<rect class="e" x="{x:g}" y="{y}" width="{width:g}" height="{ROW - 1}"/>'
        lines: dict[int, str] = defaultdict(str)
        fills: dict[int, str] = defaultdict(str)
        texts: dict[float, list[str]] = defaultdict(list)
        frames = reads = ""
        for part in self.parts:
            x, y = self.corner(part.row, part.column)
            across, down = part.columns * self.pitch - 1, part.rows * ROW - 1
            box = f"M{x:g} {y}h{across:g}v{down}h-{across:g}z"
            # Lines, as thick as a row, where that is enough: they are shorter to describe.
            if part.rows == 1:
                lines[part.warp] += f"M{x:g} {y + down / 2:g}h{across:g}"
            else:
                fills[part.warp] += box
            text = f"{part.thread}" if part.threads == 1 else f"×{part.threads}"
            middle = y + down / 2 + 3.5
            texts[middle].append(f'<tspan x="{x + across / 2:.4g}">{text}</tspan>')
            frames += box if part.marked else ""
            reads += box if part.read and not part.marked else ""
        for warp, path in sorted(lines.items()):
            colour = f'stroke="var(--w{warp % 8})"'
            yield f'<path d="{path}" {colour} stroke-width="{ROW - 1}"/>'
        for warp, path in sorted(fills.items()):
            yield f'<path d="{path}" fill="var(--w{warp % 8})"/>'
        for middle, spans in sorted(texts.items()):
            yield f'<text class="k" y="{middle:g}">{"".join(spans)}</text>'
        dashes = 'stroke-width="1.3" stroke-dasharray="2.5 1.5"'
        for path, ink, stroke in (
            (reads, "ink", dashes),
            (frames, "paper", 'stroke-width="4"'),
            (frames, "ink", 'stroke-width="2.2"'),
        ):
            if path:
                yield f'<path d="{path}" fill="none" stroke="var(--{ink})" {stroke}/>'


def joined(cells: Iterable[tuple[int, int, Any]], aligned: int, strip: int) -> list[list[Any]]:
    """Rectangles [row, column, rows, columns, key] of cells (row, column, key) with one key.

    aligned: no rectangle goes over a column that is a multiple of it; 0: of any width. strip: nor
    over a row that is one.
    """
    runs: list[list[Any]] = []
    run: list[Any] = [-1, 0, 1, 0, None]
    for row, column, key in sorted(cells, key=lambda cell: cell[:2]):
        fits = not aligned or column % aligned
        if run[0] == row and run[1] + run[3] == column and run[4] == key and fits:
            run[3] += 1
        else:
            run = [row, column, 1, 1, key]
            runs.append(run)
    found: list[list[Any]] = []
    below: dict[tuple, list[Any]] = {}  # by the row, columns and key that would continue it
    for row, column, _, columns, key in runs:
        above = below.pop((row, column, columns, key), None)
        if above is None or row % strip == 0:
            found.append(above := [row, column, 0, columns, key])
        above[2] += 1
        below[row + 1, column, columns, key] = above
    return found


def table(
    title: str,
    shape: tuple[int, ...],
    owners: Owners,
    pitch: float,
    marked: int,
    warp: int | None = None,
    strip: int = 64,
) -> Panel:
    """The elements of `owners` in their array: a row for each run along the last axis.

    warp: of which the owners are lanes; None: they are threads.
    """
    places = {at: tuple(map(int, np.unravel_index(at, shape))) for at in owners}
    rows = sorted({place[:-1] for place in places.values()})
    row_of = {row: i for i, row in enumerate(rows)}
    lasts = [place[-1] for place in places.values()]
    first, last = min(lasts), max(lasts)
    cells = [
        (row_of[place[:-1]], place[-1] - first, tuple(sorted(owners[at])))
        for at, place in places.items()
    ]
    parts = []
    for row, column, down, across, threads in joined(cells, 0, strip):
        of = threads[0] // WARP if warp is None else warp
        box = row, column, down, across
        parts.append(Part(*box, threads[0], len(threads), of, marked in threads))
    labels = [", ".join(map(str, row)) for row in rows]
    indices = f"[…, {first} to {last}]"
    return Panel(f"{title}{indices}", pitch, last - first + 1, labels, parts, strip)


def shared_panel(
    title: str,
    info: ArrayInfo,
    held: Mapping[int, int],
    reads: Owners,
    pitch: float,
    marked: int,
    strip: int = 64,
) -> Panel:
    """The words of a shared array that hold elements, as they are in memory.

    An array of one axis has a row for each time that it passes all banks.
    """
    flat = info.data.ndim == 1
    columns = BANKS if flat else info.data.shape[-1]
    first, last = min(held) // columns, max(held) // columns
    cells = [
        (at // columns - first, at % columns, (thread, marked in reads.get(at, ())))
        for at, thread in held.items()
    ]
    # Vectorized copies are aligned to four words. Of single words each is drawn.
    aligned = 4 if flat and all(held.get(at ^ 1) == thread for at, thread in held.items()) else 1
    parts = [
        Part(row, column, down, across, thread, 1, thread // WARP, thread == marked, read)
        for row, column, down, across, (thread, read) in joined(cells, aligned, 1)
    ]
    labels = [str(row * columns if flat else row) for row in range(first, last + 1)]
    return Panel(title, pitch, columns, labels, parts, strip, ground=aligned == 1)


# --- the picture


def spoken(shape: tuple[int, ...], cells: Iterable[int]) -> str:
    """Indices of `cells`, one for each run along the last axis: "[2, 4 to 7]"."""
    texts = []
    for _, run in groupby(enumerate(sorted(cells)), lambda pair: pair[1] - pair[0]):
        indices = [np.unravel_index(at, shape) for _, at in run]
        for row, group in groupby(indices, lambda index: tuple(map(int, index[:-1]))):
            lasts = [int(index[-1]) for index in group]
            end = f"{lasts[0]} to {lasts[-1]}" if len(lasts) > 1 else f"{lasts[0]}"
            texts.append(f"[{', '.join([*map(str, row), end])}]")
    if len(texts) > 3:
        texts[2:] = [f"… ({len(texts)} runs)"]
    return ", ".join(texts)


def sentences(tile: Tile, marked: int, names: list[str]) -> Iterator[str]:
    """What the marked thread does, in words."""
    run = tile.run
    yield f"Thread {marked} (warp {marked // WARP}, lane {marked % WARP}), with a thick frame:"
    for name, owners in tile.loads.items():
        own = [at for at, threads in owners.items() if marked in threads]
        yield f"loads {name} {spoken(run.shape(name), own)};"
    for name, (info, held) in zip(names, tile.stores, strict=True):
        own = [at for at, thread in held.items() if thread == marked]
        yield f"stores {name} {spoken(info.data.shape, own)};"
    for name, (info, _), reads in zip(names, tile.stores, tile.reads, strict=True):
        own = [at for at, threads in reads.items() if marked in threads]
        if info.data.ndim > 1 and max(info.data.shape) * 2 >= len(own):
            rows, columns = zip(
                *(map(int, divmod(at, info.data.shape[1])) for at in own), strict=True
            )
            ends = (
                f"{min(i)} to {max(i)}" if min(i) < max(i) else f"{min(i)}" for i in (rows, columns)
            )
            yield f"multiplies {name} [{', '.join(ends)}], with thin frames;"
    for name, owners in tile.owns.items():
        own = [at for at, threads in owners.items() if marked in threads]
        yield f"owns {name} {spoken(run.shape(name), own)}."


def tile_svg(
    title: str, run: Numbered, marked: int, panels: Callable[[Tile, list[str]], Iterable[Panel]]
) -> str:
    """The picture. marked: the thread with frames. panels: those to draw, in order."""
    tile = tile_of(run)
    names = [variable_name(info, run.trace) for info, _ in tile.stores]
    body = [
        f'<text class="t" y="14">{escape(run.trace.kernel)}: one whole tile</text>',
        f'<text class="s" y="32">{escape(title)} · the last k-tile of block 0 · a number is a '
        "thread, a colour its warp</text>",
    ]
    x, y, tallest = 0.0, 48.0, 0.0
    for panel in panels(tile, names):
        if x and x + panel.width > WIDTH - 2 * MARGIN:
            x, y, tallest = 0.0, y + tallest + 14, 0.0
        body.append(f'<g transform="translate({x:g} {y:g})">')
        body += panel.draw()
        body.append("</g>")
        x += panel.width + 18
        tallest = max(tallest, panel.height)
    words = list(sentences(tile, marked, names))
    beside = x + 6.3 * max(map(len, words)) < WIDTH - 2 * MARGIN
    x, top = (x + 6, y + 20) if beside else (0, y + tallest + 20)
    for i, line in enumerate(words):
        body.append(f'<text x="{x:g}" y="{top + 17 * i:g}">{escape(line)}</text>')
    end = max(y + tallest, top + 17 * len(words) - 10)
    return document(f"{run.trace.kernel}: one whole tile", body, round(end), NUMBERS)
