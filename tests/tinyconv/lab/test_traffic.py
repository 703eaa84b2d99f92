"""Requests, sectors, wavefronts and floors, against counts made by hand in the comments."""

import json

import numpy as np
import pytest
import textbook
from measured import sectors, textbook_traffic, the_line, traffic_of, wavefronts
from numba import cuda, float32, float64
from simulated import line_of

from layers.simulator.trace import GLOBAL, SHARED
from tinyconv.lab.cases import launches

# --- the five of every textbook


def test_copy():
    # 4000 = 125 warps of 32; each asks for 128 bytes in a row: 4 sectors.
    traffic = textbook_traffic("copy")
    for op, array in (("read", "x"), ("write", "y")):
        line = the_line(traffic, op, array)
        assert sectors(line) == (125, 500, 500)
        assert (line.lanes, line.bytes, line.efficiency) == (4000, 16000, 1.0)
        assert line.instruction.line == line_of(textbook.copy_kernel, "y[i] = x[i]")
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
    assert line.instruction.line == line_of(textbook.strided_copy_kernel, "x[i * stride]")
    assert line.instruction.source == "y[i] = x[i * stride]"
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
    traffic = traffic_of(kernel, grid, block, *args, operations=lambda *_: 2 * 64**3)
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
    assert line["instruction"]["source"] == "y[column + i, row + tx] = tile[tx, i]"
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
    for launch in launches("lrn", (2, 3, 2, 6)):
        x, width, half = launch.args[0], *launch.args[-5 if len(launch.args) == 8 else -4 :][:2]
        inside = 0
        for channel in range(x.shape[1]):
            low = channel // width * width
            inside += len(range(max(low, channel - half), min(low + width, channel + half + 1)))
        inside *= x.shape[0]
        expected = {
            "lrn_forward_kernel": 2 * inside + 4 * x.size,
            "lrn_backward_kernel": 3 * inside + 5 * x.size,
        }
        assert launch.case.operations(*launch.args) == expected[launch.name]


def test_operations_of_convolution():
    # 3×3, padding 1, 5 channels to 4, on 2 × 6 × 7 pixels: all three have as many multiply-adds.
    first = reversed(list(launches("conv", (2, 6, 7, 5)))[:4])
    whole = 2 * 2 * 6 * 7 * 4 * 3 * 3 * 5
    counts = {launch.name: launch.case.operations(*launch.args) for launch in first}
    assert counts.pop("conv_bias_gradient_kernel") == 2 * 6 * 7 * 4
    assert list(counts.values()) == [whole] * 3


def test_spaces():
    traffic = textbook_traffic("transpose")
    assert {line.space for line in traffic.lines} == {GLOBAL, SHARED}
    assert traffic.total("requests", op="read") == 128 == traffic.total("requests", SHARED, "read")
