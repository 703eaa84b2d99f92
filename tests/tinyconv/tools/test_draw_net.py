"""The picture of the net: what is in it is what the net is, and the committed one is up to date."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from layers import Conv2D, ReLU
from tinyconv import Sequential, alexnet
from tinyconv.parallel.columns import Columns
from tinyconv.tools.draw_command import crossing_table
from tinyconv.tools.draw_net import blocks_of, svg_of_net

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def papers():
    """The paper's net in two columns, at full size."""
    return Columns(alexnet(recipe="paper"))


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def arrows(svg, kind):
    return [e for e in ET.fromstring(svg).iter() if e.get("class") == kind]


@pytest.mark.full
def test_the_committed_picture_is_what_the_program_draws(papers):
    assert (DOCS / "pictures" / "two_columns.svg").read_text("utf-8") == svg_of_net(papers)


def test_the_documents_table_is_what_the_program_prints(papers):
    document = (DOCS / "two_gpus.md").read_text("utf-8")
    assert f"```\n{crossing_table(papers)}\n```" in document


def test_the_picture_says_what_the_paper_says(papers):
    svg = svg_of_net(papers)
    said = texts(svg)
    assert "AlexNet: 60,965,224 parameters" in said and "image 224×224×3" in said
    assert said.count("conv1: 48 of 11×11×3, stride 4") == 2
    assert said.count("conv3: 192 of 3×3×256") == 2
    assert said.count("gives 6×6×128; 221,312 parameters") == 2
    assert said.count("fc7: 2,048 units of 4,096 inputs") == 2
    assert [s for s in said if "each way" in s] == [
        f"{count:,} each way"
        for count in (4 * 2 * 55**2, 4 * 2 * 27**2, 4 * 128 * 13**2, 4 * 128 * 36, 8192, 8192)
    ]
    # Two at each border and each exchange, one for the logits.
    assert len(arrows(svg, "y")) == 2 * (2 + 4) + 1 and "2,000" in said


def test_what_does_not_cross_is_not_drawn():
    svg = svg_of_net(Columns(alexnet(10, 0.1, 67, "authors")))
    assert "LRN at the border" not in texts(svg) and len(arrows(svg, "y")) == 2 * 4 + 1


def test_one_device_is_one_row_of_boxes_and_nothing_crosses():
    net = alexnet(10, 0.1, 67, "robust")
    svg = svg_of_net(net)
    said = texts(svg)
    assert not arrows(svg, "y") and len(arrows(svg, "b0")) == 8 and not arrows(svg, "b1")
    assert f"AlexNet: {sum(p.value.size for p in net.parameters()):,} parameters" in said
    assert any(text.endswith(", 2 groups") for text in said)
    assert "softmax over 10 classes" in said


def test_unequal_halves_are_written_as_they_are():
    said = texts(svg_of_net(Columns(alexnet(5, 0.1, 67))))
    assert any(text.startswith("fc8: 3 units") for text in said)
    assert any(text.startswith("fc8: 2 units") for text in said) and "8" in said


def test_every_number_of_a_float64_net_has_eight_bytes():
    said = texts(svg_of_net(Columns(alexnet(10, 0.1, 67, "paper").to("cpu", "float64"))))
    first = blocks_of(Columns(alexnet(10, 0.1, 67, "paper")))[0][0].borders[0]
    assert first
    assert f"{8 * first:,} each way" in said


def test_nothing_is_drawn_over_the_edge(papers):
    for net in (papers, alexnet(10, 0.1, 67)):
        root = ET.fromstring(svg_of_net(net))
        width, height = float(root.get("width")), float(root.get("height"))
        for element in root.iter():
            for number, most in (("x", width), ("y", height)):
                assert 0 <= float(element.get(number, 0)) <= most
            for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", element.get("d") or ""):
                assert float(x) <= width and float(y) <= height


def test_names_are_text_and_no_markup():
    net = Sequential({"a<b&c": Conv2D(3, 4, 3)}, (8, 8, 3))
    assert "a<b&c: 4 of 3×3×3" in texts(svg_of_net(net, "<title>"))


@pytest.mark.parametrize(
    "net, said",
    [
        (Sequential({"conv": Conv2D(3, 4, 3)}), "no input_shape"),
        (Sequential({"relu": ReLU()}, (8, 8, 3)), "begins with relu, which has no weights"),
    ],
)
def test_a_net_that_cannot_be_drawn_says_why(net, said):
    with pytest.raises(ValueError, match=said):
        svg_of_net(net)
