"""Tensor-core instructions lane by lane: on a GPU that has them, else their stand-ins.

Which lane holds what is written out here once more, as the PTX ISA has it ("Matrix Fragments for
mma.m16n8k8", "... mma.m16n8k16", "ldmatrix"), one word at a time.
"""

import instructions
import numpy as np
import pytest

from layers import simulator
from layers.device import SIMULATED, cuda, grid_of
from layers.fast import bfloat16
from tinyconv.lab.traffic import measure

LANES = 32
PRODUCTS = {"mma_tf32": (8, 1), "mma_bf16": (16, 2)}
"""Terms of each sum, and elements in a word."""


@pytest.fixture
def tensor_device(cuda_device):
    """A device whose tensor cores know TF32 and bfloat16."""
    if not SIMULATED and cuda.get_current_device().compute_capability < (8, 0):
        pytest.skip("TF32 and bfloat16 want compute capability 8.0")
    return cuda_device


# --- the layout of fragments: (row, column) of each element of each word of each lane


def a_places(name):
    terms, per = PRODUCTS[name]
    for lane in range(LANES):
        g, t = lane // 4, lane % 4
        for word in range(4):
            for part in range(per):
                row = g if word in (0, 2) else g + 8
                column = t * per + part + (0 if word < 2 else terms // 2)
                yield (lane, word * per + part), (row, column)


def b_places(name):
    terms, per = PRODUCTS[name]
    for lane in range(LANES):
        g, t = lane // 4, lane % 4
        for word in range(2):
            for part in range(per):
                yield (lane, word * per + part), (t * per + part + word * (terms // 2), g)


def c_places():
    for lane in range(LANES):
        g, t = lane // 4, lane % 4
        for i in range(4):
            yield (lane, i), (g if i < 2 else g + 8, 2 * t + i % 2)


def fragments(matrices, places, words):
    """The lanes' elements (n, 32, words) of n matrices."""
    held = np.empty((len(matrices), LANES, words), matrices.dtype)
    for (lane, word), (row, column) in places:
        held[:, lane, word] = matrices[:, row, column]
    return held


def as_words(name, matrices, places, words):
    """The uint32 words that the lanes hold of float32 matrices."""
    if name == "mma_tf32":
        return fragments(matrices.view(np.uint32), places, words)
    return fragments(bfloat16.to_bits(matrices), places, 2 * words).view(np.uint32)


def product(device, name, a, b, c):
    """c + a · b by the instruction, for n matrices (n, 16, K), (n, K, 8), (n, 16, 8) at once."""
    n = len(a)
    sums = np.full((n, LANES, 8), 7.25, np.float32)
    sums[:, :, 4:] = fragments(c, c_places(), 4)
    arrays = [
        device.array(words.reshape(-1))
        for words in (as_words(name, a, a_places(name), 4), as_words(name, b, b_places(name), 2))
    ]
    held = device.array(sums.reshape(-1))
    kernel = getattr(instructions, f"{name}_kernel")
    kernel[grid_of(n, LANES)](*arrays, held)
    held = device.to_host(held).reshape(n, LANES, 8)
    assert (held[:, :, :4] == 7.25).all()
    result = np.empty((n, 16, 8), np.float32)
    for (lane, word), (row, column) in c_places():
        result[:, row, column] = held[:, lane, 4 + word]
    return result


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_layout_names_every_element_once(name):
    terms, per = PRODUCTS[name]
    for places, words, shape in (
        (a_places(name), 4 * per, (16, terms)),
        (b_places(name), 2 * per, (terms, 8)),
        (c_places(), 4, (16, 8)),
    ):
        held, elements = zip(*places, strict=True)
        assert sorted(held) == list(np.ndindex(LANES, words))
        assert sorted(elements) == list(np.ndindex(shape))


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_element_of_a_is_its_row_and_column(name, tensor_device):
    # A single 1 in each row of a picks a row of b; turn by turn every element has been that 1.
    terms, _ = PRODUCTS[name]
    turn, row = np.ogrid[:terms, :16]
    a = np.zeros((terms, 16, terms), np.float32)
    a[turn, row, (row + turn) % terms] = 1
    b = np.arange(1, 8 * terms + 1, dtype=np.float32).reshape(terms, 8)
    c = -np.arange(128, dtype=np.float32).reshape(16, 8)
    everywhere = terms, 1, 1
    result = product(tensor_device, name, a, np.tile(b, everywhere), np.tile(c, everywhere))
    np.testing.assert_array_equal(result, c + b[(row + turn) % terms])


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_element_of_b_is_its_row_and_column(name, tensor_device):
    terms, _ = PRODUCTS[name]
    turn, column = np.ogrid[:terms, :8]
    b = np.zeros((terms, terms, 8), np.float32)
    b[turn, (column + turn) % terms, column] = 1
    a = np.arange(1, 16 * terms + 1, dtype=np.float32).reshape(16, terms)
    zeros = np.zeros((terms, 16, 8), np.float32)
    result = product(tensor_device, name, np.tile(a, (terms, 1, 1)), b, zeros)
    wanted = a[:, (column + turn) % terms].transpose(1, 0, 2)
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_random_matrices(name, tensor_device):
    terms, _ = PRODUCTS[name]
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.standard_normal((6, *shape)).astype(np.float32)
        for shape in ((16, terms), (terms, 8), (16, 8))
    )
    a[1] *= 1e30
    b[1] *= 1e-30
    a[2] *= 2.0**-130  # subnormal, and the sums too
    c[2] = 0
    around = bfloat16.round_tf32 if name == "mma_tf32" else bfloat16.round_bf16
    a, b = around(a, a), around(b, b)
    result = product(tensor_device, name, a, b, c)
    exact = c.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    scale = np.abs(c) + np.abs(a).astype(np.float64) @ np.abs(b)
    # Tensor cores may cut off the bits below float32's last of the largest term, nine times.
    assert (np.abs(result - exact) <= 2.0**-20 * scale + 2.0**-145).all()


def test_bits_below_tf32_are_ignored(tensor_device):
    a, b, c = (np.ones((1, *shape), np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    clean = product(tensor_device, "mma_tf32", a, b, c)
    for operand in (a, b):
        operand.view(np.uint32)[...] |= 0x1FFF
    np.testing.assert_array_equal(product(tensor_device, "mma_tf32", a, b, c), clean)
    assert (clean == 9).all()


@pytest.mark.parametrize("name", PRODUCTS)
def test_nan_and_infinity_stay_in_their_rows_and_columns(name, tensor_device):
    terms, _ = PRODUCTS[name]
    a, b, c = (np.ones((1, *shape), np.float32) for shape in ((16, terms), (terms, 8), (16, 8)))
    a[0, 3, 2], b[0, 5, 6], c[0, 9, 1] = np.inf, np.nan, -np.inf
    result = product(tensor_device, name, a, b, c)[0]
    wanted = np.full((16, 8), terms + 1.0)
    wanted[3] = np.inf
    wanted[9, 1] = -np.inf
    wanted[:, 6] = np.nan
    np.testing.assert_array_equal(result, wanted)


# --- ldmatrix


def load(device, name, x, at):
    """Four words of each lane."""
    y = device.zeros(128, np.uint32)
    arrays = device.array(x), device.array(at.astype(np.int32))
    getattr(instructions, f"{name}_kernel")[grid_of(1, LANES)](*arrays, y)
    return device.to_host(y).reshape(LANES, 4)


def rows_at(kind):
    """Where each of the 32 rows begins, of 128 possible places."""
    if kind == "in order":
        return 4 * np.arange(LANES)
    return 4 * np.random.default_rng(2).permutation(128)[:LANES]


@pytest.mark.parametrize("kind", ["in order", "scattered"])
def test_which_lane_gets_what(kind, tensor_device):
    halves = np.arange(1024, dtype=np.uint16) + 7  # every 16 bits are unlike all others
    at = rows_at(kind)
    got = load(tensor_device, "ldmatrix_x4", halves.view(np.uint32), at).view(np.uint16)
    transposed = load(tensor_device, "ldmatrix_x4_trans", halves.view(np.uint32), at)
    transposed = transposed.view(np.uint16)
    for lane in range(LANES):
        g, t = lane // 4, lane % 4
        for matrix in range(4):
            for part in range(2):
                row, column = g, 2 * t + part
                wanted = halves[2 * at[8 * matrix + row] + column]
                assert got[lane, 2 * matrix + part] == wanted
                row, column = 2 * t + part, g
                wanted = halves[2 * at[8 * matrix + row] + column]
                assert transposed[lane, 2 * matrix + part] == wanted


def test_rows_of_a_matrix_that_lie_in_the_same_banks_queue():
    if not SIMULATED or not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    from layers import Device

    lane = np.arange(LANES)
    # Side by side; 128 bytes apart, all in the same four banks; and 64 bytes apart, where every
    # second one is in the same.
    rows = {1: 4 * lane, 8: 32 * (lane % 8) + 4 * (lane // 8), 4: 16 * (lane % 8) + 4 * (lane // 8)}
    for ways, at in rows.items():
        with simulator.record() as traces:
            load(Device("cuda:0"), "ldmatrix_x4", np.zeros(512, np.uint32), at)
        (line,) = (
            line for line in measure(traces[0]).lines if (line.op, line.space) == ("read", "shared")
        )
        assert (line.requests, line.conflict_ways, line.wavefronts) == (1, ways, 4 * ways)


@pytest.mark.parametrize("name", ["ldmatrix_x4", "ldmatrix_x4_trans"])
def test_lanes_get_their_words_in_any_order_of_threads(name):
    if not SIMULATED or not simulator.installed:
        pytest.skip("the order of threads is the simulator's: set NUMBA_ENABLE_CUDASIM=1")
    from layers import Device

    x, device = np.random.default_rng(0).integers(0, 2**32, 512, np.uint32), Device("cuda:0")
    wanted = load(device, name, x, rows_at("scattered"))
    for seed in range(3):
        with simulator.shuffled(seed):
            np.testing.assert_array_equal(load(device, name, x, rows_at("scattered")), wanted)


def test_products_in_any_order_of_threads():
    if not SIMULATED or not simulator.installed:
        pytest.skip("the order of threads is the simulator's: set NUMBA_ENABLE_CUDASIM=1")
    from layers import Device

    rng, device = np.random.default_rng(0), Device("cuda:0")
    for name, (terms, _) in PRODUCTS.items():
        shapes = (16, terms), (terms, 8), (16, 8)
        arrays = [rng.standard_normal((3, *shape)).astype(np.float32) for shape in shapes]
        wanted = product(device, name, *arrays)
        with simulator.shuffled(1):
            np.testing.assert_array_equal(product(device, name, *arrays), wanted)
