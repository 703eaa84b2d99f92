"""Pictures of kernels: steps put together from a trace, the page's data, and the still pictures."""

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numba import cuda, float32
from simulated import ROOT, line_of

from layers import MaxPool2D, simulator
from layers.simulator.trace import GLOBAL, LOCAL, SHARED
from tinyconv.lab import picture
from tinyconv.lab.cases import GROUPS
from tinyconv.lab.picture_command import launches
from tinyconv.lab.picture_svg import svg_of
from tinyconv.lab.steps import Launch, in_program_order, scattered
from tinyconv.lab.traffic import measure

# --- steps


@cuda.jit
def turns(x, y):
    tile = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    for k in range(1 + i // 32):  # the second warp goes round twice
        tile[(i + k) % 64] = x[i, k]  # in
    cuda.syncthreads()
    y[i] = tile[63 - i]  # out


@pytest.fixture(scope="module")
def turned():
    x, y = np.arange(128, dtype=np.float32).reshape(64, 2), np.zeros(64, np.float32)
    with simulator.record() as traces:
        turns[1, 64](x, y)
    return Launch("turns <&> tested", traces[0], turns.fn)


def listed(launch, block=0):
    """Line, turn, writes?, and for each warp its lanes and cells."""
    return [
        (
            launch.trace.instructions[s.instruction].line,
            s.occurrence,
            s.write,
            [(launch.arrays[r.array].name, r.warp, len(r.lanes), r.cells[0]) for r in s.requests],
        )
        for s in launch.block(block).steps
    ]


def test_a_step_is_the_kth_execution_of_an_instruction_by_every_warp(turned):
    line_in, line_out = line_of(turns, "# in"), line_of(turns, "# out")
    assert listed(turned) == [
        (line_in, 0, False, [("x", 0, 32, 0), ("x", 1, 32, 64)]),
        (line_in, 0, True, [("tile", 0, 32, 0), ("tile", 1, 32, 32)]),
        (line_in, 1, False, [("x", 1, 32, 65)]),
        (line_in, 1, True, [("tile", 1, 32, 33)]),
        (line_out, 0, False, [("tile", 0, 32, 63), ("tile", 1, 32, 31)]),
        (line_out, 0, True, [("y", 0, 32, 0), ("y", 1, 32, 32)]),
    ]


def test_barriers_stand_between_the_steps_they_part(turned):
    (mark,) = turned.block(0).marks
    assert (mark.after, mark.call) == (4, "syncthreads")
    assert mark.line == line_of(turns, "syncthreads")


def test_costs_of_requests(turned):
    steps = turned.block(0).steps
    # Every second float: 32 lanes spread over 8 sectors, where 4 would hold them.
    first = steps[0].requests[0]
    assert (first.sectors, first.ideal, first.ways, first.bad) == (8, 4, 0, True)
    assert [(r.ways, r.bad) for r in steps[4].requests] == [(1, False), (1, False)]
    assert [(r.sectors, r.ideal, r.bad) for r in steps[5].requests] == [(4, 4, False)] * 2


def test_lanes_are_scattered_if_neighbours_would_need_fewer_sectors():
    def far(offsets, lanes=range(32)):
        sectors = len({offset * 4 // 32 for offset in offsets})
        return scattered(sectors, lanes, list(offsets), 4)

    assert not far(range(1, 33))  # a run that is not aligned
    assert not far([*range(16), *range(72, 88)])  # two runs
    assert far(range(0, 64, 2))
    # Where every fourth lane reads what would be its own, the others are not missing.
    assert not far(range(0, 32, 4), range(0, 32, 4))
    assert far(range(0, 64, 8), range(8))


def test_program_order_holds_for_every_thread_that_does_not_contradict_another():
    # Thread 0 skips the branch (place 1) in its first turn, thread 1 in its second.
    a, b, end = (0, 0), (0, 1), (0, 9)
    again = (1, 0)
    assert in_program_order({0: [a, again, end], 1: [a, b, again, end]}) == [a, b, again, end]
    # They contradict each other about b and `again`, but not about the beginning and the end.
    assert in_program_order({0: [a, again, b, end], 1: [a, b, again, end]}) == [a, b, again, end]
    assert in_program_order({}) == []


@cache
def drawn(name):
    """The launches of `name`; they are looked at more than once."""
    return launches(name)


@pytest.mark.full
@pytest.mark.parametrize("name", GROUPS)
def test_no_access_is_lost_and_none_is_told_twice(name):
    for launch in drawn(name):
        trace = launch.trace
        listed = sum(
            len(r.lanes)
            for block in range(trace.blocks)
            for step in launch.block(block).steps
            for r in step.requests
        )
        local = np.array([array.space == LOCAL for array in trace.arrays])
        assert listed == np.count_nonzero(~local[trace.accesses["array"]])
        # A lane asks for one element at a time (four in a copy_vec4), and the steps of a warp are
        # its own.
        for step in launch.block(0).steps:
            lanes = len({(r.warp, lane) for r in step.requests for lane in r.lanes})
            itemsize = launch.arrays[step.requests[0].array].itemsize
            width = trace.instructions[step.instruction].width(itemsize)
            assert lanes * width == sum(len(r.lanes) for r in step.requests)


def test_pooling_step_by_step():
    """The steps of the pooling kernel are those that its index arithmetic predicts."""
    forward = launches("max_pool", (2, 5, 7, 6))[0]
    y_shape = forward.arrays[1].shape
    assert y_shape == (2, *MaxPool2D(3, 2).output_shape((5, 7, 6)))
    steps = forward.block(0).steps
    for turn, (r, s) in enumerate(np.ndindex(3, 3)):
        expected = [
            int(np.ravel_multi_index((n, 2 * p + r, 2 * q + s, c), (2, 5, 7, 6)))
            for n, p, q, c in np.ndindex(y_shape)
        ]
        step = steps[1 + turn]
        assert step.occurrence == turn and not step.write
        assert [cell for request in step.requests for cell in request.cells] == expected
    assert [forward.arrays[s.requests[0].array].name for s in steps[10:]] == ["y", "winner"]


@cuda.jit
def every_second(x):
    x[cuda.threadIdx.x] = 1


def test_cells_count_indices_not_memory_where_an_array_is_a_view():
    with simulator.record() as traces:
        every_second[1, 4](np.zeros(8, np.float32)[::2])
    launch = Launch("a view", traces[0])
    (request,) = launch.block(0).steps[0].requests
    assert request.cells == (0, 1, 2, 3) and not launch.arrays[0].in_order
    assert launch.arrays[0].values[None].tolist() == [1] * 4


# --- the page


class Page(HTMLParser):
    """Script texts, and every attribute that could load something."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.loads, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")
        self.loads += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def test_the_page_is_whole_and_asks_for_nothing():
    text = picture.page("max_pool", launches("max_pool"))
    page = Page(text)
    assert page.loads == ["data:,"]  # an icon of no bytes, or browsers would ask for one
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "{{" not in text and "@import" not in text and "url(" not in text
    data = json.loads(page.scripts[0])
    assert [launch["kernel"] for launch in data["launches"][:2]] == [
        "max_pool_forward_kernel",
        "max_pool_backward_kernel",
    ]
    assert str(ROOT) not in text


def test_text_that_looks_like_a_tag_does_not_end_the_page_early(turned):
    text = picture.page("</script><b>", [turned])
    page = Page(text)
    assert len(page.scripts) == 2
    data = json.loads(page.scripts[0])
    assert data["name"] == "</script><b>"
    assert data["launches"][0]["title"] == "turns <&> tested"


def test_the_page_finds_every_key_that_its_program_asks_for(turned):
    """The browser would only say "undefined"; here it is seen without one."""
    launch = picture.page_data("turns", [turned])["launches"][0]
    here = Path(picture.__file__).parent
    program = "".join((here / name).read_text() for name in ("page_arrays.js", "page.js"))
    asked = set(re.findall(r"\blaunch\.(\w+)", program))
    assert {"blocks", "places", "arrays", "sources"} <= asked
    assert asked <= set(launch), asked - set(launch)
    assert set(re.findall(r"(?<![\w.])block\.(\w+)", program)) <= set(launch["blocks"][0])


def test_source_lines_and_marked_columns(turned):
    data = picture.page_data("turns", [turned])["launches"][0]
    (source,) = data["sources"]
    # By its path in the project where the project runs from its folder, else by its name.
    assert source["file"] in ("tests/tinyconv/lab/test_picture.py", "test_picture.py")
    line = line_of(turns, "# out")
    assert source["lines"][line - source["first"]].strip().endswith("# out")
    marked = {
        source["lines"][p["line"] - source["first"]][slice(*p["columns"])]
        for p in data["places"]
        if p["columns"]
    }
    # Python tells columns from 3.11 on.
    assert marked in (set(), {"tile[(i + k) % 64]", "x[i, k]", "tile[63 - i]", "y[i]"})


def test_totals_add_up(turned):
    rows = picture.totals(turned)
    assert sum(row["requests"] for row in rows) == 10
    x = next(row for row in rows if turned.arrays[row["array"]].name == "x")
    assert (x["requests"], x["sectors"], x["ideal"], x["bad"]) == (3, 24, 12, 3)


@pytest.mark.full
@pytest.mark.parametrize("name", GROUPS)
def test_totals_agree_with_the_traffic_that_is_measured(name):
    for launch in drawn(name):
        lines, rows = measure(launch.trace).lines, picture.totals(launch)
        for space in (GLOBAL, SHARED):
            chosen = [row for row in rows if launch.arrays[row["array"]].space == space]
            theirs = [line for line in lines if line.space == space]
            # A request that reaches two arrays is drawn in each of them.
            two_arrays = any("," in line.array for line in theirs)
            for what, name_there in (
                ("requests", "requests"),
                ("sectors", "sectors"),
                ("ideal", "ideal_sectors"),
            ):
                drawn_sum = sum(row[what] for row in chosen)
                measured = sum(getattr(line, name_there) for line in theirs)
                assert drawn_sum == measured or (two_arrays and drawn_sum > measured)
            ways = sorted(row["ways"] for row in chosen)
            assert two_arrays or ways == sorted(line.conflict_ways for line in theirs)


# --- still pictures

SVG = "{http://www.w3.org/2000/svg}"


def squares(element, fill):
    """The upper left corners of all squares in paths of this colour."""
    return sorted(
        tuple(float(n) for n in corner)
        for path in element.iter(f"{SVG}path")
        if path.get("fill") == fill and path.get("opacity") is None
        for corner in re.findall(r"M([\d.]+) ([\d.]+)", path.get("d"))
    )


def test_a_still_picture_has_the_cells_of_its_step(turned):
    root = ElementTree.fromstring(svg_of(turned, 0, 0))
    text = " ".join("".join(t.itertext()) for t in root.iter(f"{SVG}text"))
    assert "turns <&> tested" in text and "step 1 of 6: read x" in text
    assert "warp 1: 32 lanes, 32 elements, 8 sectors, 4 would do" in text
    # x (64, 2) is drawn sixteen rows beside each other; both warps read its first column.
    (grid,) = [g for g in root.iter(f"{SVG}g") if "x (64, 2)" in "".join(g.itertext())][-1:]
    columns = {x for x, _ in squares(grid, "#2563d9")}
    assert len(squares(grid, "#2563d9")) == len(squares(grid, "#c76a00")) == 32
    assert len(columns) == 16 and len({(a - min(columns)) % 24 for a in columns}) == 1
