"""dL/dw on tensor cores: no lane waits for another at shared memory, and only whole sectors move.

`test_tensor_banks.py` asks the functions that place chunks; here it is the kernels' own addresses,
of every lane of a whole tile, as the simulator notes them.
"""

import numpy as np
import pytest

from layers import Device, simulator
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.layer import Buffers
from tinyconv.lab.traffic import measure

if not simulator.installed:
    pytest.skip(
        "accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1",
        allow_module_level=True,
    )

KINDS = {"tf32": np.float32, "bf16": np.uint16}
FILTERS = {"128x128": 128, "128x64": 64}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def launch(kind, tile, channels, filters):
    """What each line of the kernel asks of memory, for 32 windows of one pixel."""
    x, dy = np.ones((1, 4, 8, channels), KINDS[kind]), np.ones((1, 4, 8, filters), KINDS[kind])
    dw = np.empty((filters, 1, 1, channels), np.float32)
    buffer = Buffers(Device("cuda:0"), np.float32)
    with simulator.record() as traces:
        tensor_filter_gradient(x, dy, dw, 1, 0, 1, buffer, tile)
    return measure(traces[0]).lines


@pytest.fixture(scope="module", params=FILTERS)
def lines(request, kind):
    """Of a launch with one whole tile."""
    return launch(kind, request.param, 128, FILTERS[request.param])


def test_shared_memory_has_no_bank_conflicts(kind, lines):
    shared = [line for line in lines if line.space == "shared"]
    assert len(shared) == 4  # fragments of dy and of a are read, k-tiles of both are written
    assert {line.conflict_ways for line in shared} == {1}


def test_k_tiles_are_copied_in_whole_sectors(lines):
    copied = {line.array: line for line in lines if line.array in ("x", "dy")}
    assert set(copied) == {"x", "dy"}
    for line in copied.values():
        assert line.instruction.vectorized
        assert line.sectors == line.ideal_sectors


def test_fragments_of_bf16_are_loaded_16_bytes_at_a_time(kind, lines):
    reads = [line for line in lines if line.space == "shared" and line.op == "read"]
    assert {line.instruction.vectorized > 0 for line in reads} == {kind == "bf16"}


def test_where_a_tile_is_not_full_nothing_is_read_in_vain(kind):
    read = {line.array: line.bytes for line in launch(kind, "128x64", 8, 16) if line.op == "read"}
    size = np.dtype(KINDS[kind]).itemsize
    assert (read["x"], read["dy"]) == (32 * 8 * size, 32 * 16 * size)
