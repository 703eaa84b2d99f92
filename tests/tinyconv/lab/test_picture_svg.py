"""Still pictures: accesses of 16 bytes, and arrays too long to be drawn."""

import re
from xml.etree import ElementTree

import numpy as np
from numba import cuda, float32
from simulated import ROOT

from layers import simulator
from layers.fast.conv.ptx import copy_vec4
from tinyconv.lab import picture_svg
from tinyconv.lab.picture_svg import svg_of
from tinyconv.lab.steps import Launch
from tinyconv.lab.svg_colours import plain_colours
from tinyconv.tools import draw_net

SVG = "{http://www.w3.org/2000/svg}"


@cuda.jit
def by_fours(x, y):
    tile = cuda.shared.array(2048, float32)
    i = cuda.threadIdx.x
    copy_vec4(tile, 1024 + 4 * (i ^ 1), x, 4 * i)
    cuda.syncthreads()
    for k in range(2):
        copy_vec4(y, 4 * i + 256 * k, tile, 1024 + 4 * i // 8 * 8)


def of_class(element, name):
    """The texts of a class, from left to right, row by row."""
    texts = [t for t in element.iter(f"{SVG}text") if t.get("class") == name]
    return [t.text for t in sorted(texts, key=lambda t: (float(t.get("y")), float(t.get("x"))))]


def test_lanes_that_move_16_bytes_are_labelled_and_rows_without_accesses_are_left_out():
    x, y = np.arange(256, dtype=np.float32), np.zeros(512, np.float32)
    with simulator.record() as traces:
        by_fours[1, 64](x, y)
    launch = Launch("swapped", traces[0], by_fours.fn)
    assert [(step.write, step.occurrence) for step in launch.block(0).steps] == [
        *((False, 0), (True, 0)),
        *((False, 0), (True, 0), (False, 1), (True, 1)),
    ]
    into_tile = ElementTree.fromstring(svg_of(launch, 0, 1))
    lanes = [lane ^ 1 for lane in range(32)]
    assert of_class(into_tile, "n w") == [str(lane) for lane in lanes * 2]
    grid = next(g for g in into_tile.iter(f"{SVG}g") if "tile" in (g[0].text or ""))
    rows = [str(1024 + 32 * row) for row in range(8)]
    assert of_class(grid, "x") == ["⋮", *rows, "⋮"]
    # A rectangle for each lane, around four squares.
    frames = [p.get("d") for p in grid.iter(f"{SVG}path") if p.get("stroke-width") == "2.6"]
    assert [frame.count("h36.4v6.4") for frame in frames] == [32, 32]
    assert "warp 1: 32 lanes, 128 elements, no bank conflict" in svg_of(launch, 0, 1)
    # Two lanes want the same: then it is said how many.
    assert set(of_class(ElementTree.fromstring(svg_of(launch, 0, 2)), "n")) == {"×2"}


def test_no_picture_needs_css_variables():
    """Where they are not known, all would be black. And at night colours differ from by day."""
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
    assert len(pictures) > 50
    for file in pictures:
        text = file.read_text(encoding="utf-8")
        assert "var(" not in text and "--ink" not in text, file.name
        day, night = text.split("@media(prefers-color-scheme:dark){")
        assert "text{font:12px system-ui,sans-serif;fill:#22252b}" in day
        assert "text{fill:#e6e7ea}" in night and '[fill="#fffefb"]{fill:#1b1e25}' in night
    for style in (picture_svg.STYLE, draw_net.STYLE):
        light = re.findall(r"--\w+:(#\w+)", style.partition("@media")[0])
        assert len(set(light)) == len(light)  # a colour by day stands for one at night


def test_colours_are_put_in():
    drawn = plain_colours(
        "<svg><style>svg{--a:#111;--b:#222}\n@media(prefers-color-scheme:dark){svg{--a:#eee;\n"
        '--b:#ddd}}\n.t{fill:var(--a);width:2px}.u{width:3px}</style><g fill="var(--b)"/></svg>'
    )
    assert drawn == (
        "<svg><style>.t{fill:#111;width:2px}.u{width:3px}\n@media(prefers-color-scheme:dark){\n"
        '[fill="#222"]{fill:#ddd}\n.t{fill:#eee}}</style><g fill="#222"/></svg>'
    )
