"""Convolution with tiles in shared memory, in the simulator: the formula, bits, loads, banks."""

import numpy as np
import oracles
import pytest

from layers import Conv2D, simulator
from layers.conv import (
    conv_filter_gradient_kernel,
    conv_forward_kernel,
    conv_input_gradient_kernel,
)
from layers.device import SIMULATED, grid_for
from layers.fast.conv.shared_memory import (
    TILE,
    shared_filter_gradient,
    shared_forward,
    shared_input_gradient,
)
from tinyconv.lab.traffic import measure

# image (N, H, W, C), filters, window, stride, (before, after), groups
CASES = {
    "one number": ((1, 1, 1, 1), 1, 1, 1, (0, 0), 1),
    "one pixel, in the middle of the padding": ((2, 1, 1, 5), 3, 3, 1, (1, 1), 1),
    "all sides differ": ((2, 5, 7, 3), 4, 3, 1, (1, 0), 1),
    "one more than a tile of everything": ((1, 2, 17, 17), 17, 1, 1, (0, 0), 1),
    "exactly one tile": ((1, 5, 5, 16), 16, 2, 1, (0, 0), 1),
    "k-tiles that end inside a pixel": ((1, 4, 3, 13), 5, 2, 1, (0, 1), 1),
    "stride 2, padding only after": ((1, 6, 5, 3), 6, 3, 2, (0, 2), 1),
    "stride 3, padding only before, two groups": ((1, 7, 8, 6), 10, 2, 3, (2, 0), 2),
    "stride 4, colours": ((1, 9, 6, 3), 7, 5, 4, (1, 2), 1),
    "padding larger than the filter": ((1, 3, 4, 2), 3, 2, 1, (3, 4), 1),
    "stride larger than the filter": ((1, 8, 7, 2), 3, 2, 4, (0, 1), 1),
    "two groups of more than a tile": ((1, 3, 4, 36), 38, 2, 1, (1, 0), 2),
    "three groups, stride 2": ((2, 4, 5, 6), 9, 3, 2, (1, 2), 3),
    "a group for each channel": ((1, 4, 3, 3), 6, 2, 1, (1, 1), 3),
}


class Problem:
    """Random arrays for a case, and what the shared and the direct kernels make of them."""

    def __init__(self, case, device, dtype):
        self.shape, filters, size, self.stride, (self.before, self.after), self.groups = case
        self.device, self.dtype = device, dtype
        channels = self.shape[3]
        layer = Conv2D(channels, filters, size, self.stride, case[4], self.groups)
        rng = np.random.default_rng(3)
        self.x, self.w, self.b, self.dy = (
            rng.standard_normal(shape).astype(dtype)
            for shape in (
                self.shape,
                layer.weight.value.shape,
                (filters,),
                (self.shape[0], *layer.output_shape(self.shape[1:])),
            )
        )
        self.geometry = self.stride, self.before, self.groups

    def right(self):
        """y, dx and dw of the oracle."""
        x, w, b, dy = (a.astype(np.float64) for a in (self.x, self.w, self.b, self.dy))
        return oracles.conv(
            x, w, b, lambda _: dy, self.stride, self.before, self.after, self.groups
        )[:3]

    def arrays(self):
        """x, w, b, dy on the device, and y, dx, dw full of a number that must not stay."""
        inputs = [self.device.array(a, self.dtype) for a in (self.x, self.w, self.b, self.dy)]
        outputs = [self.device.zeros(a.shape, self.dtype) for a in (self.dy, self.x, self.w)]
        for output in outputs:
            output[...] = 1e9
        return *inputs, *outputs

    def shared(self, relu=False):
        """y, dx and dw of the shared kernels, on the host."""
        x, w, b, dy, y, dx, dw = self.arrays()
        shared_forward(x, w, b, y, *self.geometry, relu)
        shared_input_gradient(dy, w, dx, *self.geometry)
        shared_filter_gradient(x, dy, dw, *self.geometry)
        return [self.device.to_host(array).copy() for array in (y, dx, dw)]

    def direct(self):
        """y, dx and dw of the direct kernels, on the host."""
        x, w, b, dy, y, dx, dw = self.arrays()
        conv_forward_kernel[grid_for(y.size)](x, w, b, y, *self.geometry)
        conv_input_gradient_kernel[grid_for(dx.size)](dy, w, dx, *self.geometry)
        conv_filter_gradient_kernel[grid_for(dw.size)](x, dy, dw, *self.geometry)
        return [self.device.to_host(array).copy() for array in (y, dx, dw)]

    def traffic(self, run):
        """The traffic of the three launches of `run`, y, dx and dw."""
        if not SIMULATED or not simulator.installed:
            pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
        with simulator.record() as traces:
            run()
        return [measure(trace) for trace in traces]


@pytest.mark.full
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_all_directions_follow_the_formula_and_have_the_direct_kernels_bits(
    title, dtype, cuda_device
):
    problem = Problem(CASES[title], cuda_device, dtype)
    results = zip(problem.shared(), problem.right(), problem.direct(), strict=True)
    for found, right, direct in results:
        assert found.dtype == dtype
        # The longest sums have some 100 terms, in another order than the oracle's: see `rounding`.
        oracles.assert_close(found, right, dtype)
        # Each sum has its terms in the same order, and a term that is 0 changes no bit of it.
        assert found.tobytes() == direct.tobytes()


def test_two_runs_and_another_order_of_threads_give_the_same_bits(cuda_device):
    problem = Problem(CASES["a group for each channel"], cuda_device, np.float32)
    first = [array.tobytes() for array in problem.shared()]
    assert [array.tobytes() for array in problem.shared()] == first
    if simulator.installed:
        with simulator.shuffled(7):
            assert [array.tobytes() for array in problem.shared()] == first


def test_relu_keeps_what_is_not_a_number(cuda_device):
    problem = Problem(((1, 3, 4, 4), 5, 2, 1, (0, 0), 1), cuda_device, np.float32)
    right = problem.right()[0]
    problem.x[0, 2, 3, 0] = np.nan  # of the last window alone
    y = problem.shared(relu=True)[0]
    assert np.isnan(y[0, 1, 2]).all() and np.isnan(y).sum() == 5
    known = ~np.isnan(y)
    assert (right[known] < 0).any() and (right[known] > 0).any()
    oracles.assert_close(y[known], np.maximum(right[known], 0), np.float32)


def test_a_nan_reaches_what_it_is_a_term_of_and_nothing_else(cuda_device):
    case = (1, 4, 5, 3), 4, 2, 1, (0, 0), 1
    problem = Problem(case, cuda_device, np.float32)
    problem.x[0, 1, 1, 2] = problem.dy[0, 2, 3, 1] = np.nan
    y, dx, dw = map(np.isnan, problem.shared())
    assert y.sum() == 2 * 2 * 4 and y[0, 0:2, 0:2].all()
    assert dx.sum() == 2 * 2 * 3 and dx[0, 2:4, 3:5].all()
    # x's NaN is in every window weight's sum of channel 2, dy's in every sum of filter 1.
    assert dw.sum() == 4 * 4 + 4 * 3 - 4 and dw[..., 2].all() and dw[1].all()


# --- what the launches ask of memory

FULL = (1, 5, 5, 16), 16, 2, 1, (0, 0), 1
"""16 output pixels, 16 filters, 4 pixels of 16 channels in a window: tiles without an edge."""


def global_loads(traffic, arrays):
    """Numbers that single threads read from the global `arrays`."""
    lines = [line for line in traffic.lines if line.op == "read" and line.array in arrays]
    assert {line.array for line in lines} == set(arrays)
    return sum(line.lanes for line in lines)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_number_loaded_serves_16_multiply_adds(dtype, cuda_device):
    problem = Problem(FULL, cuda_device, dtype)
    multiply_adds = problem.dy.size * problem.w[0].size
    shared, direct = problem.traffic(problem.shared), problem.traffic(problem.direct)
    for place, arrays in ((0, "xw"), (2, ("x", "dy"))):
        assert global_loads(direct[place], arrays) == 2 * multiply_adds
        assert global_loads(shared[place], arrays) == multiply_adds // 8
    # Every number of every k-tile is loaded once: 512 of them in each.
    assert multiply_adds // 8 == 4 * 2 * TILE * TILE
    # dL/dx: 25 input pixels, that is two block tiles. w is loaded for both, and dy where an output
    # has the pixel in its window: 16 outputs of 4 pixels each, 16 filters.
    assert global_loads(shared[1], ["w"]) == 2 * problem.w.size
    assert global_loads(shared[1], ["dy"]) == 16 * 4 * 16
    assert global_loads(direct[1], ["w", "dy"]) == 2 * multiply_adds


def test_whole_sectors_are_loaded_and_stored(cuda_device):
    problem = Problem(FULL, cuda_device, np.float32)
    for traffic in problem.traffic(problem.shared):
        lines = [line for line in traffic.lines if line.space == "global"]
        assert len(lines) >= 3
        assert all(line.sectors == line.ideal_sectors for line in lines)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bank_conflicts_are_those_that_the_comment_names(dtype, cuda_device):
    problem = Problem(FULL, cuda_device, dtype)
    for number, traffic in enumerate(problem.traffic(problem.shared)):
        lines = [line for line in traffic.lines if line.space == "shared"]
        assert [line.op for line in lines] == ["write", "write", "read", "read"]
        transposed = 2 if number == 0 and dtype == np.float64 else 1
        assert [line.conflict_ways for line in lines] == [1, transposed, 1, 1]


@pytest.mark.parametrize(("row", "ways"), [(16, 8), (17, 2), (18, 1)])
def test_what_rows_of_a_transposed_tile_do_to_the_banks(row, ways):
    words = [row * tx + ty for ty in (0, 1) for tx in range(16)]
    assert max(np.bincount([word % 32 for word in words])) == ways
