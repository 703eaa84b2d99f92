"""Tiled convolution: every edge of a tile, in the simulator, against formula and direct kernels.

A block of these kernels always works on a whole tile, whatever the image: the shapes are as small
as they can be and still end in the middle of something.
"""

import numpy as np
import oracles
import pytest

from layers import Conv2D, Device, simulator
from layers.device import SIMULATED
from layers.fast.conv import ptx, tile, tiled, tiled_gradients
from layers.fast.conv.steps import TiledConv
from tinyconv.lab.traffic import measure

# image (N, H, W, C), filters, window, stride, padding, groups
VECTORIZED = {
    "one k-tile, of which a half is missing": ((1, 3, 4, 4), 4, 1, 1, 0, 1),
    "k-tiles that end inside a pixel": ((2, 4, 3, 12), 8, 2, 1, (1, 0), 1),
    "pixels beyond a tile": ((2, 9, 8, 4), 4, 1, 1, 0, 1),
    "filters beyond a tile": ((1, 3, 2, 4), 68, 1, 1, 0, 1),
    "stride 2, padding only after": ((2, 6, 7, 8), 4, 3, 2, (0, 2), 1),
    "stride 2, padding only before": ((2, 7, 6, 4), 12, 3, 2, (3, 0), 1),
    "two groups": ((1, 4, 3, 8), 24, 2, 1, (1, 0), 2),
    "three groups, stride 2": ((2, 5, 4, 12), 12, 2, 2, 1, 3),
    "windows that lie in the padding": ((1, 3, 4, 4), 4, 2, 1, (3, 2), 1),
    "values of d beyond a tile": ((1, 4, 3, 16), 4, 3, 1, 1, 1),
}
SCALAR = {
    "one number": ((1, 1, 1, 1), 1, 1, 1, 0, 1),
    "odd everything": ((2, 6, 7, 5), 3, 3, 1, (1, 0), 1),
    "colours, stride 4, padding only after": ((2, 8, 9, 3), 6, 5, 4, (0, 3), 1),
    "channels fit, filters do not": ((1, 4, 3, 8), 5, 2, 1, 1, 1),
    "filters fit, channels do not": ((1, 4, 3, 6), 8, 2, 2, 1, 1),
    "pixels beyond a tile": ((2, 9, 8, 1), 3, 1, 1, 0, 1),
    "filters beyond a tile": ((1, 3, 2, 2), 67, 1, 1, 0, 1),
    "a group for each channel": ((1, 4, 3, 3), 6, 2, 1, 1, 3),
    "two groups, stride 3": ((2, 7, 5, 6), 10, 3, 3, (2, 1), 2),
    "values of d beyond a tile": ((1, 4, 3, 15), 3, 3, 1, 1, 1),
    "runs shorter than a k-tile": ((1, 3, 4, 1), 2, 2, 1, 0, 1),
}
CASES = {
    **{f"vectorized: {title}": (True, case) for title, case in VECTORIZED.items()},
    **{f"scalar: {title}": (False, case) for title, case in SCALAR.items()},
}


def make(case, device):
    """The step of `case` with random weights, x, dy, and what the formula gives for them."""
    shape, filters, size, stride, padding, groups = case
    before, after = (padding, padding) if isinstance(padding, int) else padding
    rng = np.random.default_rng(5)
    layer = Conv2D(shape[3], filters, size, stride, padding, groups)
    layer.to(device, np.float32)
    x = rng.standard_normal(shape).astype(np.float32)
    for parameter in layer.parameters():
        parameter.value[...] = device.array(
            rng.standard_normal(parameter.value.shape).astype(np.float32)
        )
    w, b = (device.to_host(parameter.value).astype(float) for parameter in layer.parameters())
    dy = rng.standard_normal((shape[0], *layer.output_shape(shape[1:]))).astype(np.float32)
    right = oracles.conv(
        x.astype(float), w, b, lambda _: dy.astype(float), stride, before, after, groups
    )
    return TiledConv([layer], device, np.float32), x, dy, right


def gradients(step):
    """Host copies of dw and db."""
    return oracles.gradients(step.layers[0])


def launches_of(run):
    """The names of the kernels that `run()` launches, and what it returns."""
    if not simulator.installed:
        return None, run()
    names = []
    with simulator.record(lambda trace: names.append(trace.kernel)):
        result = run()
    return names, result


@pytest.mark.full
@pytest.mark.parametrize("title", CASES)
def test_forward_and_all_gradients_follow_the_formula(title, cuda_device):
    vectorized, case = CASES[title]
    step, x, dy, right = make(case, cuda_device)
    layer = step.layers[0]
    y, dx = oracles.run(step, x, dy)
    # Sums of at most a few hundred terms, in another order than the oracle's: see `rounding`.
    for mine, expected in zip((y, dx, *gradients(step)), right, strict=True):
        oracles.assert_close(mine, expected, np.float32)
    forward = tile.can_vectorize(layer.groups, layer.in_channels, layer.out_channels, step.x)
    assert forward is vectorized


@pytest.mark.parametrize(("stride", "filters"), [(1, 4), (2, 4), (1, 3), (2, 3)])
def test_which_kernels_run(stride, filters, cuda_device):
    step, x, dy, _ = make(((1, 3, 4, 4), filters, 2, stride, 0, 1), cuda_device)
    names, _ = launches_of(lambda: oracles.run(step, x, dy))
    if names is None:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    kind = "vectorized" if filters == 4 else "scalar"
    forward = f"tiled_forward_{kind}_kernel"
    input_gradient = ["flip_filters_kernel", forward]
    assert names == [
        forward,
        *("sum_rows_kernel", "sum_parts_kernel"),  # db
        *(input_gradient if stride == 1 else ["conv_input_gradient_kernel"]),
        f"tiled_filter_{kind}_kernel",
        "sum_parts_kernel",
    ]


def test_it_agrees_with_the_direct_kernels(cuda_device):
    case = (1, 5, 4, 8), 8, 2, 1, (1, 0), 2
    step, x, dy, _ = make(case, cuda_device)
    tiled_results = *oracles.run(step, x, dy), *gradients(step)
    layer = step.layers[0]
    direct_results = *oracles.run(layer, x, dy), *oracles.gradients(layer)
    for one, two in zip(tiled_results, direct_results, strict=True):
        oracles.assert_close(one, two, np.float32)


def test_arrays_that_do_not_begin_at_16_bytes_take_the_scalar_kernels(cuda_device):
    step, x, dy, right = make(((1, 3, 4, 4), 4, 2, 1, 0, 1), cuda_device)
    memory = cuda_device.empty((x.size + 4,), np.float32)
    start = next(i for i in range(4) if not ptx.is_aligned(memory[i:]))
    moved = memory[start : start + x.size].reshape(x.shape)
    moved[...] = cuda_device.array(x)
    names, y = launches_of(lambda: cuda_device.to_host(step.forward(moved)))
    oracles.assert_close(y, right[0], np.float32)
    assert names in (None, ["tiled_forward_scalar_kernel"])


@pytest.mark.parametrize("filters", [4, 3])
def test_relu_in_the_same_kernel_keeps_what_is_not_a_number(filters, cuda_device):
    step, x, _, (right, *_) = make(((1, 3, 4, 4), filters, 2, 1, 0, 1), cuda_device)
    layer = step.layers[0]
    x[0, 2, 3, 0] = np.nan
    y = cuda_device.empty(right.shape, np.float32)
    w, b = layer.weight.value, layer.bias.value
    tiled.tiled_forward(cuda_device.array(x), w, b, y, 1, 0, 1, relu=True)
    y = cuda_device.to_host(y)
    assert np.isnan(y[0, 1, 2]).all()
    assert np.isnan(y).sum() == filters
    there = ~np.isnan(y)
    oracles.assert_close(y[there], np.maximum(right[there], 0), np.float32)


@pytest.mark.full
def test_the_filter_gradient_of_several_splits(cuda_device, monkeypatch):
    # 90 output pixels in 3 splits of 32, 32 and 26.
    monkeypatch.setattr(tiled_gradients, "MIN_SPLIT", 30)
    assert tiled_gradients.choose_split_k(90, 1) == (3, 32)
    for filters in (4, 3):
        step, x, dy, right = make(((2, 9, 5, 4), filters, 1, 1, 0, 1), cuda_device)
        oracles.run(step, x, dy)
        assert step.buffer("partial sums of dw", (3, 4 * filters)).shape == (3, 4 * filters)
        oracles.assert_close(gradients(step)[0], right[2], np.float32)


@pytest.mark.parametrize(
    ("pixels", "tiles"), [(1, 1), (7, 3), (256, 1), (387_200, 6), (21_632, 108), (93_312, 5000)]
)
def test_splits_cover_all_pixels_and_none_is_empty(pixels, tiles):
    splits, split_k = tiled_gradients.choose_split_k(pixels, tiles)
    assert split_k % tile.BK == 0
    assert (splits - 1) * split_k < pixels <= splits * split_k
    assert splits == 1 or splits * tiles <= tiled_gradients.BLOCKS


def test_the_constants_fit_each_other():
    for module in (tiled, tiled_gradients):
        assert module.BM * module.BN == tile.THREADS * tile.TM * tile.TN
        assert module.BM <= module.A_STRIDE
        assert module.BN <= module.B_STRIDE
        assert module.B_OFFSET == tile.BK * module.A_STRIDE
        one = module.B_OFFSET + tile.BK * module.B_STRIDE
        assert one <= tile.BUFFER_STRIDE
        assert tile.BUFFER_STRIDE + one == module.TILES


def test_two_runs_give_the_same_bits(cuda_device):
    step, x, dy, _ = make(VECTORIZED["one k-tile, of which a half is missing"], cuda_device)
    first = *oracles.run(step, x, dy), *gradients(step)
    second = *oracles.run(step, x, dy), *gradients(step)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


# --- what the launch asks of memory


@pytest.mark.parametrize("filters", [4, 3])
def test_shared_memory_has_no_bank_conflicts(filters):
    if not SIMULATED or not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    step, x, dy, _ = make(((1, 3, 4, 4), filters, 2, 1, 0, 1), Device("cuda:0"))
    with simulator.record() as traces:
        oracles.run(step, x, dy)
    tiles = [trace for trace in traces if trace.kernel.startswith("tiled")]
    assert len(tiles) == 3
    for trace in tiles:
        lines = [line for line in measure(trace).lines if line.space == "shared"]
        assert lines
        assert {line.conflict_ways for line in lines} == {1}


def test_a_warp_loads_whole_sectors():
    if not SIMULATED or not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    step, x, _, _ = make(((2, 4, 8, 8), 8, 1, 1, 0, 1), Device("cuda:0"))
    with simulator.record() as traces:
        oracles.run(step, x)
    reads = [
        line
        for line in measure(traces[0]).lines
        if line.array in ("x", "w") and line.instruction.vectorized
    ]
    assert {line.array for line in reads} == {"x", "w"}
    assert all(line.sectors == line.ideal_sectors for line in reads)


# --- intrinsics


def test_the_emulated_outer_product_does_what_the_loops_do():
    if not SIMULATED:
        pytest.skip("intrinsics are emulated in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    rng = np.random.default_rng(0)
    rows, columns, sums = (rng.standard_normal(n).astype(np.float32) for n in (8, 8, 64))
    right = sums.copy()
    ptx.add_outer_loops(rows, columns, right)

    class Held:
        def __init__(self, data):
            self.data = data

    ptx.add_outer(Held(rows), Held(columns), Held(sums))
    np.testing.assert_array_equal(sums, right)


def test_a_copy_of_four_that_is_not_aligned_is_refused_by_the_simulator():
    if not SIMULATED:
        pytest.skip("intrinsics are emulated in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    from layers.simulator.arrays import KernelArray

    x, y = (KernelArray(np.zeros(8, np.float32), name) for name in "xy")
    ptx.copy_vec4(y, 4, x, 0)
    for to, at in ((1, 0), (0, 2)):
        with pytest.raises(ValueError, match="not at a multiple of 16 bytes"):
            ptx.copy_vec4(y, to, x, at)


# --- what is refused


def test_more_elements_than_32_bits_count_are_refused(cuda_device):
    class Huge:
        size, shape = tile.LARGEST + 1, (2_000_000_001,)

    with pytest.raises(ValueError, match="2,000,000,000 elements at most.*2000000001"):
        tile.check_sizes(Huge, Huge)
