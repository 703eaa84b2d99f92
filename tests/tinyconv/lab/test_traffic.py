"""Requests, sectors, wavefronts and floors, against counts made by hand in the comments."""

import json

import numpy as np
import pytest
import textbook
from numba import cuda, float32, float64
from simulated import line_of

from layers import simulator
from layers.lrn import lrn_forward_kernel
from layers.simulator.trace import GLOBAL, SHARED
from tinyconv.lab.flops import FLOPS
from tinyconv.lab.subjects import KERNELS, subjects
from tinyconv.lab.traffic import measure


def traffic_of(kernel, grid, block, *args, flops=None):
    with simulator.record() as traces:
        kernel[grid, block](*args)
    return measure(traces[0], flops)


def textbook_traffic(name, **settings):
    kernel, grid, block, args, _ = textbook.TEXTBOOK[name](**settings)
    return traffic_of(kernel, grid, block, *args)


def the_line(traffic, op, array):
    """The one load or store of `array`, or of the only shared array."""
    (line,) = (
        line
        for line in traffic.lines
        if line.op == op and (line.array == array or array == SHARED == line.space)
    )
    return line


def sectors(line):
    return line.requests, line.sectors, line.ideal_sectors


def wavefronts(line):
    return line.requests, line.wavefronts, line.conflict_ways


# --- the five of every textbook


def test_copy():
    # 4000 = 125 warps of 32; each asks for 128 bytes in a row: 4 sectors.
    traffic = textbook_traffic("copy")
    for op, array in (("read", "x"), ("write", "y")):
        line = the_line(traffic, op, array)
        assert sectors(line) == (125, 500, 500)
        assert (line.lanes, line.bytes, line.efficiency) == (4000, 16000, 1.0)
        assert line.place.line == line_of(textbook.copy_kernel, "y[i] = x[i]")
    assert (traffic.floor_read, traffic.floor_written) == (16000, 16000)
    assert traffic.traffic_bytes == 32 * 1000 == traffic.floor_bytes
    assert traffic.wasteful == [] and traffic.conflict_ways == 0
    assert traffic.flops_per_floor_byte is None


def test_copy_with_a_partial_last_warp():
    # One element more: a request with one lane, which needs one sector and cannot do with less.
    traffic = textbook_traffic("copy", n=4001)
    assert sectors(the_line(traffic, "read", "x")) == (126, 501, 501)
    # Seven lanes of 4 bytes: 28 bytes fit in one sector; nine need two.
    assert sectors(the_line(textbook_traffic("copy", n=7), "read", "x")) == (1, 1, 1)
    assert sectors(the_line(textbook_traffic("copy", n=9), "read", "x")) == (1, 2, 2)


def test_strided_copy_is_flagged_with_its_line():
    # Elements 8 · 4 = 32 bytes apart: 32 lanes in 32 sectors, of which 128 bytes would fill 4.
    # 1024 elements are 32 warps.
    traffic = textbook_traffic("strided copy")
    line = the_line(traffic, "read", "x")
    assert sectors(line) == (32, 32 * 32, 32 * 4)
    assert (line.sectors_per_request, line.efficiency) == (32, 0.125)
    assert sectors(the_line(traffic, "write", "y")) == (32, 128, 128)
    assert traffic.wasteful == [line]
    assert line.place.line == line_of(textbook.strided_copy_kernel, "x[i * stride]")
    assert line.place.source == "y[i] = x[i * stride]"
    # Every element of y, and as many of x.
    assert (traffic.floor_read, traffic.floor_written) == (4096, 4096)
    # With stride 2, 32 lanes reach over 256 bytes: 8 sectors.
    assert sectors(the_line(textbook_traffic("strided copy", stride=2), "read", "x"))[1] == 256


@pytest.mark.parametrize("name, ways", [("transpose", 32), ("transpose, padded", 1)])
def test_transposes(name, ways):
    # 4 blocks of 8 warps, each of which does 4 rows: 128 requests of everything. Rows of the tile
    # are 32 words in a row, so rows of global memory too: 4 sectors and no conflict. Down a column
    # of 32 × 32 all words are in one bank; of 32 × 33, in 32 banks.
    traffic = textbook_traffic(name)
    assert sectors(the_line(traffic, "read", "x")) == (128, 512, 512)
    assert sectors(the_line(traffic, "write", "y")) == (128, 512, 512)
    assert wavefronts(the_line(traffic, "write", SHARED)) == (128, 128, 1)
    read = the_line(traffic, "read", SHARED)
    assert wavefronts(read) == (128, 128 * ways, ways)
    assert (read.ideal_wavefronts, read.sectors, read.efficiency) == (128, 0, None)
    assert traffic.wasteful == ([read] if ways > 1 else [])
    assert traffic.conflict_ways == ways
    assert (traffic.floor_read, traffic.floor_written) == (64 * 64 * 4, 64 * 64 * 4)


def test_product():
    # 16 blocks of 8 warps; a warp is 2 rows of 16 threads. Four tiles: 16 · 8 · 4 = 512 requests
    # to a and as many to b, each for two rows of 64 bytes: 4 sectors.
    kernel, grid, block, args, _ = textbook.product()
    traffic = traffic_of(kernel, grid, block, *args, flops=2 * 64**3)
    for array in "ab":
        assert sectors(the_line(traffic, "read", array)) == (512, 2048, 2048)
    assert sectors(the_line(traffic, "write", "c")) == (128, 512, 512)
    # The tiles are written as 32 words in a row. In the sum, 16 times as often, the lanes want two
    # words of a_tile, 16 banks apart, and 16 neighbouring words of b_tile, each twice.
    shared = [line for line in traffic.lines if line.space == SHARED]
    assert [wavefronts(line) for line in shared if line.op == "write"] == [(512, 512, 1)] * 2
    assert [wavefronts(line) for line in shared if line.op == "read"] == [(8192, 8192, 1)] * 2
    assert traffic.total("wavefronts", SHARED) == 2 * 512 + 2 * 8192
    assert (traffic.floor_read, traffic.floor_written) == (2 * 4 * 64**2, 4 * 64**2)
    # 2 · 64³ operations; three matrices at best; 512 + 512 + 128 requests of 128 bytes.
    assert traffic.flops_per_floor_byte == pytest.approx(2 * 64**3 / (3 * 4 * 64**2))
    assert traffic.flops_per_traffic_byte == pytest.approx(2 * 64**3 / (1152 * 128))


# --- banks


@cuda.jit
def read_shared(y, stride):
    tile = cuda.shared.array(33 * 32, float32)
    i = cuda.threadIdx.x
    for j in range(i, 33 * 32, 32):
        tile[j] = j
    cuda.syncthreads()
    y[i] = tile[i * stride]


@pytest.mark.parametrize(
    "stride, ways", [(1, 1), (2, 2), (8, 8), (32, 32), (33, 1), (3, 1), (0, 1)]
)
def test_conflicts_of_strides(stride, ways):
    # Lane i is in bank i · stride mod 32. With stride 2, banks 0, 2, ... have two lanes each, with
    # 8 four have eight, with 32 one has all. Odd strides visit every bank; 0 is a broadcast.
    y = np.zeros(32, np.float32)
    traffic = traffic_of(read_shared, 1, 32, y, stride)
    assert wavefronts(the_line(traffic, "read", SHARED)) == (1, ways, ways)
    assert y.tolist() == [i * stride for i in range(32)]


@cuda.jit
def read_shared_float64(y, stride):
    tile = cuda.shared.array(64, float64)
    i = cuda.threadIdx.x
    tile[i] = i
    tile[i + 32] = i
    cuda.syncthreads()
    y[i] = tile[i * stride]


@pytest.mark.parametrize("stride, ways", [(1, 1), (2, 2), (0, 1)])
def test_float64_takes_two_passes(stride, ways):
    # 16 lanes of 2 words fill the 32 banks exactly; at twice the distance they need 16 banks for 32
    # words. Each half of the warp has wavefronts of its own, so there are 2 · ways.
    traffic = traffic_of(read_shared_float64, 1, 32, np.zeros(32), stride)
    read = the_line(traffic, "read", SHARED)
    assert (read.requests, read.wavefronts, read.ideal_wavefronts) == (1, 2 * ways, 2)
    assert read.conflict_ways == ways
    # 32 · 8 bytes of y: 8 sectors.
    assert sectors(the_line(traffic, "write", "y")) == (1, 8, 8)


@cuda.jit
def small_elements(y):
    tile = cuda.shared.array(128, "uint8")
    i = cuda.threadIdx.x
    tile[i] = i
    cuda.syncthreads()
    y[i] = tile[i * 4 % 128]


def test_bytes_share_words():
    # 32 bytes are 8 words, each for four lanes: no conflict. Four bytes apart: every lane a bank.
    traffic = traffic_of(small_elements, 1, 32, np.zeros(32, np.uint8))
    assert wavefronts(the_line(traffic, "write", SHARED)) == (1, 1, 1)
    assert wavefronts(the_line(traffic, "read", SHARED)) == (1, 1, 1)
    assert sectors(the_line(traffic, "write", "y")) == (1, 1, 1)


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
    assert line.place.line == line_of(first_column, "row[0]")


@cuda.jit
def read_back(x, y):
    i = cuda.grid(1)
    y[i] = x[i]
    y[i] = y[i] + y[63 - i]


def test_what_a_kernel_wrote_itself_need_not_be_read():
    # One warp, in which thread i reads y[63 − i] that nobody writes, and y[i] after writing it.
    traffic = traffic_of(read_back, 1, 32, np.zeros(32, np.float32), np.zeros(64, np.float32))
    assert (traffic.floor_read, traffic.floor_written) == (128 + 128, 128)


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
    assert line.place.line == line_of(count, "cuda.atomic.add")
    assert len(traffic.lines) == 1
    assert (traffic.floor_read, traffic.floor_written) == (8, 8)


@cuda.jit
def only_its_own(y):
    mine = cuda.local.array(2, float32)
    mine[0] = cuda.grid(1)
    y[0, 0] = mine[0]


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


# --- what is made of it


def test_json_round_trip():
    traffic = textbook_traffic("transpose")
    everything = traffic.as_dict()
    assert json.loads(json.dumps(everything)) == everything
    assert everything["grid"] == [2, 2, 1]
    assert len(everything["lines"]) == 4
    assert everything["totals"]["global_read"]["sectors"] == 512
    assert everything["totals"]["shared_read"]["wavefronts"] == 4096
    line = next(line for line in everything["lines"] if line["wasteful"])
    assert line["place"]["source"] == "y[column + i, row + tx] = tile[tx, i]"
    assert (line["conflict_ways"], line["efficiency"]) == (32, None)


def test_the_table():
    text = str(textbook_traffic("transpose")).splitlines()
    marked = [line for line in text if line.startswith("!")]
    assert len(marked) == 1 and marked[0].endswith("32 ways") and " read shared" in marked[0]
    number = line_of(textbook.transpose_kernel, "tile[tx, i]")
    assert f"{number}: y[column + i, row + tx] = tile[tx, i]" in text
    assert any(line.startswith("global: 256 requests, 1,024 sectors, ideal 1,024") for line in text)
    assert "shared: 256 requests, 4,224 wavefronts, 256 without conflicts" in text
    strided = str(textbook_traffic("strided copy"))
    assert "32.00" in strided and "12.5%" in strided and "wavefronts" not in strided


def test_operations_of_normalization():
    for subject in subjects("lrn", (2, 3, 2, 6)):
        x, width, half = subject.args[0], *subject.args[-5 if len(subject.args) == 8 else -4 :][:2]
        inside = 0
        for channel in range(x.shape[1]):
            low = channel // width * width
            inside += len(range(max(low, channel - half), min(low + width, channel + half + 1)))
        inside *= x.shape[0]
        expected = {
            "lrn_forward_kernel": 2 * inside + 4 * x.size,
            "lrn_backward_kernel": 3 * inside + 5 * x.size,
        }
        assert FLOPS[subject.name](*subject.args) == expected[subject.name]


def test_operations_of_convolution():
    # 3×3, padding 1, 5 channels to 4, on 2 × 6 × 7 pixels: all three have as many multiply-adds.
    named = {
        subject.name: subject for subject in reversed(list(subjects("conv", (2, 6, 7, 5)))[:4])
    }
    whole = 2 * 2 * 6 * 7 * 4 * 3 * 3 * 5
    counts = {name: FLOPS[name](*subject.args) for name, subject in named.items()}
    assert counts.pop("conv_bias_gradient_kernel") == 2 * 6 * 7 * 4
    assert list(counts.values()) == [whole] * 3
    assert set(FLOPS) <= set(KERNELS)


def test_spaces():
    traffic = textbook_traffic("transpose")
    assert {line.space for line in traffic.lines} == {GLOBAL, SHARED}
    assert traffic.total("requests", op="read") == 128 == traffic.total("requests", SHARED, "read")
