"""Rung 3 of convolution: every edge of a tile, in the simulator, with the tiles that a GPU gets.

The operands are rounded first, to TF32 or bfloat16, so that every product is exact in float64: what
remains is the order of the additions, and the rounding of a bfloat16 result.
"""

import numpy as np
import pytest

from layers import simulator
from layers.bfloat16 import from_bits, round_bf16, round_tf32, to_bits
from layers.conv import tensor_core, tile_table
from layers.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.device import SIMULATED
from layers.layer import Buffers
from tinyconv.lab.traffic import measure

# image (N, H, W, C), filters, window, stride, padding, groups
CASES = {
    "one chunk": ((1, 1, 1, 8), 8, 1, 1, 0, 1),
    "slices that end inside a pixel": ((2, 4, 3, 24), 8, 2, 1, (1, 0), 1),
    "several stages": ((1, 3, 4, 40), 16, 3, 1, 1, 1),
    "windows beyond a tile": ((2, 9, 8, 8), 4, 1, 1, 0, 1),
    "filters beyond a tile": ((1, 3, 2, 8), 136, 1, 1, 0, 1),
    "stride 2, padding only before": ((2, 7, 6, 8), 12, 3, 2, (3, 0), 1),
    "two groups": ((1, 4, 3, 16), 24, 2, 1, (1, 0), 2),
    "three groups, stride 2": ((2, 5, 4, 24), 12, 2, 2, 1, 3),
    "windows that lie in the padding": ((1, 3, 4, 8), 4, 2, 1, (3, 2), 1),
    "odd everything": ((2, 6, 7, 5), 3, 3, 1, (1, 0), 1),
    "colours, stride 4, padding only after": ((2, 9, 8, 3), 6, 5, 4, (0, 3), 1),
    "a group for each channel": ((1, 4, 3, 3), 6, 2, 1, 1, 3),
    "two groups, stride 3, rows that no window reaches": ((2, 9, 5, 6), 10, 3, 3, (2, 1), 2),
    "filters that fit TF32 only": ((1, 3, 5, 12), 12, 3, 1, 1, 1),
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
        image = slice(self.before, self.before + height), slice(self.before, self.before + width)
        padded[:, *image] = x
        y, d_padded = np.zeros(dy.shape) + b, np.zeros_like(padded)
        for g in range(self.groups):
            part = slice(g * mine, (g + 1) * mine)
            own = slice(g * filters // self.groups, (g + 1) * filters // self.groups)
            for r, s in np.ndindex(size, size):
                down = slice(r, r + (rows - 1) * self.stride + 1, self.stride)
                right = slice(s, s + (columns - 1) * self.stride + 1, self.stride)
                y[..., own] += padded[:, down, right, part] @ w[own, r, s].T.astype(float)
                d_padded[:, down, right, part] += dy[..., own] @ w[own, r, s].astype(float)
        return y, d_padded[:, *image]

    def right(self, b=True):
        """y and dx as they should be, and for each the sum of its products' magnitudes."""
        b = self.b if b else np.zeros(self.b.shape)
        parts = self.x, self.w, b, self.dy
        return *self.by_formula(*parts), *self.by_formula(*(np.abs(part) for part in parts))


def assert_right(mine, right, magnitude, kind):
    """Within a few roundings of float32 sums, and that of a bfloat16 result (half a step: at most 2⁻⁸ of it)."""
    error = np.abs(mine - right)
    assert mine.shape == right.shape
    assert (error <= 1e-5 * magnitude + (2**-8 * np.abs(mine) if kind == "bf16" else 0)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", CASES)
def test_forward_and_input_gradient_follow_the_formula(title, kind, cuda_device):
    problem = Problem(CASES[title], kind, cuda_device)
    y, dx, y_size, dx_size = problem.right()
    assert_right(problem.forward(tile="small"), y, y_size, kind)
    assert_right(problem.input_gradient(tile="small"), dx, dx_size, kind)


LARGE = ["several stages", "windows beyond a tile", "filters beyond a tile", "two groups"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", LARGE)
def test_the_large_tile_gives_the_bits_of_the_small_one(title, kind, cuda_device):
    problem = Problem(CASES[title], kind, cuda_device)
    y = problem.forward(tile="large")
    assert_right(y, *problem.right()[::2], kind)
    np.testing.assert_array_equal(y, problem.forward(tile="small"))
