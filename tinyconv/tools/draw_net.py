"""A net as boxes and arrows, an SVG file: shapes, parameters, and what crosses between devices.

    python -m tinyconv draw --parallel columns --out two_columns.svg

A box is a layer with weights and the layers without weights that follow it. The two-column net has
two rows of boxes, and between them what one device sends to the other in a forward pass, in bytes
per image (paper, figure 2). The picture is computed from the net alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from layers import Conv2D, Layer, LocalResponseNorm, MaxPool2D
from tinyconv.lab.svg_colours import plain_colours
from tinyconv.parallel.collectives import AllGather, Gather
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.stage import Stage
from tinyconv.sequential import Sequential

BOX, MIDDLE, MARGIN, HEIGHT = 286, 190, 18, 66
"""Pixels: width of a box, width between two columns, margin, height of a box."""

GAP, WIDE_GAP, START = 30, 66, 44
"""Pixels between boxes, between boxes with an exchange, and below the image."""

STYLE = """
svg{--paper:#fffefb;--ink:#22252b;--soft:#5d636e;--line:#dcd8cd;--c0:#dfe9fb;--e0:#2563d9;
--c1:#fdeeda;--e1:#b96200;--x:#0a7d5d}
@media(prefers-color-scheme:dark){svg{--paper:#1b1e25;--ink:#e6e7ea;--soft:#a3aab6;--line:#343943;
--c0:#22324f;--e0:#74a5ff;--c1:#46341c;--e1:#f4a340;--x:#3ecf9e}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}
.t{font-size:15px;font-weight:650}.h{font-weight:650}.s{fill:var(--soft)}
.n{text-anchor:middle}.x{fill:var(--x);text-anchor:middle;font-weight:650}.e{text-anchor:end}
.b0{fill:var(--c0);stroke:var(--e0)}.b1{fill:var(--c1);stroke:var(--e1)}
.a{stroke:var(--soft);stroke-width:1.4;fill:none;marker-end:url(#a)}
.y{stroke:var(--x);stroke-width:1.8;fill:none;marker-end:url(#y)}
""".strip()


@dataclass
class Block:
    """A box: a layer with weights, in each column, and the layers that follow it."""

    head: Sequence[Layer]
    parameters: list[int]
    exchanged: tuple[int, int] = (0, 0)
    """Elements per image exchanged before it, from column 0 and from column 1."""
    borders: tuple[int, int] = (0, 0)
    """Elements per image exchanged within it, for a normalization over all channels."""
    first: list[str] = field(default_factory=list)
    """Layers between the exchange and the weights."""
    tail: list[str] = field(default_factory=list)
    """Layers after the weights."""
    output_shapes: Any = ()
    """Output shape of one image, per column."""


def blocks_of(net: Sequential) -> tuple[list[Block], int]:
    """The boxes of a net, and the elements per image that column 1 sends for the loss.

    ValueError if the net has no input_shape or its first layer has no weights.
    """
    if net.input_shape is None:
        raise ValueError("draw: this net has no input_shape; give it to Sequential")
    blocks: list[Block] = []
    lanes = 2 if isinstance(net, Columns) else 1
    shape: Any = (net.input_shape,) * lanes
    exchanged, joined = (0, 0), 0
    after: list[str] | None = None  # layers since the last exchange that has no box yet
    for layer in net.layers:
        crossing = layer.crossing(shape) if isinstance(layer, Stage) else (0, 0)
        if isinstance(layer, Gather):
            joined = crossing[1]
            break
        if isinstance(layer, AllGather):
            exchanged, after = crossing, []
        elif layer.parameters():
            head = list(layer.columns) if lanes == 2 else [layer]  # type: ignore[attr-defined]
            counts = [sum(p.value.size for p in each.parameters()) for each in head]
            blocks.append(Block(head, counts, exchanged, first=after or []))
            exchanged, after = (0, 0), None
        elif not blocks:
            raise ValueError(f"draw: the net begins with {layer.name}, which has no weights")
        elif after is not None:
            after.append(_in_short(layer))
        else:
            blocks[-1].tail.append(_in_short(layer))
            if crossing != (0, 0):
                blocks[-1].borders = crossing
        shape = layer.output_shape(shape) if lanes == 2 else (layer.output_shape(shape[0]),)
        if after is None:
            blocks[-1].output_shapes = shape
    return blocks, joined


def _in_short(layer: Layer) -> str:
    """A layer without weights in a word or two."""
    kind: Any = layer
    if isinstance(layer, Stage):
        kind = layer.columns[0] if hasattr(layer, "columns") else layer.norms.columns[0]  # type: ignore[attr-defined]
    if isinstance(kind, MaxPool2D):
        return f"max pool {kind.kernel_size}/{kind.stride}"
    if isinstance(kind, LocalResponseNorm):
        return "LRN"
    return {"Dropout": "dropout", "Flatten": "flatten"}.get(
        type(kind).__name__, type(kind).__name__
    )


def _times(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)


def _head(layer: Any) -> str:
    """A layer with weights in words: "48 of 11×11×3, stride 4"."""
    if isinstance(layer, Conv2D):
        filters, *window = layer.weight.value.shape
        stride = f", stride {layer.stride}" if layer.stride > 1 else ""
        groups = f", {layer.groups} groups" if layer.groups > 1 else ""
        return f"{filters} of {_times(window)}{stride}{groups}"
    units, inputs = layer.weight.value.shape
    return f"{units:,} units of {inputs:,} inputs"


# --- the picture


class _Page:
    """The elements of the SVG; y is the top of the next one."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.body, self.y = lanes, [], MARGIN + 44  # type: ignore[var-annotated]
        self.width = 2 * MARGIN + BOX * lanes + MIDDLE * (lanes - 1)
        self.width = max(self.width, 420)

    def left(self, lane: int) -> int:
        """x of the boxes of a column."""
        return (self.width - BOX) // 2 if self.lanes == 1 else MARGIN + lane * (BOX + MIDDLE)

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        """A line of text."""
        self.body.append(f'<text class="{style}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def line(self, points: str, style: str) -> None:
        """An arrow along the points of a path."""
        self.body.append(f'<path class="{style}" d="{points}"/>')

    def box(self, lane: int, lines: Sequence[str]) -> None:
        """A box of a column with up to three lines of text."""
        x = self.left(lane)
        self.body.append(
            f'<rect class="b{lane}" x="{x}" y="{self.y}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
        )
        for place, line in enumerate(lines):
            self.text(x + 12, self.y + 20 + 18 * place, line, ("h", "s", "")[place])


def svg_of_net(net: Sequential, title: str = "AlexNet") -> str:
    """The net as the text of an SVG file. ValueError if it has no input_shape."""
    blocks, joined = blocks_of(net)
    assert net.input_shape is not None
    bytes_of = net.dtype.itemsize
    lanes = len(blocks[0].head)
    page = _Page(lanes)
    middle = page.width / 2
    total = sum(sum(block.parameters) for block in blocks)
    page.text(MARGIN, MARGIN + 14, f"{title}: {total:,} parameters", "t")
    if lanes == 2:
        note = "two columns, on two devices; green: bytes of one image from one to the other"
        page.text(MARGIN, MARGIN + 32, note, "s")
    page.text(middle, page.y + 10, f"image {_times(net.input_shape)}", "h n")
    for lane in range(lanes):
        centre = page.left(lane) + BOX / 2
        start = middle + (0 if lanes == 1 else (-70, 70)[lane])
        bend = f"M{start:g} {page.y + 16}" + (
            f"C{start:g} {page.y + 34} {centre:g} {page.y + 16} {centre:g} {page.y + START - 2}"
        )
        page.line(bend, "a")
    page.y += START
    if lanes == 2:
        page.text(page.left(0), page.y - 8, "column 0", "h")
        page.text(page.left(1) + BOX, page.y - 8, "column 1", "h e")
    for place, block in enumerate(blocks):
        if place:
            _draw_arrows(page, block, bytes_of)
        _draw_block(page, block, bytes_of)
    _draw_end(page, joined * bytes_of, sum(shape[-1] for shape in blocks[-1].output_shapes))
    return _file(page, title)


def _draw_block(page: _Page, block: Block, bytes_of: int) -> None:
    for lane, layer in enumerate(block.head):
        others = f"first {' · '.join(block.first)}; " if block.first else ""
        others += f"then {' · '.join(block.tail)}" if block.tail else ""
        lines = (
            f"{layer.name}: {_head(layer)}",
            f"gives {_times(block.output_shapes[lane])}; {block.parameters[lane]:,} parameters",
            others.removesuffix("; "),
        )
        page.box(lane, lines)
    if any(block.borders):
        x, y = page.left(0) + BOX, page.y + HEIGHT / 2
        page.line(f"M{x + 4} {y - 4}H{x + MIDDLE - 6}", "y")
        page.line(f"M{x + MIDDLE - 4} {y + 6}H{x + 6}", "y")
        page.text(page.width / 2, y - 12, "LRN at the border", "n s")
        page.text(page.width / 2, y + 24, f"{bytes_of * block.borders[0]:,} each way", "x")
    page.y += HEIGHT


def _draw_arrows(page: _Page, block: Block, bytes_of: int) -> None:
    """Arrows to the boxes of `block`, diagonal ones too if the columns exchange."""
    gap = WIDE_GAP if any(block.exchanged) else GAP
    top, bottom = page.y + 2, page.y + gap - 2
    centres = [page.left(lane) + BOX / 2 for lane in range(page.lanes)]
    for centre in centres:
        page.line(f"M{centre:g} {top}V{bottom}", "a")
    if any(block.exchanged):
        first, second = (bytes_of * count for count in block.exchanged)
        for source, target in (centres, centres[::-1]):
            side = 24 if source < target else -24
            page.line(f"M{source + side:g} {top}L{target - side:g} {bottom}", "y")
        note = f"{first:,} each way" if first == second else f"{first:,} → ← {second:,}"
        page.text(page.width / 2, page.y + 16, note, "x")
    page.y += gap


def _draw_end(page: _Page, joined: int, classes: int) -> None:
    """The softmax, below the first column."""
    centre, y = page.left(0) + BOX / 2, page.y
    page.line(f"M{centre:g} {y + 2}V{y + START - 10}", "a")
    if joined:
        other = page.left(1) + BOX / 2
        page.line(f"M{other:g} {y + 2}V{y + START + 2}H{centre + 102:g}", "y")
        page.text(page.width / 2, y + START - 6, f"{joined:,}", "x")
    page.text(centre, y + START + 6, f"softmax over {classes:,} classes", "h n")
    page.y += START + 12


def _file(page: _Page, title: str) -> str:
    """The whole file."""
    height = page.y + MARGIN
    marker = (
        '<marker id="{0}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="var(--{1})"/>'
        "</marker>"
    )
    return plain_colours(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page.width} {height}" '
        f'width="{page.width}" height="{height}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"{marker.format('a', 'soft')}{marker.format('y', 'x')}"
        f'<rect x=".5" y=".5" width="{page.width - 1}" height="{height - 1}" rx="8" '
        'fill="var(--paper)" stroke="var(--line)"/>' + "\n".join(page.body) + "</svg>\n"
    )
