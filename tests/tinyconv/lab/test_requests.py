"""How accesses become requests, and where their addresses lie: counts made by hand."""

import json

import numpy as np
import pytest
import textbook
from measured import sectors, the_line, traffic_of, wavefronts
from numba import cuda, float32
from simulated import line_of

from layers import simulator
from layers.lrn import lrn_forward_kernel
from tinyconv.lab.requests import LANE, costs

# --- addresses


def test_a_view_keeps_its_offset():
    # One element on, 128 bytes reach over five sectors of 32; eight elements on, over four.
    whole = np.zeros(1100, np.float32)
    for skip, per_request in ((0, 4), (1, 5), (8, 4)):
        x, y = whole[skip : skip + 1024], np.zeros(1024, np.float32)
        traffic = traffic_of(textbook.copy_kernel, 8, 128, x, y)
        assert sectors(the_line(traffic, "read", "x")) == (32, 32 * per_request, 128)
        assert sectors(the_line(traffic, "write", "y")) == (32, 128, 128)


def test_backwards_is_as_good_as_forwards():
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    traffic = traffic_of(textbook.copy_kernel, 1, 64, x[::-1], y)
    assert y.tolist() == x[::-1].tolist()
    assert sectors(the_line(traffic, "read", "x")) == (2, 8, 8)


def test_two_views_of_one_memory_count_once():
    # x and y are one array: its 256 bytes are read once and written once at least.
    x = np.zeros(64, np.float32)
    traffic = traffic_of(textbook.copy_kernel, 1, 64, x, x[:])
    assert (traffic.floor_read, traffic.floor_written) == (256, 256)


@cuda.jit
def first_column(x, y):
    i = cuda.grid(1)
    row = x[i]
    y[i] = row[0]


def test_rows():
    # 8 float64 a row are 64 bytes: each lane's first element is in a sector of its own.
    traffic = traffic_of(first_column, 1, 32, np.zeros((32, 8)), np.zeros(32))
    line = the_line(traffic, "read", "x")
    assert sectors(line) == (1, 32, 8)
    assert line.instruction.line == line_of(first_column, "row[0]")


@cuda.jit
def read_back(x, y):
    i = cuda.grid(1)
    y[i] = x[i]
    y[i] = y[i] + y[63 - i]


def test_what_a_kernel_wrote_itself_need_not_be_read():
    # One warp, in which thread i reads y[63 − i] that no thread writes, and y[i] after writing it.
    traffic = traffic_of(read_back, 1, 32, np.zeros(32, np.float32), np.zeros(64, np.float32))
    assert (traffic.floor_read, traffic.floor_written) == (128 + 128, 128)


# --- what one request costs


def cost(offsets, itemsize, *, shared=False):
    """Of the first lanes of a warp, each at one of `offsets`."""
    lanes = np.zeros(len(offsets), LANE)
    lanes["thread"], lanes["size"], lanes["shared"] = range(len(offsets)), itemsize, shared
    lanes["address"] = np.array(offsets) * itemsize
    found = costs(lanes, np.zeros(len(offsets), np.int64))
    return int(found.ways[0]) if shared else (int(found.sectors[0]), int(found.ideal[0]))


@pytest.mark.parametrize(
    "offsets, itemsize, expected",
    [
        (range(32), 4, (4, 4)),
        (range(1, 33), 4, (5, 4)),
        ([7] * 32, 4, (1, 1)),
        (range(0, 256, 8), 4, (32, 4)),
        (range(32), 8, (8, 8)),
        (range(32), 1, (1, 1)),
    ],
)
def test_sectors(offsets, itemsize, expected):
    assert cost(offsets, itemsize) == expected


@pytest.mark.parametrize(
    "offsets, itemsize, ways",
    [
        (range(32), 4, 1),
        ([5] * 32, 4, 1),  # all the same word
        (range(0, 64, 2), 4, 2),
        (range(0, 32 * 32, 32), 4, 32),
        (range(0, 32 * 33, 33), 4, 1),
        (range(32), 8, 1),
        (range(0, 64, 2), 8, 2),
        (range(32), 2, 1),
    ],
)
def test_bank_conflicts(offsets, itemsize, ways):
    assert cost(offsets, itemsize, shared=True) == ways


# --- requests


@cuda.jit
def triangle(x, y):
    i = cuda.grid(1)
    total = float32(0)
    for j in range(i + 1):
        total += x[j]
    y[i] = total


def test_lanes_that_leave_a_loop_are_inactive():
    # In round j the lanes i >= j read x[j]: one request, one sector; lanes 32 + 31 + ... + 1.
    traffic = traffic_of(triangle, 1, 32, np.ones(32, np.float32), np.zeros(32, np.float32))
    line = the_line(traffic, "read", "x")
    assert sectors(line) == (32, 32, 32)
    assert line.lanes == 32 * 33 // 2
    # The second warp alone runs 33 to 64 rounds.
    traffic = traffic_of(triangle, 1, 64, np.ones(64, np.float32), np.zeros(64, np.float32))
    assert the_line(traffic, "read", "x").requests == 32 + 64


@cuda.jit
def many_rounds(x, y):
    i = cuda.grid(1)
    total = float32(0)
    for j in range(100):
        total += x[j]
    y[i] = total


def test_an_instruction_is_one_line_however_often_it_runs():
    # Python moves the place of an a[i] that has run some times: see `instructions`.
    x, y = np.ones(100, np.float32), np.zeros(40, np.float32)
    traffic = traffic_of(many_rounds, 1, 40, x, y)
    assert [(line.array, line.requests, line.lanes) for line in traffic.lines] == [
        ("x", 2 * 100, 40 * 100),
        ("y", 2, 40),
    ]


@cuda.jit
def meet_between(x, y):
    i = cuda.grid(1)
    for j in range(2):
        if j == 1 or i % 2:
            y[i] = x[32 * j + i]
        cuda.syncthreads()


def test_barriers_put_lanes_back_in_step():
    # Before the barrier the odd lanes read the first half, after it all read the second. Without
    # regard to the barrier the odd lanes' first time would be paired with the even lanes' first.
    traffic = traffic_of(meet_between, 1, 32, np.zeros(64, np.float32), np.zeros(32, np.float32))
    assert sectors(the_line(traffic, "read", "x")) == (2, 8, 2 + 4)


@cuda.jit
def two_branches(x, y):
    i = cuda.grid(1)
    if i % 2:
        y[i] = x[i]
    else:
        y[i] = x[i] + 1


def test_branches_are_different_instructions():
    traffic = traffic_of(two_branches, 1, 32, np.zeros(32, np.float32), np.zeros(32, np.float32))
    # 16 lanes in 4 sectors, where 2 would hold their 64 bytes.
    assert [sectors(line) for line in traffic.lines] == [(1, 4, 2)] * 4


@cuda.jit
def count(total):
    for _ in range(3):
        cuda.atomic.add(total, cuda.grid(1) % 2, 1)


def test_an_atomic_is_one_request():
    # Four warps, three times each, 32 lanes at two neighbouring elements.
    total = np.zeros(2, np.int32)
    traffic = traffic_of(count, 2, 64, total)
    assert total.tolist() == [192, 192]
    line = the_line(traffic, "atomic", "total")
    assert (sectors(line), line.lanes) == ((12, 12, 12), 384)
    assert line.instruction.line == line_of(count, "cuda.atomic.add")
    assert len(traffic.lines) == 1
    assert (traffic.floor_read, traffic.floor_written) == (8, 8)


@cuda.jit
def only_its_own(y):
    part = cuda.local.array(2, float32)
    part[0] = cuda.grid(1)
    y[0, 0] = part[0]


@cuda.jit
def nothing(x):
    pass


def test_local_arrays_and_nothing_at_all():
    traffic = traffic_of(only_its_own, 1, 2, np.zeros((1, 1)))
    assert [(line.op, line.array) for line in traffic.lines] == [("write", "y")]
    traffic = traffic_of(nothing, 1, 2, np.zeros(1))
    assert (traffic.lines, traffic.efficiency, traffic.floor_bytes) == ((), None, 0)
    assert "nothing" in str(traffic)
    json.dumps(traffic.as_dict())


def test_order_does_not_matter():
    kernel, grid, block, args, _ = textbook.transpose()
    costs = []
    for seed in (1, 2):
        with simulator.shuffled(seed):
            traffic = traffic_of(kernel, grid, block, *args)
        costs.append([(*sectors(line), *wavefronts(line)) for line in traffic.lines])
    assert costs[0] == costs[1]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_layouts(layout):
    # LRN of one image, 8 × 8 pixels of 32 channels: a warp is a pixel. Channels last, its elements
    # are neighbours: 128 bytes in 4 sectors. Channels first, they are 64 · 4 bytes apart: 32.
    pixels, channels = 64, 32
    arrays = [np.ones((pixels, channels), np.float32) for _ in range(3)]
    if layout == "NCHW":
        arrays = [np.ones((channels, pixels), np.float32).T for _ in range(3)]
    traffic = traffic_of(lrn_forward_kernel, 16, 128, *arrays, channels, 2, 2.0, 0.5, 0.75)
    per_request = 4 if layout == "NHWC" else 32
    for array in ("y", "scale"):
        assert sectors(the_line(traffic, "write", array)) == (64, 64 * per_request, 256)
    window = [line for line in traffic.lines if line.op == "read" and line.requests == 5 * 64]
    assert len(window) == 2  # x[row, j] twice
    for line in window:
        # The k-th neighbours of channels 0 … 31 are 0 0 0 1 2 … 29; 1 1 1 2 … 30; 2 2 2 3 … 31;
        # then channel 0 drops out, 3 3 4 … 31 and 31 none; then 1 and 30 too, 4 5 … 31: 30, 30,
        # 30, 29 and 28 elements. Their runs reach over 4 sectors each and would fill 4.
        assert (line.requests, line.ideal_sectors) == (320, 64 * 20)
        expected = 20 if layout == "NHWC" else 30 + 30 + 30 + 29 + 28
        assert line.sectors == 64 * expected
    assert (traffic.efficiency < 0.5) == (layout == "NCHW") == bool(traffic.wasteful)
    assert traffic.floor_bytes == 3 * 4 * pixels * channels
