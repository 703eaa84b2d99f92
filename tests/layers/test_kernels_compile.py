"""Every kernel is compiled without a GPU and assembled: no spills, no float64 by accident."""

import compile_kernels
import pytest
from marks import long

from layers.fast.conv.tile_table import RESIDENT
from tinyconv.lab.cases import CASES
from tinyconv.lab.cases.book import GROUPS as BOOK
from tinyconv.lab.cases.case import EVERY, STORED, TENSOR_CORES

HOPPER = (9, 0)
IN_THE_BOOK = {case.name for group in BOOK.values() for case in group.cases}
"""The other architectures and kernels are left to `pytest --full`."""


def on(architecture, name=None, *values):
    """Parameters of a test; marked unless they are of HOPPER and, with a name, of the book."""
    values = *([name] if name else []), *values, architecture
    plain = architecture == HOPPER and name in {None, *IN_THE_BOOK}
    return pytest.param(*values) if plain else long(*values)


COMPILED = [
    (name, dtype, architecture)
    for dtype in STORED
    for name, case in CASES.items()
    if dtype in case.dtypes
    for architecture in case.architectures_of(dtype)
]


def label(value):
    """sm_75 for (7, 5)."""
    return f"sm_{value[0]}{value[1]}" if isinstance(value, tuple) else value


@pytest.fixture
def row(compiled_kernels):
    """A function: what became of one kernel for one dtype and architecture."""
    return compiled_kernels.row


@pytest.fixture
def assembled(compiled_kernels, row):
    """The same, where there is an assembler."""
    if compiled_kernels.ptxas is None:
        pytest.skip("ptxas is missing: pip install -e '.[test]' (or '.[test-cuda12]') brings it")
    return row


@pytest.mark.parametrize(
    ("name", "dtype", "architecture"), [on(row[2], *row[:2]) for row in COMPILED], ids=label
)
def test_a_kernel_compiles_and_keeps_everything_in_registers(name, dtype, architecture, assembled):
    found = assembled(name, dtype, architecture)
    assert "error" not in found, found["error"]
    assert found["locals"] == []
    assert (found["stack"], found["spill stores"], found["spill loads"]) == (0, 0, 0)
    assert 0 < found["registers"] <= 255


TENSOR = [row for row in COMPILED if CASES[row[0]].architectures == TENSOR_CORES]


@pytest.mark.parametrize(
    ("name", "dtype", "architecture"), [on(row[2], *row[:2]) for row in TENSOR], ids=label
)
def test_the_resident_blocks_of_a_tensor_core_kernel_fit_a_multiprocessor(
    name, dtype, architecture, assembled
):
    found = assembled(name, dtype, architecture)
    assert found["products"]
    (tile,) = (tile for tile in RESIDENT if tile in name)
    registers = -(-found["registers"] // 8) * 8  # a thread gets them in eights
    assert registers * CASES[name].threads * RESIDENT[tile] <= 65536
    # What a kernel may have without asking for more.
    assert found["shared"] <= 48 * 1024


@pytest.mark.parametrize(
    ("name", "dtype", "architecture"),
    [on(row[2], *row[:2]) for row in COMPILED if row[1] != "float64"],
    ids=label,
)
def test_a_float32_kernel_computes_nothing_in_float64(name, dtype, architecture, row):
    """Whatever it stores."""
    found = row(name, dtype, architecture)
    assert "error" not in found, found["error"]
    assert found["doubles"] == []


@pytest.mark.parametrize("architecture", [on(each) for each in EVERY], ids=label)
def test_a_planted_float64_constant_is_caught(architecture, row):
    assert row("planted_double", "float32", architecture)["doubles"]


@pytest.mark.parametrize("architecture", [on(each) for each in EVERY], ids=label)
def test_a_planted_local_array_is_caught(architecture, assembled):
    found = assembled("planted_local", "float32", architecture)
    assert found["locals"]
    assert found["stack"] >= 400


@pytest.mark.parametrize("architecture", [on(each) for each in EVERY], ids=label)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_front_end_for_all_architectures_gives_what_each_alone_does(dtype, architecture, row):
    assert row(compile_kernels.ASKS_FOR_ITS_ARCHITECTURE, dtype, architecture)["same as alone"]
