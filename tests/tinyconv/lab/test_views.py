"""Views of the convolution ladder: one whole tile, the pipeline over time, the banks."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from marks import long
from numba import cuda, float32, uint32
from simulated import ROOT

from layers import simulator
from layers.fast.conv import shared_memory, tiled
from layers.fast.conv.ptx import cp_async, cp_async_commit_group, cp_async_wait_group
from layers.fast.conv.tile import BUFFER_STRIDE
from tinyconv.lab.banks_svg import request_of
from tinyconv.lab.convolution_views import (
    VIEWS,
    filter_gradient,
    forward,
    launched,
    numbered_forward,
    replaced,
)
from tinyconv.lab.numbered import fragments, numbered, tile_of
from tinyconv.lab.pipeline_svg import FLIGHT, LOAD, MULTIPLY, STORE, in_words, timeline
from tinyconv.lab.tile_svg import joined, spoken

# --- one whole tile


def test_a_tile_has_the_owners_that_the_kernels_indices_predict():
    _, run = numbered_forward("shared", (1, 6, 6, 16), 16, 3)
    tile = tile_of(run)
    x, w, y = {}, {}, {}
    in_x, in_w = {}, {}
    for thread in range(256):
        ty, tx = divmod(thread, 16)
        p, q = divmod(ty, 4)
        # The last k-tile: all 16 channels of tap (2, 2).
        x[int(np.ravel_multi_index((0, p + 2, q + 2, tx), (1, 6, 6, 16)))] = {thread}
        w[int(np.ravel_multi_index((ty, 2, 2, tx), (16, 3, 3, 16)))] = {thread}
        y[int(np.ravel_multi_index((0, p, q, tx), (1, 4, 4, 16)))] = {thread}
        in_x[ty * 16 + tx] = in_w[tx * 18 + ty] = thread
    assert tile.loads == {"x": x, "w": w} and tile.owns == {"y": y}
    assert [held for _, held in tile.stores] == [in_x, in_w]
    # In the product a thread reads a row of x_tile, and a column of w_tile.
    rows, columns = ({at for at, who in seen.items() if 37 in who} for seen in tile.reads)
    assert rows == set(range(32, 48)) and columns == {18 * d + 5 for d in range(16)}


def test_lanes_hold_the_fragments_of_the_instruction():
    """As PTX's tables for mma.m16n8k8 have it, and `tensor_core.py` the order of the filters."""
    _, run = numbered_forward("tensor_tf32", (1, 9, 17, 16), 64, 2)
    a, b = fragments(run, 0, "x", 4), fragments(run, 0, "w", 2)
    for lane in range(32):
        g, t = divmod(lane, 4)
        pixels = [(0, 1, 1 + column) for column in (g, g + 8)]  # of tap (1, 1)
        own_a = {(*pixel, 8 + t + k) for pixel in pixels for k in (0, 4)}
        own_b = {(32 + 4 * g, 1, 1, 8 + t + k) for k in (0, 4)}  # the last 32 of 64 filters
        for own, found, shape in ((own_a, a, (1, 9, 17, 16)), (own_b, b, (64, 2, 2, 16))):
            assert own == {
                tuple(map(int, np.unravel_index(at, shape)))
                for at, lanes in found.items()
                if lane in lanes
            }


@cuda.jit
def shifted(x, y):
    tile = cuda.shared.array(40, float32)
    i = cuda.threadIdx.x
    tile[i] = x[(i + 1) % 32]
    if i == 3:
        tile[i] = 0
    cuda.syncthreads()
    y[i] = tile[31 - i]


def test_numbers_tell_where_a_word_came_from_and_zeros_nothing():
    args = (np.zeros(32, np.float32), np.zeros(32, np.float32))
    tile = tile_of(numbered(shifted, 1, 32, args, {}))
    assert tile.loads == {"x": {(i + 1) % 32: {i} for i in range(32) if i != 3}}
    assert [held for _, held in tile.stores] == [{i: i for i in range(32) if i != 3}]
    assert tile.reads == [{i: {31 - i} for i in range(32)}]
    assert (args[0] == 0).all()  # the arrays of the launch are left alone


def test_rectangles_are_joined_within_strips_and_alignment():
    cells = [(row, column, "a") for row in range(3) for column in range(6)]
    assert joined(cells, 0, 64) == [[0, 0, 3, 6, "a"]]
    assert joined(cells, 4, 2) == [
        *([0, 0, 2, 4, "a"], [0, 4, 2, 2, "a"]),
        *([2, 0, 1, 4, "a"], [2, 4, 1, 2, "a"]),
    ]
    gap = [cell for cell in cells if cell[:2] != (1, 2)]
    assert sum(down * across for _, _, down, across, _ in joined(gap, 0, 64)) == 17


def test_indices_are_spoken_as_runs():
    assert spoken((4, 8), [16, 17, 18, 25]) == "[2, 0 to 2], [3, 1]"
    assert spoken((4, 8), [7, 8]) == "[0, 7], [1, 0]"  # neighbours of two rows
    assert spoken((9,), [0, 2, 4, 6, 8]) == "[0], [2], … (5 runs)"


# --- the pipeline


@cuda.jit
def copying(x, y, tiles, ahead, newest):
    # Two stages of 128 words; `ahead` k-tiles are begun before the first one is waited for.
    tile = cuda.shared.array(256, uint32)
    i = cuda.threadIdx.x
    for k in range(-ahead, tiles):
        if k + ahead < tiles:
            cp_async(tile, (k + ahead) % 2 * 128 + 4 * i, x, 128 * (k + ahead) + 4 * i, True)
        cp_async_commit_group()
        if k >= 0:
            cp_async_wait_group(newest)
            cuda.syncthreads()
            y[128 * k + i] = tile[k % 2 * 128 + 127 - i]
            cuda.syncthreads()
    cp_async_wait_group(0)


@pytest.mark.parametrize("ahead, newest, overlap", [(0, 0, 0), (1, 0, 0), (1, 1, 1)])
def test_copies_are_in_flight_from_their_commit_to_their_wait(ahead, newest, overlap):
    x, y = np.arange(512, dtype=np.uint32), np.zeros(512, np.uint32)
    with simulator.record() as traces:
        copying[1, 32](x, y, 4, ahead, newest)
    made = timeline(traces[0], 128)
    assert made.asynchronous and made.overlap() == overlap
    assert [k.stage for k in made.k_tiles] == [0, 1, 0, 1] and all(k.read for k in made.k_tiles)
    assert len(made.barriers) == 8 and [n for _, n in made.waits] == [newest] * 4 + [0]
    for k in made.k_tiles:
        begun, flight, product = (k.spans[kind] for kind in (LOAD, FLIGHT, MULTIPLY))
        assert begun[1] == flight[0] <= flight[1] <= product[0]
    assert f"{overlap or 'no'} k-tile is in flight" in next(in_words(made, 2))


@pytest.mark.full
def test_the_three_rungs_overlap_as_they_say():
    one = timeline(launched(forward("shared", (1, 3, 3, 24), 16, 2)).trace, 16 * 18)
    assert len(one.k_tiles) == 6 and one.overlap() == 0 and len(one.barriers) == 12
    two = timeline(launched(forward("tiled", (1, 3, 3, 12), 8, 2)).trace, BUFFER_STRIDE)
    assert [k.stage for k in two.k_tiles] == [0, 1, 0, 1, 0, 1, 0] and two.overlap() == 1
    assert [k.read for k in two.k_tiles] == [True] * 6 + [False] and len(two.barriers) == 7
    assert not two.asynchronous and STORE in two.k_tiles[0].spans
    three = timeline(launched(forward("tensor_tf32", (1, 3, 3, 24), 64, 2)).trace, 192 * 16)
    assert [k.stage for k in three.k_tiles] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert three.overlap() == 2 and len(three.barriers) == 6
    assert [newest for _, newest in three.waits] == [1] * 6 + [0]


# --- banks


def test_a_plain_layout_computes_the_same_with_conflicts():
    launch = forward("shared", (1, 6, 6, 16), 16, 3)
    line = "w_tile[tx, ty] = w_value"
    made, y = launched(launch), launch.args[3].copy()
    with replaced(shared_memory, PADDED=16):
        launch.args[3][...] = 0
        plain = launched(launch)
    np.testing.assert_array_equal(launch.args[3], y)
    assert shared_memory.PADDED == 18
    assert (request_of(made, line).ways, request_of(plain, line).ways) == (1, 8)
    with pytest.raises(ValueError, match="no access to shared memory in a line 'no such'"):
        request_of(made, "no such")


def test_values_are_restored_after_an_error():
    with pytest.raises(ZeroDivisionError), replaced(tiled, A_STRIDE=1, B_STRIDE=2):
        assert (tiled.A_STRIDE, tiled.B_STRIDE) == (1, 2)
        raise ZeroDivisionError
    assert (tiled.A_STRIDE, tiled.B_STRIDE) == (132, 68)


def test_the_gradients_use_the_kernels_that_are_shown():
    assert filter_gradient("tiled").name == "tiled_filter_scalar_kernel"
    assert filter_gradient("tensor_bf16").name == "tensor_filter_128x64_bf16_kernel"


@pytest.mark.parametrize(
    "name, view, conflicts",
    [
        ("shared", "banks", {"8-way"}),
        ("tiled", "banks", {"2-way"}),
        long("tiled", "gradient_banks", {"2-way"}),
        long("tensor_tf32", "banks", {"4-way"}),
        long("tensor_tf32", "gradient_banks", {"4-way"}),
        ("tensor_bf16", "gradient_banks", {"2-way", "8-way"}),
    ],
)
def test_only_plain_layouts_have_conflicts(name, view, conflicts):
    text = VIEWS[name][view]()
    root = ElementTree.fromstring(text)
    said = ["".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")]
    verdicts = [line for line in said if "bank conflict" in line]
    plain, made = verdicts[::2], verdicts[1::2]
    assert set(made) == {"no bank conflict"}
    assert {word for line in plain for word in re.findall(r"\d+-way", line)} == conflicts


# --- the pictures


@pytest.mark.parametrize("name, view", [(n, v) for n, views in VIEWS.items() for v in views])
def test_every_label_is_inside_its_picture(name, view):
    root = ElementTree.parse(ROOT / "docs" / "pictures" / f"{name}_{view}.svg").getroot()
    width, height = (float(root.get(side)) for side in ("width", "height"))
    anchors = {"k": "middle", "r": "end"}

    def check(element, x, y):
        move = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))
        x, y = (x + float(move[1]), y + float(move[2])) if move else (x, y)
        if element.tag.endswith("text") and element.text:
            small = element.get("class") in ("x", "k", "r")
            length = len(element.text) * (4.2 if small else 6.1)
            anchor = element.get("text-anchor") or anchors.get(element.get("class"), "start")
            left = (
                x
                + float(element.get("x", 0))
                - length * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            )
            assert left > 0 and left + length < width, element.text
            assert 0 < y + float(element.get("y")) < height, element.text
        for child in element:
            check(child, x, y)

    check(root, 0, 0)
