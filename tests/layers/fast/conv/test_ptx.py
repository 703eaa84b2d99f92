"""Moving 16 bytes by one instruction: what arrives where, and what the instructions compile to.

What the simulator says to those who use them wrongly: `simulator/test_copies.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import instructions
import numpy as np
import pytest

from layers import simulator
from layers.device import SIMULATED, cuda, grid_of
from layers.fast import bfloat16
from tinyconv.lab.traffic import measure

ROOT = Path(__file__).resolve().parents[4]
LANES, COUNT = instructions.LANES, instructions.COUNT


@pytest.fixture
def tensor_device(cuda_device):
    """A device that has the instructions."""
    if not SIMULATED and cuda.get_current_device().compute_capability < (8, 0):
        pytest.skip("asynchronous copies and bfloat16 want compute capability 8.0")
    return cuda_device


# --- asynchronous copies


def stream(device, x, end):
    """COUNT k-tiles of 512 bytes of x, as words."""
    per = 16 // x.dtype.itemsize
    y = device.zeros(COUNT * LANES * 4, np.uint32)
    instructions.stream_kernel[grid_of(1, LANES)](device.array(x), y, per, end)
    return device.to_host(y)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("k_tiles", [COUNT, 3])
def test_what_is_inside_arrives_and_the_rest_is_zero(dtype, k_tiles, tensor_device):
    per = 16 // np.dtype(dtype).itemsize
    x = np.arange(1, k_tiles * LANES * per + 1 - 8 * per).astype(dtype)
    y = stream(tensor_device, x, x.size)
    whole = np.zeros(COUNT * LANES * per, dtype)
    whole[: x.size] = x
    np.testing.assert_array_equal(y, whole.view(np.uint32))


def test_nothing_is_read_where_nothing_is_inside(tensor_device):
    x = np.full(4, 5, np.float32)  # its end lies in the first k-tile
    y = stream(tensor_device, x, 4)
    np.testing.assert_array_equal(y[:4].view(np.float32), x)
    assert not y[4:].any()


def test_copies_cost_what_the_instruction_costs():
    """One request for each 512 bytes of a warp, whole sectors, no queue at a bank."""
    if not SIMULATED or not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    from layers import Device

    for dtype in (np.float32, np.uint16):
        x = np.ones(COUNT * LANES * 16 // dtype().itemsize, dtype)
        with simulator.record() as traces:
            stream(Device("cuda:0"), x, x.size)
        measured = measure(traces[0]).lines
        lines = [line for line in measured if "cp_async" in line.instruction.source]
        told = {(line.space, line.op): line for line in lines}
        read, write = told["global", "read"], told["shared", "write"]
        # In the last two turns the copies are of zeros.
        assert (read.requests, read.lanes) == (COUNT, COUNT * LANES)
        assert (read.sectors, read.ideal_sectors) == (COUNT * 16, COUNT * 16)
        assert (write.requests, write.wavefronts, write.conflict_ways) == (
            *(COUNT + 2, 4 * (COUNT + 2), 1),
        )
        assert read.bytes == COUNT * 512 and write.bytes == (COUNT + 2) * 512
        waits = [line for line in measured if "cp_async_wait_group" in line.instruction.source]
        assert len(lines) == 2 and not waits


# --- stores


def store(device, x, dtype):
    """x as elements of y, eight by a thread, and the fourth of each eight in z."""
    y, z = (device.zeros(count, dtype) for count in (x.size, x.size // 8))
    instructions.store_kernel[grid_of(x.size // 8 // LANES, LANES)](device.array(x), y, z)
    return device.to_host(y), device.to_host(z)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_stores(dtype, tensor_device):
    x = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
    x[:512].view(np.uint32)[:] = np.random.default_rng(1).integers(0, 2**32, 512)
    x[:6] = np.inf, -np.inf, np.nan, 3.4028235e38, 1e-45, -0.0
    y, z = store(tensor_device, x, dtype)
    wanted = x if dtype == "float32" else bfloat16.to_bits(x)
    word = f"uint{8 * y.itemsize}"
    np.testing.assert_array_equal(y.view(word), wanted.view(word))
    np.testing.assert_array_equal(z.view(word), wanted[3::8].view(word))


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_warp_stores_whole_sectors(dtype):
    if not SIMULATED or not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    from layers import Device

    with simulator.record() as traces:
        store(Device("cuda:0"), np.ones(256, np.float32), dtype)
    (line,) = (line for line in measure(traces[0]).lines if "store_vec8" in line.instruction.source)
    # One request of 16 bytes a lane in bfloat16. In float32 two, each of every second 16 bytes:
    # half of each of 32 sectors.
    per = 16 // np.dtype(dtype).itemsize
    assert (line.requests, line.lanes) == (8 // per, 32 * 8 // per)
    assert (line.sectors, line.ideal_sectors) == ((16, 16) if per == 8 else (64, 32))


# --- compiled


@pytest.fixture(scope="module")
def compiled():
    """What each kernel of `instructions.py` became, by its name and architecture."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(
        [sys.executable, instructions.__file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {(row["name"], tuple(row["architecture"])): row for row in json.loads(done.stdout)}


REFUSED = {
    "wait for a variable": "must be a literal",
    "mma of floats": "takes words of uint32 and sums of float32, not float32",
    "copy_vec4 of two types": "float32 to uint32 converts nothing",
}
COMPILED = [
    (name, architecture)
    for name, (_, _, architectures) in instructions.KERNELS.items()
    for architecture in architectures
    if name not in REFUSED
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "architecture"), COMPILED)
def test_everything_stays_in_registers_and_in_float32(name, architecture, compiled):
    row = compiled[name, architecture]
    assert "error" not in row, row["error"]
    assert not row["local"]
    assert row["double"] == (name == "convert float64")
    if "resources" in row:
        assert (row["resources"]["stack"], row["resources"]["spills"]) == (0, 0)


MACHINE_CODE = {
    "mma_tf32": {"HMMA.1688.F32.TF32": 1},
    "mma_bf16": {"HMMA.16816.F32.BF16": 1},
    "ldmatrix_x4": {"LDSM.16.M88.4": 1, "LDG.E.128": 4, "STS.128": 4},
    "ldmatrix_x4_trans": {"LDSM.16.MT88.4": 1, "LDG.E.128": 4, "STS.128": 4},
    "store float32": {"STG.E.128": 2, "STG.E": 1, "F2FP": 0},
    "store bfloat16": {"STG.E.128": 1, "STG.E.U16": 1, "F2FP": 5},
}


@pytest.mark.full
@pytest.mark.parametrize("architecture", instructions.NEW)
@pytest.mark.parametrize("name", MACHINE_CODE)
def test_each_is_the_one_instruction_that_it_is_meant_to_be(name, architecture, compiled):
    found = compiled[name, architecture].get("instructions")
    if found is None:
        pytest.skip("ptxas or nvdisasm is missing: pip install -e '.[test]'")
    found["F2FP"] = sum(n for kind, n in found.items() if kind.startswith("F2FP.BF16"))
    wanted = MACHINE_CODE[name]
    assert {kind: found.get(kind, 0) for kind in wanted} == wanted


@pytest.mark.parametrize("architecture", instructions.NEW)
@pytest.mark.parametrize("name", ["stream float32", "stream bfloat16"])
def test_copies_pass_the_registers_by_and_are_waited_for(name, architecture, compiled):
    row = compiled[name, architecture]
    if "instructions" not in row:
        pytest.skip("ptxas or nvdisasm is missing: pip install -e '.[test]'")
    kinds = set(row["instructions"])
    assert {"LDGSTS.E.BYPASS.128", "LDGDEPBAR"} <= kinds
    assert not kinds & {"LDG.E", "LDG.E.128", "LDG.E.U16", "STS", "STS.128"}
    assert {line.split()[-1] for line in row["waits"]} == {"0x0", "0x1"}


@pytest.mark.parametrize("name", REFUSED)
def test_the_compiler_refuses(name, compiled):
    assert REFUSED[name] in compiled[name, (8, 0)]["error"]
