"""One step of a kernel as a still picture, an SVG file for the documents.

The same grids as on the page (`page_arrays.js` has the twin of `layout`): the last axis is a run of
cells, neighbours in memory; the axis before it a row of runs; the third from the right the rows of
a panel; the rest number the panels. A filled cell is read at this step, a frame is written, in the
colour of the warp; hatched cells share a sector with one that was asked for; a bar marks cells that
a warp writes in some step of the block. Red frames are what `steps.py` calls bad. A number is how
many lanes are at one cell. Where each lane moves 16 bytes it is the lane's own, and "×2" are two
lanes that are at the same. Of a long array of one or two axes only those rows are drawn that the
step touches.

No line numbers, values or times are in there: a picture changes only when its kernel does.
"""

from __future__ import annotations

import linecache
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from layers.simulator.trace import GLOBAL
from tinyconv.lab.picture import columns_of
from tinyconv.lab.requests import SECTOR
from tinyconv.lab.steps import Array, Launch, Request, Step
from tinyconv.lab.svg_colours import plain_colours

SIZE, PITCH, RUN_GAP, LINE_GAP = 9, 10, 4, 2
WIDTH = 830
MARGIN = 14
MOST_ROWS = 40
"""Of an array without panels, before rows are left out."""
LETTER = 7.0
"""Width of a character of the source text."""

STYLE = """
svg{--paper:#fffefb;--ink:#22252b;--soft:#646a75;--line:#dcd8cd;--cell:#e8e5dc;--bad:#cf222e;
--mark:#ffe9a3;--on:#fff;--w0:#2563d9;--w1:#c76a00;--w2:#0a8a66;--w3:#8e44c4;--w4:#b83278;
--w5:#5b7a00;--w6:#0b7fa3;--w7:#7a6a5a}
@media(prefers-color-scheme:dark){svg{--paper:#1b1e25;--ink:#e6e7ea;--soft:#9aa1ad;--line:#343943;
--cell:#2f3540;--bad:#ff6b6b;--mark:#5a4a10;--on:#10131a;--w0:#74a5ff;--w1:#f4a340;--w2:#3ecf9e;
--w3:#c692f5;--w4:#f286b8;--w5:#a9c74a;--w6:#4cc3e6;--w7:#c9b8a6}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}
.t{font-size:15px;font-weight:650}.s{fill:var(--soft)}.x{fill:var(--soft);font-size:9px}
.m{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,monospace;font-size:11.6px;white-space:pre}
.e{fill:var(--cell)}.n{font-size:7px;font-weight:700;fill:var(--on);text-anchor:middle;paint-order:stroke;
stroke:var(--ink);stroke-width:.9px}
.n.w{fill:var(--ink);stroke:none}.b{fill:none;stroke:var(--bad);stroke-width:1.6}
.bt{fill:var(--bad);font-weight:650}
""".strip()


def layout(shape: Sequence[int]) -> tuple[int, int, int]:
    """Rows in a panel, runs in a row, cells in a run."""
    last = shape[-1] if shape else 1
    if len(shape) <= 1:
        return -(-last // 32), 4, 8
    if len(shape) == 2:
        beside = 32 // last if shape[0] > 12 and last <= 16 else 1
        return -(-shape[0] // beside), beside, last
    return shape[-3], shape[-2], last


class Grid:
    """An array's place on the picture: where each of its cells is.

    touched: cells that must be seen.
    """

    def __init__(self, array: Array, touched: Iterable[int] = ()) -> None:
        self.array = array
        self.rows, self.runs, self.run = layout(array.shape)
        self.size = math.prod(array.shape)
        self.each = self.rows * self.runs * self.run
        self.panels = max(1, -(-self.size // self.each))
        self.gutter = 8 + 5 * len(str(max(self.rows, self.size if len(array.shape) < 3 else 0)))
        self.run_width = self.run * PITCH + RUN_GAP
        used = min(self.runs, -(-self.size // self.run))
        self.panel_width = self.gutter + used * self.run_width + 6
        in_row = self.runs * self.run
        # Where several rows are left out, their place is one row high, and has no number in here.
        drawn: list[int | None] = [*range(min(self.rows, -(-self.size // in_row)))]
        if len(array.shape) < 3 and len(drawn) > MOST_ROWS:
            seen = {cell // in_row for cell in touched}
            parts = [[*rows] for _, rows in groupby(drawn, seen.__contains__)]
            drawn = [
                row
                for rows in parts
                for row in (rows if rows[0] in seen or len(rows) == 1 else [None])
            ]
        self.place = {row: place for place, row in enumerate(drawn) if row is not None}
        self.gaps = [place for place, row in enumerate(drawn) if row is None]
        self.panel_height = len(drawn) * (PITCH + LINE_GAP)
        self.head = 12 if self.panels > 1 else 0
        self.across = max(1, min(self.panels, (WIDTH - 2 * MARGIN) // self.panel_width))
        name = f"{array.name} ({', '.join(map(str, array.shape))}) {array.dtype}"
        self.name = name + (", shared" if array.space != GLOBAL else "")
        self.width = max(self.across * self.panel_width, int(6.6 * len(self.name)) + 12)
        down = -(-self.panels // self.across)
        self.height = 18 + down * (self.panel_height + self.head + 6)

    def shows(self, cell: int) -> bool:
        """Whether the row of this cell is drawn."""
        return cell % self.each // (self.runs * self.run) in self.place

    def at(self, cell: int) -> tuple[int, int]:
        """The upper left corner of a cell, from that of the grid."""
        panel, rest = divmod(cell, self.each)
        row, rest = divmod(rest, self.runs * self.run)
        run, place = divmod(rest, self.run)
        return (
            panel % self.across * self.panel_width
            + self.gutter
            + run * self.run_width
            + place * PITCH,
            18
            + panel // self.across * (self.panel_height + self.head + 6)
            + self.head
            + self.place[row] * (PITCH + LINE_GAP),
        )

    def ground(self) -> Iterator[str]:
        """The cells, a rectangle with a pattern for each run, and the labels."""
        yield f'<text y="10">{escape(self.name)}</text>'
        for place in self.gaps:
            y = 18 + place * (PITCH + LINE_GAP) + 9
            yield f'<text class="x" x="{self.gutter - 4}" y="{y}" text-anchor="end">⋮</text>'
        for first in range(0, self.size, self.run):
            if not self.shows(first):
                continue
            x, y = self.at(first)
            width = min(self.run, self.size - first) * PITCH
            # A picture in the picture: the pattern begins at its corner.
            yield (
                f'<svg x="{x}" y="{y}" width="{width}" height="{SIZE}">'
                f'<rect width="{width}" height="{SIZE}" fill="url(#c)"/></svg>'
            )
            start = first % self.each
            if start % (self.runs * self.run) == 0:
                label = start // (self.runs * self.run)
                if len(self.array.shape) < 3:
                    label = first // (self.run if len(self.array.shape) == 2 else 1)
                yield f'<text class="x" x="{x - 4}" y="{y + 8}" text-anchor="end">{label}</text>'
            if self.head and start == 0:
                index: list[str] = []
                at = first // self.each
                for side in reversed(self.array.shape[:-3]):
                    at, place = divmod(at, side)
                    index.insert(0, str(place))
                yield f'<text class="x" x="{x}" y="{y - 3}">[{", ".join(index)}]</text>'


def _outline(corners: Sequence[tuple[int, int]], width: int, inset: float) -> str:
    """A path of rectangles, each around `width` cells: short, for there are many."""
    across, down = (side - 2 * inset for side in (_length(width), SIZE))
    return "".join(
        f"M{x + inset:g} {y + inset:g}h{across:g}v{down:g}h-{across:g}z" for x, y in corners
    )


def _length(width: int) -> int:
    """Of so many cells side by side."""
    return (width - 1) * PITCH + SIZE


def _touched(grid: Grid, step: Step, requests: list[Request], width: int) -> Iterator[str]:
    """The cells that this step's requests ask for, and what is moved along with them.

    width: of how many neighbours a lane asks at once. They are drawn as one, if rows allow it, and
    known by their first.
    """
    width = 1 if grid.run % width else width
    count: Counter = Counter()
    lanes: dict[int, set[int]] = defaultdict(set)
    warps: dict[int, dict[int, None]] = defaultdict(dict)
    for r in requests:
        for lane, cell in zip(r.lanes[::width], r.cells[::width], strict=True):
            count[cell] += 1
            lanes[cell].add(lane)
            warps[cell][r.warp] = None
    array = grid.array
    per_sector = max(1, SECTOR // array.itemsize)
    for r in requests:
        asked = sorted(set(r.cells[::width]))
        corners = [grid.at(cell) for cell in asked]
        colour = f"var(--w{r.warp % 8})"
        if array.space == GLOBAL and array.in_order:
            sectors = {(cell + array.skew) // per_sector for cell in r.cells}
            along = [
                grid.at(cell)
                for sector in sorted(sectors)
                for cell in range(
                    sector * per_sector - array.skew, (sector + 1) * per_sector - array.skew
                )
                if 0 <= cell < grid.size and cell // width * width not in count and grid.shows(cell)
            ]
            if along:
                stripes = "".join(
                    f"M{x} {y + 9}l9-9M{x} {y + 4}l4-4M{x + 5} {y + 9}l4-4" for x, y in along
                )
                yield f'<path d="{stripes}" stroke="{colour}" stroke-width=".8"/>'
        if step.write:
            frame = f'fill="var(--paper)" stroke="{colour}" stroke-width="2.6"'
            yield f'<path d="{_outline(corners, width, 1.3)}" {frame}/>'
        else:
            # A cell that several warps read has a stripe for each.
            paths = []
            for cell, (x, y) in zip(asked, corners, strict=True):
                wide = _length(width) / len(warps[cell])
                left = x + list(warps[cell]).index(r.warp) * wide
                paths.append(f"M{left:.4g} {y}h{wide:.3g}v{SIZE}h-{wide:.3g}z")
            yield f'<path d="{"".join(paths)}" fill="{colour}"/>'
        if r.bad:
            yield f'<path class="b" d="{_outline(corners, width, -0.5)}"/>'
    kind = "n w" if step.write else "n"
    for cell in sorted(count):
        if width > 1:
            text = f"×{count[cell]}" if len(lanes[cell]) > 1 else f"{min(lanes[cell])}"
        elif count[cell] > 1 and (count[cell] < 10 or len(warps[cell]) == 1):  # else no room
            text = f"{count[cell]}"
        else:
            continue
        x, y = grid.at(cell)
        yield f'<text class="{kind}" x="{x + _length(width) / 2:g}" y="{y + 7}">{text}</text>'


def _owned(grid: Grid, launch: Launch, block: int, number: int) -> Iterator[str]:
    """A bar under each cell that a warp of this block writes in some step."""
    if grid.array.space != GLOBAL:
        return
    of_warp: dict[int, set[int]] = defaultdict(set)
    for step in launch.block(block).steps:
        for r in step.requests:
            if step.write and r.array == number:
                of_warp[r.warp].update(r.cells)
    for warp, cells in sorted(of_warp.items()):
        seen = sorted(cell for cell in cells if grid.shows(cell))
        bars = "".join(f"M{x} {y + 6}h9v3h-9z" for x, y in map(grid.at, seen))
        yield f'<path d="{bars}" fill="var(--w{warp % 8})" opacity=".55"/>'


def cost_of(request: Request, launch: Launch) -> str:
    """What a request costs, in a few words."""
    lanes, different = len(set(request.lanes)), len(set(request.cells))
    asked = f"{lanes} lane{'s' * (lanes > 1)}, " + (
        "all the same element"
        if different == 1 and lanes > 1
        else f"{different} element{'s' * (different > 1)}"
    )
    if launch.arrays[request.array].space != GLOBAL:
        queue = f"{request.ways} in a queue at one bank"
        return f"{asked}, {queue if request.ways > 1 else 'no bank conflict'}"
    would_do = f", {request.ideal} would do" if request.sectors > request.ideal else ""
    return f"{asked}, {request.sectors} sector{'s' * (request.sectors > 1)}{would_do}"


def svg_of(launch: Launch, block: int, number: int) -> str:
    """Step `number` of block `block` as the text of an SVG file. ValueError if there is none."""
    step = launch.step(block, number)
    steps = len(launch.block(block).steps)
    instruction = launch.trace.instructions[step.instruction]
    names = ", ".join(dict.fromkeys(launch.arrays[r.array].name for r in step.requests))
    what = f"{'write' if step.write else 'read'} {names}"
    which = f", iteration {step.occurrence + 1}" if step.occurrence else ""
    body = [
        f'<text class="t" y="14">{escape(launch.trace.kernel)}</text>',
        f'<text class="s" y="32">{escape(launch.title)} · block {block} of '
        f"{launch.trace.blocks}, step {number + 1} of {steps}: {escape(what)}{which}</text>",
    ]
    y = 44
    for away in (-1, 0, 1):
        text = linecache.getline(instruction.file, instruction.line + away).rstrip()
        if not text:
            continue
        if away == 0:
            columns = columns_of(instruction, launch.function) or (
                len(text) - len(text.lstrip()),
                len(text),
            )
            x, width = columns[0] * LETTER, (columns[1] - columns[0]) * LETTER
            body.append(
                f'<rect x="{x:g}" y="{y}" width="{width:g}" height="17" rx="3" fill="var(--mark)"/>'
            )
        length = f'textLength="{len(text) * LETTER:g}" lengthAdjust="spacingAndGlyphs"'
        style = "m" if away == 0 else "m s"
        body.append(
            f'<text class="{style}" xml:space="preserve" y="{y + 12.5}" {length}>'
            f"{escape(text)}</text>"
        )
        y += 17
    y += 12
    x = tallest = 0
    for index, array in enumerate(launch.arrays):
        requests = [r for r in step.requests if r.array == index]
        grid = Grid(array, [cell for r in requests for cell in r.cells])
        if x and x + grid.width > WIDTH - 2 * MARGIN:
            x, y, tallest = 0, y + tallest + 8, 0
        body.append(f'<g transform="translate({x} {y})">')
        body += grid.ground()
        body += _owned(grid, launch, block, index)
        body += _touched(grid, step, requests, instruction.width(array.itemsize))
        body.append("</g>")
        x += grid.width + 18
        tallest = max(tallest, grid.height)
    y += tallest + 10
    for r in step.requests:
        style = ' class="bt"' if r.bad else ""
        body.append(
            f'<rect y="{y}" width="10" height="10" rx="2" fill="var(--w{r.warp % 8})"/>'
            f'<text{style} x="16" y="{y + 9.5}">warp {r.warp}: {cost_of(r, launch)}</text>'
        )
        y += 16
    return document(f"{launch.trace.kernel}: {what}", body, y)


def document(title: str, body: Iterable[str], height: int, style: str = "") -> str:
    """The text of an SVG file: `body`, which is `height` high, on paper with a margin.

    style: rules beyond STYLE.
    """
    height += 2 * MARGIN
    return plain_colours(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>"
        f'<pattern id="c" width="{PITCH}" height="{PITCH}" patternUnits="userSpaceOnUse">'
        f'<rect class="e" width="{SIZE}" height="{SIZE}" rx="1.5"/></pattern>'
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8" '
        'fill="var(--paper)" stroke="var(--line)"/>'
        f'<g transform="translate({MARGIN} {MARGIN})">' + "\n".join(body) + "</g></svg>\n"
    )
