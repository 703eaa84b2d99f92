"""Tensor-core convolution: every edge of a tile, in the simulator, with the tiles that a GPU gets.

The operands are rounded first, to TF32 or bfloat16, so that every product is exact in float64: what
remains is the order of the additions, and the rounding of a bfloat16 result.
"""

import json

import numpy as np
import pytest

from layers import simulator
from layers.device import SIMULATED
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32, to_bits
from layers.fast.conv import tile_table
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.layer import Buffers
from tinyconv.lab.traffic import measure

# image (N, H, W, C), filters, window, stride, padding, groups
CASES = {
    "one chunk": ((1, 1, 1, 8), 8, 1, 1, 0, 1),
    "k-tiles that end inside a pixel": ((2, 4, 3, 24), 8, 2, 1, (1, 0), 1),
    "several stages": ((1, 3, 4, 32), 16, 2, 1, 1, 1),
    "pixels beyond a tile": ((2, 9, 8, 8), 4, 1, 1, 0, 1),
    "filters beyond a tile": ((1, 3, 2, 8), 136, 1, 1, 0, 1),
    "stride 2, padding only before": ((2, 7, 6, 8), 12, 3, 2, (3, 0), 1),
    "two groups": ((1, 4, 3, 16), 24, 2, 1, (1, 0), 2),
    "three groups, stride 2": ((2, 5, 4, 24), 12, 2, 2, 1, 3),
    "windows that lie in the padding": ((1, 3, 4, 8), 4, 2, 1, (3, 2), 1),
    "odd everything": ((2, 6, 7, 5), 3, 3, 1, (1, 0), 1),
    "colours, stride 4, padding only after": ((2, 9, 8, 3), 6, 5, 4, (0, 3), 1),
    "a group for each channel": ((1, 4, 3, 3), 6, 2, 1, 1, 3),
    "two groups, stride 3, rows that no window reaches": ((2, 9, 5, 6), 10, 3, 3, (2, 1), 2),
    "filters that fit TF32 only": ((1, 3, 5, 12), 12, 2, 1, 1, 1),
}
KINDS = {"tf32": np.float32, "bf16": np.uint16}


def numbers(array, device):
    """An array of either kind as float64 on the host."""
    array = device.to_host(array)
    return (from_bits(array) if array.dtype == np.uint16 else array).astype(float)


def rounded(values, kind):
    """Random numbers as the products see them."""
    out = np.empty(values.shape, np.float32)
    return (round_bf16 if kind == "bf16" else round_tf32)(values.astype(np.float32), out)


class Problem:
    """A layer's arrays, and what its formulas give for them, in float64."""

    def __init__(self, case, kind, device):
        self.shape, filters, size, self.stride, padding, self.groups = case
        self.before, self.after = (padding, padding) if isinstance(padding, int) else padding
        self.kind, self.device = kind, device
        rng = np.random.default_rng(5)
        images, height, width, channels = self.shape
        rows, columns = (
            (side + self.before + self.after - size) // self.stride + 1 for side in (height, width)
        )
        self.y_shape = images, rows, columns, filters
        w_shape = filters, size, size, channels // self.groups
        draw = rng.standard_normal
        self.x, self.w = rounded(draw(self.shape), kind), rounded(draw(w_shape), kind)
        self.dy = rounded(draw(self.y_shape), kind)
        self.b = draw(filters).astype(np.float32)
        # Filters come in as they are, with bits that their rounding takes away.
        self.raw_w = self.w * np.float32(1 + 2**-13)
        assert (self.raw_w != self.w).all()
        np.testing.assert_array_equal(rounded(self.raw_w, kind), self.w)
        self.buffer = Buffers(device, np.float32)

    def array(self, values):
        """Host values as an array of this kind on the device."""
        values = values.astype(np.float32)
        return self.device.array(to_bits(values) if self.kind == "bf16" else values)

    def empty(self, shape):
        """An array to be written, full of what must not stay there."""
        return self.array(np.full(shape, 12345.0))

    def forward(self, b=True, **options):
        """y, of the kernels."""
        y = self.empty(self.y_shape)
        w = self.device.array(self.raw_w)
        b = self.device.array(self.b) if b else None
        geometry = self.stride, self.before, self.groups, self.buffer
        tensor_forward(self.array(self.x), w, b, y, *geometry, **options)
        return numbers(y, self.device)

    def input_gradient(self, **options):
        """dx, of the kernels."""
        dx = self.empty(self.shape)
        w = self.device.array(self.raw_w)
        geometry = self.stride, self.before, self.groups, self.buffer
        tensor_input_gradient(self.array(self.dy), w, dx, *geometry, **options)
        return numbers(dx, self.device)

    def by_formula(self, x, w, b, dy):
        """y and dx in float64, one place of the window after the other."""
        images, height, width, channels = self.shape
        filters, size, _, mine = w.shape
        _, rows, columns, _ = dy.shape
        sides = height + self.before + self.after, width + self.before + self.after
        padded = np.zeros((images, *sides, channels))
        padded[:, self.before :, self.before :][:, :height, :width] = x
        y, d_padded = np.zeros(dy.shape) + b, np.zeros_like(padded)
        dx = d_padded[:, self.before :, self.before :][:, :height, :width]
        for g in range(self.groups):
            part = slice(g * mine, (g + 1) * mine)
            own = slice(g * filters // self.groups, (g + 1) * filters // self.groups)
            for r, s in np.ndindex(size, size):
                down = slice(r, r + (rows - 1) * self.stride + 1, self.stride)
                right = slice(s, s + (columns - 1) * self.stride + 1, self.stride)
                y[..., own] += padded[:, down, right, part] @ w[own, r, s].T.astype(float)
                d_padded[:, down, right, part] += dy[..., own] @ w[own, r, s].astype(float)
        return y, dx

    def right(self, b=True):
        """y and dx as they should be, and for each the sum of its products' magnitudes."""
        b = self.b if b else np.zeros(self.b.shape)
        parts = self.x, self.w, b, self.dy
        return *self.by_formula(*parts), *self.by_formula(*(np.abs(part) for part in parts))


def assert_right(mine, right, magnitude, kind):
    """But for roundings of float32 sums, and half a step of a bfloat16 result, 2⁻⁸ at most."""
    error = np.abs(mine - right)
    assert mine.shape == right.shape
    assert (error <= 1e-5 * magnitude + (2**-8 * np.abs(mine) if kind == "bf16" else 0)).all()


# The two kinds share their source; in BF16 chunks are larger, and so more of them are not whole.
AS_BOTH = ("one chunk", "several", "k-tiles", "two groups", "odd", "colours", "filters that fit")
BF16 = [title for title in CASES if title.startswith(AS_BOTH)]


@pytest.mark.full
@pytest.mark.parametrize(
    ("title", "kind"), [(title, "tf32") for title in CASES] + [(title, "bf16") for title in BF16]
)
def test_forward_and_input_gradient_follow_the_formula(title, kind, cuda_device):
    problem = Problem(CASES[title], kind, cuda_device)
    y, dx, y_size, dx_size = problem.right()
    assert_right(problem.forward(tile="128x64"), y, y_size, kind)
    assert_right(problem.input_gradient(tile="128x64"), dx, dx_size, kind)


@pytest.mark.full
@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("several stages", "tf32"),
        ("pixels beyond a tile", "bf16"),
        ("filters beyond a tile", "bf16"),
    ],
)
def test_128x128_gives_the_bits_of_128x64(title, kind, cuda_device):
    problem = Problem(CASES[title], kind, cuda_device)
    y = problem.forward(tile="128x128")
    assert_right(y, *problem.right()[::2], kind)
    np.testing.assert_array_equal(y, problem.forward(tile="128x64"))


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_threads_gives_the_same_bits(kind, cuda_device):
    if not simulator.installed:
        pytest.skip("the order is the simulator's: set NUMBA_ENABLE_CUDASIM=1")
    problem = Problem(((2, 3, 2, 24), 8, 1, 1, 0, 1), kind, cuda_device)
    first = problem.forward()
    with simulator.shuffled(7):
        np.testing.assert_array_equal(problem.forward(), first)


# --- what happens on the way out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filters", [8, 5])
def test_relu_and_mask_keep_what_is_not_a_number(kind, filters, cuda_device):
    problem = Problem(((1, 3, 4, 8), filters, 2, 1, 0, 1), kind, cuda_device)
    y, _, size, _ = problem.right()
    mask = np.random.default_rng(8).standard_normal(y.shape)
    mask[0, 0, 0, :3] = np.nan, 0, -0.0
    problem.x[0, 2, 3, 0] = np.nan  # of the last window alone
    made = problem.forward(relu=True)
    assert np.isnan(made[0, 1, 2]).all() and np.isnan(made).sum() == filters
    right = np.maximum(y, 0)
    right[0, 1, 2] = made[0, 1, 2] = 0
    assert (right == 0).any() and (right > 0).any()
    assert_right(made, right, size, kind)

    both = problem.forward(relu=True, mask=problem.array(mask))
    kept = ~(mask <= 0)
    assert np.isnan(both[0, 1, 2][kept[0, 1, 2]]).all()
    both[0, 1, 2][kept[0, 1, 2]] = 0
    np.testing.assert_array_equal(both, np.where(kept, made, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_input_gradient_is_masked(kind, stride, cuda_device):
    problem = Problem(((1, 5, 4, 8), 8, 2, stride, 1, 1), kind, cuda_device)
    mask = np.random.default_rng(8).standard_normal(problem.shape)
    mask[0, 1, 1, :3] = np.nan, 0, -0.0
    dx = problem.input_gradient(mask=problem.array(mask))
    np.testing.assert_array_equal(dx, np.where(mask <= 0, 0, problem.input_gradient()))


def test_without_a_bias(cuda_device):
    problem = Problem(CASES["one chunk"], "tf32", cuda_device)
    assert_right(problem.forward(b=False), *problem.right(b=False)[::2], "tf32")


# --- what the launches are


def launches_of(run):
    """The names of the kernels that `run()` launches."""
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    names = []
    with simulator.record(lambda trace: names.append(trace.kernel)):
        run()
    return names


@pytest.mark.parametrize(
    ("kind", "channels", "filters", "stride", "forward", "backward"),
    [
        ("tf32", 4, 4, 1, ["filters_to_s2d"], ["flipped_filters_s2d"]),
        (
            *("tf32", 6, 6, 1, ["image_to_s2d", "filters_to_s2d"]),
            ["flipped_filters_s2d", "image_to_s2d"],
        ),
        ("bf16", 8, 12, 1, ["filters_to_s2d"], ["flipped_filters_s2d", "image_to_s2d"]),
        ("bf16", 8, 8, 2, ["filters_to_s2d"], ["flipped_filters_s2d"]),
    ],
)
def test_what_is_rearranged(kind, channels, filters, stride, forward, backward, cuda_device):
    problem = Problem(((1, 3, 3, channels), filters, 1, stride, 0, 1), kind, cuda_device)
    back = ["image_from_s2d"] if stride > 1 else []
    for run, names, after in (
        (problem.forward, forward, []),
        (problem.input_gradient, backward, back),
    ):
        # Numbers that are rearranged are rounded, too.
        rounded = "_rounded" if kind == "tf32" and "image_to_s2d" in names else ""
        product = f"tensor_forward_128x64_{kind}{rounded}"
        assert launches_of(run) == [f"{name}_kernel" for name in (*names, product, *after)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_does_not_begin_at_16_bytes_is_copied(kind, cuda_device):
    problem = Problem(CASES["one chunk"], kind, cuda_device)
    as_it_is = problem.array
    memory = cuda_device.empty((24,), KINDS[kind])
    start = next(i for i in range(1, 16) if memory[i:].__array_interface__["data"][0] % 16)

    def moved(values):
        shifted = memory[start : start + 8].reshape(values.shape)
        shifted[...] = as_it_is(values)
        return shifted

    problem.array = lambda values: moved(values) if values is problem.x else as_it_is(values)
    y, _, size, _ = problem.right()
    assert_right(problem.forward(), y, size, kind)
    assert launches_of(problem.forward)[0] == "image_to_s2d_kernel"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", tile_table.TILES)
def test_memory_is_moved_in_whole_sectors_and_without_bank_conflicts(kind, tile, cuda_device):
    if not SIMULATED or not simulator.installed:
        pytest.skip("accesses are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    problem = Problem(((2, 8, 8, 32), 64, 1, 1, 0, 1), kind, cuda_device)
    with simulator.record() as traces:
        problem.forward(tile=tile)
    (trace,) = (trace for trace in traces if trace.kernel.startswith("tensor_forward"))
    lines = measure(trace).lines
    shared = [line for line in lines if line.space == "shared"]
    assert len(shared) >= 4  # two copies, two loads
    assert {line.conflict_ways for line in shared} == {1}
    # Eight float32 are stored by two instructions, each of which takes half of every sector.
    arrays = {"x", "w", "y"} if kind == "bf16" else {"x", "w"}
    moved = [line for line in lines if line.array in arrays]
    assert {line.array for line in moved} == arrays
    assert all(line.sectors == line.ideal_sectors for line in moved)


def test_more_elements_than_32_bits_count_are_refused(cuda_device, monkeypatch):
    monkeypatch.setattr("layers.fast.conv.tensor_tile.LARGEST", 100)
    problem = Problem(((1, 5, 5, 8), 4, 2, 1, 0, 1), "tf32", cuda_device)
    with pytest.raises(ValueError, match=r"'tensor' counts 100 elements.*\(1, 5, 5, 8\)"):
        problem.forward()


# --- which tile


def test_the_table_goes_before_the_rule(tmp_path, monkeypatch, cuda_device):
    problem = Problem(((1, 2, 2, 4), 4, 1, 1, 0, 1), "tf32", cuda_device)
    key = "tf32 forward 1x2x2x4 4x1x1x4 stride 1 before 0 groups 1"
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"sm_90": {key: "128x128"}, "sm_80": {}}))
    table = tile_table.read(path)
    assert launches_of(problem.forward)[-1] == "tensor_forward_128x64_tf32_kernel"
    monkeypatch.setattr(tile_table, "_table", lambda: table)
    monkeypatch.setattr(tile_table, "_gpu", lambda: ("sm_80", 132))
    assert launches_of(problem.forward)[-1] == "tensor_forward_128x64_tf32_kernel"
    monkeypatch.setattr(tile_table, "_gpu", lambda: ("sm_90", 132))
    assert launches_of(problem.forward)[-1] == "tensor_forward_128x128_tf32_kernel"
    assert launches_of(problem.input_gradient)[-1] == "tensor_forward_128x64_tf32_kernel"
