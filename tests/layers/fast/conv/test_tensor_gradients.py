"""Tensor-core convolution, dL/dw: every edge of tiles, k-tiles and splits, with the tiles of a GPU.

Operands come with all the bits of float32 (TF32), or as bfloat16; the formula is given what they
are rounded to, in float64, where all their products are exact. What remains are the roundings of
float32 sums: far less than 1e-5 of the sum of the products' magnitudes, for a few hundred of them.
"""

import numpy as np
import oracles
import pytest

from layers import Conv2D, simulator
from layers.fast.bfloat16 import from_bits, round_tf32, to_bits
from layers.fast.conv import tiled_gradients
from layers.fast.conv.steps import TensorConv
from layers.fast.conv.tensor_core import has_whole_chunks
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.layer import Buffers
from tinyconv.lab.checks import check_trace

# image (N, H, W, C), filters, window, stride, padding, groups
CASES = {
    "one product": ((1, 1, 1, 1), 1, 1, 1, 0, 1),
    "whole chunks, a window for each term": ((2, 4, 4, 8), 8, 1, 1, 0, 1),
    "more images than one in a k-tile": ((7, 4, 3, 8), 8, 2, 1, 0, 1),
    "a line longer than a k-tile": ((1, 3, 41, 8), 8, 3, 1, (1, 0), 1),
    "a whole tile": ((1, 2, 4, 128), 128, 1, 1, 0, 1),
    "values of d beyond a tile": ((1, 4, 3, 16), 8, 3, 1, 1, 1),
    "filters beyond a tile": ((1, 3, 2, 8), 136, 1, 1, 0, 1),
    "stride 2, padding only before": ((2, 7, 6, 8), 16, 3, 2, (3, 0), 1),
    "stride 3, windows that lie in the padding": ((1, 3, 4, 8), 8, 2, 3, (3, 4), 1),
    "two groups, a tile ends in neither": ((1, 4, 3, 16), 48, 2, 1, (1, 0), 2),
    "odd everything": ((2, 6, 7, 5), 3, 3, 1, (1, 0), 1),
    "colours, stride 4, padding only after": ((2, 9, 8, 3), 6, 5, 4, (0, 3), 1),
    "channels fit, filters do not, three groups": ((2, 5, 4, 24), 15, 2, 2, 1, 3),
    "filters fit, channels do not, stride 3": ((2, 9, 5, 6), 16, 3, 3, (2, 1), 2),
    "a group for each channel": ((1, 4, 3, 3), 6, 2, 1, 1, 3),
    "both fit TF32 only": ((1, 3, 5, 12), 12, 3, 1, 1, 1),
}
KINDS = "tf32", "bf16"


class Problem:
    """x and dy of a case, on a device, and what the formula gives for dw."""

    def __init__(self, case, kind, device):
        shape, filters, size, stride, padding, groups = case
        before, after = (padding, padding) if isinstance(padding, int) else padding
        rows, columns = ((side + before + after - size) // stride + 1 for side in shape[1:3])
        rng = np.random.default_rng(5)
        x = rng.standard_normal(shape).astype(np.float32)
        dy = rng.standard_normal((shape[0], rows, columns, filters)).astype(np.float32)
        if kind == "bf16":
            x, dy = to_bits(x), to_bits(dy)
        self.device, self.x, self.dy = device, device.array(x), device.array(dy)
        self.geometry = stride, before, groups
        self.padding = stride, before, after, groups
        self.dw_shape = filters, size, size, shape[3] // groups
        self.memory = Buffers(device, np.float32)

    def buffer(self, name, shape, dtype=None):
        """A layer's buffer, in which whoever reads what it has not written finds NaN."""
        array = self.memory(name, shape, dtype)
        array[...] = np.nan if array.dtype == np.float32 else 0x7FFF
        return array

    def run(self, tile):
        """dw, of the kernels, on the host."""
        dw = self.device.array(np.full(self.dw_shape, np.nan, np.float32))
        tensor_filter_gradient(self.x, self.dy, dw, *self.geometry, self.buffer, tile)
        return self.device.to_host(dw)

    def right(self):
        """dw by the formula, and the sum of its products' magnitudes."""
        x, dy = (as_multiplied(self.device.to_host(array)) for array in (self.x, self.dy))
        return self.by_formula(x, dy), self.by_formula(np.abs(x), np.abs(dy))

    def by_formula(self, x, dy):
        """dw in float64."""
        w, b = np.zeros(self.dw_shape), np.zeros(self.dw_shape[0])
        return oracles.conv(x, w, b, lambda _: dy, *self.padding)[2]


def as_multiplied(array):
    """Elements as the tensor cores see them, in float64."""
    if array.dtype == np.uint16:
        return from_bits(array).astype(float)
    return round_tf32(array, np.empty_like(array)).astype(float)


def assert_right(dw, problem):
    """`dw` is what the formula gives, but for the roundings of float32 sums."""
    right, magnitude = problem.right()
    assert dw.shape == right.shape
    assert (np.abs(dw - right) <= 1e-5 * magnitude).all()


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", CASES)
def test_it_follows_the_formula(title, kind, cuda_device):
    problem = Problem(CASES[title], kind, cuda_device)
    assert_right(problem.run("128x64"), problem)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", ["a whole tile", "colours, stride 4, padding only after"])
def test_128x128_gives_the_bits_of_128x64(title, kind, cuda_device):
    problem = Problem(CASES[title], kind, cuda_device)
    dw = problem.run("128x128")
    assert_right(dw, problem)
    np.testing.assert_array_equal(dw, problem.run("128x64"))


@pytest.mark.parametrize("kind", KINDS)
def test_several_splits(kind, cuda_device, monkeypatch):
    # 40 output pixels: splits of 32 and of 8, which begins in the middle of an image.
    monkeypatch.setattr(tiled_gradients, "MIN_SPLIT", 20)
    problem = Problem(((2, 5, 4, 8), 8, 1, 1, 0, 1), kind, cuda_device)
    names = {}
    memory, problem.memory = problem.memory, lambda *of: names.setdefault(of[0], memory(*of))
    assert_right(problem.run("128x64"), problem)
    assert names["partial sums of dw"].shape == (2, 64)


@pytest.mark.parametrize("bk", [16, 32])
@pytest.mark.parametrize(("pixels", "tiles"), [(1, 1), (387_200, 4), (21_632, 54), (519, 2000)])
def test_splits_have_whole_k_tiles_and_none_is_empty(pixels, tiles, bk):
    splits, split_k = tiled_gradients.choose_split_k(pixels, tiles, bk)
    assert split_k % bk == 0
    assert (splits - 1) * split_k < pixels <= splits * split_k
    assert splits == 1 or splits * tiles <= tiled_gradients.BLOCKS


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_threads_and_blocks_changes_no_bit(kind, cuda_device, monkeypatch):
    monkeypatch.setattr(tiled_gradients, "MIN_SPLIT", 16)
    problem = Problem(((3, 4, 3, 8), 8, 1, 1, 0, 1), kind, cuda_device)
    dw = problem.run("128x64")
    if simulator.installed:
        with simulator.shuffled(3):
            np.testing.assert_array_equal(problem.run("128x64"), dw)
    else:
        np.testing.assert_array_equal(problem.run("128x64"), dw)


def test_tf32_is_rounded_to_nearest_and_away_from_zero_in_the_middle(cuda_device):
    # Of 8 channels and 8 filters, each a single product.
    problem = Problem(((1, 1, 1, 8), 8, 1, 1, 0, 1), "tf32", cuda_device)
    step = 2.0**-10
    x = 1 + step * np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])
    to = 1 + step * np.array([0, 0, 1, 1, 1, 1, 2, 2])
    problem.x = cuda_device.array(x.reshape(1, 1, 1, 8).astype(np.float32))
    problem.dy = cuda_device.array(-x.reshape(1, 1, 1, 8).astype(np.float32))
    right = np.multiply.outer(-to, to).astype(np.float32)
    np.testing.assert_array_equal(problem.run("128x64").reshape(8, 8), right)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_stays_with_its_filter(kind, cuda_device):
    problem = Problem(CASES["whole chunks, a window for each term"], kind, cuda_device)
    # The NaN of a GPU: rounding it as if it were a number would carry into the sign.
    nan = 0x7FFF if kind == "bf16" else np.uint32(0x7FFFFFFF).view(np.float32)
    problem.dy[1, 2, 3, 5] = nan
    dw = problem.run("128x64")
    assert np.isnan(dw[5]).all()
    assert np.isfinite(np.delete(dw, 5, axis=0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_do_not_begin_at_16_bytes_are_moved_first(kind, cuda_device):
    problem = Problem(CASES["whole chunks, a window for each term"], kind, cuda_device)
    dw = problem.run("128x64")
    for name in ("x", "dy"):
        array = getattr(problem, name)
        room = cuda_device.empty((array.size + 8,), array.dtype)
        ways = (room[start : start + array.size].reshape(array.shape) for start in range(8))
        moved = next(way for way in ways if not has_whole_chunks(way, 1))
        moved[...] = array
        setattr(problem, name, moved)
    np.testing.assert_array_equal(problem.run("128x64"), dw)


@pytest.mark.parametrize("kind", KINDS)
def test_every_partial_sum_is_written_once(kind, cuda_device):
    if not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    problem = Problem(CASES["two groups, a tile ends in neither"], kind, cuda_device)
    with simulator.record() as traces:
        problem.run("128x64")
    sums = next(trace for trace in traces if "partial" in {a.name for a in trace.arrays})
    assert check_trace(sums, ("partial",)) == []


@pytest.mark.full
@pytest.mark.parametrize("precision", KINDS)
def test_a_step_rearranges_its_images_once_for_both_passes(precision, cuda_device):
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    conv = Conv2D(3, 8, 3, stride=2).to(cuda_device)
    conv.input_gradient = False
    step = TensorConv([conv], cuda_device, np.float32, precision)
    rng = np.random.default_rng(6)
    for images in (3, 2, 3):  # a smaller batch comes by, in the same memory
        x = rng.standard_normal((images, 7, 6, 3)).astype(np.float32)
        dy = rng.standard_normal((images, 3, 2, 8)).astype(np.float32)
        if precision == "bf16":
            x, dy = to_bits(x), to_bits(dy)
        with simulator.record() as traces:
            step.forward(cuda_device.array(x))
            step.backward(cuda_device.array(dy))
        names = [trace.kernel for trace in traces]
        assert names.count("image_to_s2d_kernel") == 1
        alone = cuda_device.zeros(conv.weight.grad.shape, np.float32)
        tensor_filter_gradient(x, dy, alone, 2, 0, 1, Buffers(cuda_device, np.float32))
        np.testing.assert_array_equal(conv.weight.grad, alone)
        assert np.any(alone)
