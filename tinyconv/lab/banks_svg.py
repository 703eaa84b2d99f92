"""What a stride, an offset or a swizzle of shared memory is for: the banks, with it and without.

Both halves of a picture are launches in the simulator: of the kernel as it is, and of the same
kernel with a plain layout. A column is one of the 32 banks, a row 32 words; a number is the lane
that accesses the word. Lanes of one colour are served together: all 32 of single words, eight at a
time of 16 bytes. Words of one colour, one below the other, are a conflict, framed in red.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from layers.simulator.trace import SHARED
from tinyconv.lab.picture_svg import document
from tinyconv.lab.requests import BANKS
from tinyconv.lab.steps import Launch, Request
from tinyconv.lab.tile_svg import NUMBERS

PITCH, ROW, GUTTER, HALF = 11, 13, 34, 404
"""Pixels of a word, of a row, of its label, and from one half of the picture to the other."""


@dataclass(frozen=True)
class Access:
    """One access of a kernel: what it is, the line that makes it, and the layout."""

    what: str
    line: str
    """A part of it."""
    as_it_is: str
    """The word, as a formula."""
    plain: str
    """The same without stride, offset or swizzle."""


@dataclass(frozen=True)
class Region:
    """A part of shared memory."""

    name: str
    first: int
    words: int


def request_of(launch: Launch, line: str) -> Request:
    """What warp 0 of block 0 asks of shared memory where a line with `line` first does."""
    for step in launch.block(0).steps:
        if line in launch.trace.instructions[step.instruction].source:
            for request in step.requests:
                if launch.arrays[request.array].space == SHARED and request.warp == 0:
                    return request
    raise ValueError(f"{launch.trace.kernel} has no access to shared memory in a line {line!r}")


def served(request: Request) -> dict[int, dict[int, list[int]]]:
    """The words by lot of lanes that are served together, and the lanes that access each."""
    width = len(request.lanes) // len(set(request.lanes))
    lots: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for lane, word in zip(request.lanes, request.cells, strict=True):
        lots[lane * width // BANKS][word].append(lane)
    return lots


def grid(request: Request, title: str, formula: str) -> tuple[list[str], int]:
    """One half of a picture, and its height."""
    lots = served(request)
    rows = sorted({word // BANKS for words in lots.values() for word in words})
    place = {row: 46 + ROW * i for i, row in enumerate(rows)}
    verdict = "no bank conflict" if request.ways == 1 else f"{request.ways}-way bank conflict"
    style = ' class="bt"' if request.ways > 1 else ""
    parts = [
        f'<text y="10">{escape(title)}: {escape(formula)}</text>',
        f'<text{style} y="26">{verdict}</text>',
        f'<text class="x" x="{GUTTER}" y="41">bank 0</text>',
        f'<text class="x" x="{GUTTER + PITCH * BANKS}" y="41" text-anchor="end">31</text>',
    ]
    for row, y in place.items():
        parts.append(
            f'<text class="x" x="{GUTTER - 4}" y="{y + 10}" text-anchor="end">{row * BANKS}</text>'
            f'<rect class="e" x="{GUTTER}" y="{y}" width="{PITCH * BANKS - 1}" height="{ROW - 1}"/>'
        )
    red = ""
    texts = []
    for lot, words in sorted(lots.items()):
        of_bank: dict[int, int] = defaultdict(int)
        for word in words:
            of_bank[word % BANKS] += 1
        box, runs = "", list(_runs(words))
        for word, count, lanes in runs:
            x, y = GUTTER + PITCH * (word % BANKS), place[word // BANKS]
            path = f"M{x} {y}h{PITCH * count - 1}v{ROW - 1}h-{PITCH * count - 1}z"
            box += path
            text = str(lanes[0]) if len(lanes) == 1 else f"×{len(lanes)}"
            middle = x + (PITCH * count - 1) / 2
            texts.append(f'<text class="k" x="{middle:g}" y="{y + 9.5}">{text}</text>')
            if max(of_bank[bank % BANKS] for bank in range(word, word + count)) > 1:
                red += path
        parts.append(f'<path d="{box}" fill="var(--w{lot})"/>')
    if red:
        parts.append(f'<path d="{red}" fill="none" stroke="var(--bad)" stroke-width="2"/>')
    return parts + texts, 50 + ROW * len(rows)


def _runs(words: dict[int, list[int]]) -> Iterator[tuple[int, int, list[int]]]:
    """(first word, words, lanes): neighbours that one lane accesses together."""
    first = count = 0
    for word in sorted(words):
        if count and word == first + count and words[word] == words[first] and word % 4:
            count += 1
            continue
        if count:
            yield first, count, words[first]
        first, count = word, 1
    yield first, count, words[first]


def regions_svg(regions: Iterable[Region], end: int, width: int) -> Iterator[str]:
    """A strip with the parts of shared memory, of `end` words, and where each begins."""
    scale = width / end
    yield f'<rect class="e" width="{width}" height="22"/>'
    for number, region in enumerate(regions):
        x, wide = scale * region.first, scale * region.words
        yield (
            f'<rect x="{x:.1f}" width="{wide:.1f}" height="22" fill="var(--paper)" '
            f'stroke="var(--w{number % 2})" stroke-width="1.6"/>'
            f'<text x="{x + 4:.1f}" y="15">{escape(region.name)}</text>'
            f'<text class="x" x="{x:.1f}" y="33">{region.first}</text>'
        )


def banks_svg(
    title: str,
    made: Launch,
    plain: Launch,
    accesses: Iterable[Access],
    regions: Iterable[Region],
    end: int,
) -> str:
    """The picture. made, plain: the kernel's launch as it is, and with a plain layout."""
    kernel = made.trace.kernel
    body = [
        f'<text class="t" y="14">{escape(kernel)}: the banks of shared memory</text>',
        f'<text class="s" y="32">{escape(title)} · shared memory: {end:,} words</text>',
        '<g transform="translate(0 44)">',
        *regions_svg(regions, end, 800),
        "</g>",
    ]
    y = 100
    for access in accesses:
        body.append(f'<text font-weight="650" y="{y + 10}">{escape(access.what)}</text>')
        tallest = 0
        halves = ((plain, "plain", access.plain), (made, "as it is", access.as_it_is))
        for half, (launch, name, formula) in enumerate(halves):
            parts, height = grid(request_of(launch, access.line), name, formula)
            body.append(f'<g transform="translate({half * HALF} {y + 20})">')
            body += [*parts, "</g>"]
            tallest = max(tallest, height)
        y += tallest + 36
    return document(
        f"{kernel}: the banks of shared memory", body, y - 10, NUMBERS.replace("8px", "7px")
    )
