"""The rearrangements of rung 3: every element from where the docstring's formula says."""

import numpy as np
import pytest

from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32, to_bits
from layers.fast.conv.space_to_depth import (
    choose_side,
    filters_from_s2d,
    filters_to_s2d,
    flipped_filters_s2d,
    image_from_s2d,
    image_to_s2d,
    s2d_channels,
    s2d_size,
)
from layers.fast.conv.tensor_tile import taps_first
from layers.layer import Buffers

# image (N, H, W, C), filters, window, stride, side, padding before, groups
CASES = {
    "colours, stride 4": ((2, 9, 11, 3), 2, 5, 4, 4, 0, 1),
    "padding, window no multiple of the side": ((1, 7, 6, 3), 4, 5, 2, 2, 3, 1),
    "side 1 adds channels of zeros": ((2, 4, 5, 3), 4, 3, 1, 1, 1, 1),
    "side 1 with a stride": ((1, 6, 7, 5), 2, 3, 2, 1, 1, 1),
    "two groups": ((2, 5, 7, 6), 4, 3, 3, 3, 1, 2),
    "rows that no window reaches": ((1, 9, 10, 2), 2, 2, 4, 4, 0, 1),
    "one window, larger than the image": ((1, 2, 3, 1), 1, 7, 2, 2, 4, 1),
    "more than one block of threads in a row": ((1, 5, 24, 7), 2, 3, 2, 2, 1, 1),
}
KINDS = {"float32": np.float32, "bfloat16": np.uint16}


def outputs(case):
    """(N, P, Q, K), with one padding for all sides."""
    (images, height, width, _), filters, size, stride, _, before, _ = case
    rows, columns = ((side + 2 * before - size) // stride + 1 for side in (height, width))
    return images, rows, columns, filters


def draw(shape, dtype, seed=0):
    """Numbers of which none is 0 and no two are alike."""
    count = int(np.prod(shape))
    order = np.random.default_rng(seed).permutation(count).reshape(shape) + 1
    return order.astype(dtype)


@pytest.fixture
def buffer(cuda_device):
    return Buffers(cuda_device, np.float32)


def image_by_formula(x, shape, side, before, groups):
    """The formula, element by element."""
    right = np.zeros(shape, x.dtype)
    channels_per_group, padded = x.shape[3] // groups, shape[3] // groups
    for n, i, j, group, u, v, c in np.ndindex(*shape[:3], groups, side, side, channels_per_group):
        h, q = i * side + u - before, j * side + v - before
        if 0 <= h < x.shape[1] and 0 <= q < x.shape[2]:
            place = group * padded + (u * side + v) * channels_per_group + c
            right[n, i, j, place] = x[n, h, q, group * channels_per_group + c]
    return right


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", CASES)
def test_images_to_s2d_and_back(title, kind, cuda_device, buffer):
    shape, _, size, stride, side, before, groups = CASES[title]
    x = draw(shape, KINDS[kind])
    y_shape, on_device = outputs(CASES[title]), cuda_device.array(x)
    made = image_to_s2d("x", on_device, y_shape, size, stride, side, before, groups, buffer)
    per = 4 if kind == "float32" else 8
    window = -(-size // side)
    rows, columns = ((side_ - 1) * stride // side + window for side_ in y_shape[1:3])
    channels = -(-side * side * shape[3] // groups // per) * per * groups
    assert made.shape == (shape[0], rows, columns, channels)
    made_host = cuda_device.to_host(made)
    np.testing.assert_array_equal(made_host, image_by_formula(x, made.shape, side, before, groups))

    back = cuda_device.empty(shape, KINDS[kind])
    image_from_s2d(made, back, side, before, groups)
    # What is not in x_s2d lies beyond all of its squares.
    reached = [length * side - before for length in made.shape[1:3]]
    right = x.copy()
    right[:, max(0, reached[0]) :] = 0
    right[:, :, max(0, reached[1]) :] = 0
    np.testing.assert_array_equal(cuda_device.to_host(back), right)


@pytest.mark.parametrize("kind", KINDS)
def test_images_from_s2d_are_masked(kind, cuda_device, buffer):
    shape, side = (1, 4, 3, 2), 2
    x = draw(shape, KINDS[kind])
    made = image_to_s2d("x", cuda_device.array(x), (1, 1, 1, 1), 4, 2, side, 0, 1, buffer)
    mask = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    mask[0, 0, 0, 0], mask[0, 1, 1, 1], mask[0, 3, 2, 0] = np.nan, 0, -0.0
    assert (mask < 0).any() and (mask > 0).any()
    right = np.where(mask <= 0, 0, x)  # what is not a number keeps its gradient
    on_device = cuda_device.array(mask if kind == "float32" else to_bits(mask))
    back = cuda_device.empty(shape, KINDS[kind])
    image_from_s2d(made, back, side, 0, 1, on_device)
    np.testing.assert_array_equal(cuda_device.to_host(back), right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", CASES)
def test_filters_to_s2d_flipped_and_back(title, kind, cuda_device, buffer):
    shape, filters, size, _, side, _, groups = CASES[title]
    channels, mine = shape[3] // groups, filters // groups
    w = np.random.default_rng(2).standard_normal((filters, size, size, channels))
    w = w.astype(np.float32)
    like = np.empty(0, KINDS[kind])
    per = 4 if kind == "float32" else 8
    on_device = cuda_device.array(w)
    made = filters_to_s2d(on_device, side, like, buffer)
    flipped = flipped_filters_s2d(on_device, side, groups, like, buffer)

    window, padded = -(-size // side), -(-side * side * channels // per) * per
    right = np.zeros((filters, window, window, padded), np.float32)
    for k, r, s, c in np.ndindex(w.shape):
        right[k, r // side, s // side, (r % side * side + s % side) * channels + c] = w[k, r, s, c]
    (round_bf16 if kind == "bfloat16" else round_tf32)(right, right)

    def numbers(array):
        # In memory: the taps of so many channels, then those of the next.
        array = cuda_device.to_host(array)
        if bk := taps_first(array, 1, array.shape[1]):
            taps, channels = array.shape[1] ** 2, array.shape[3]
            chunks = array.reshape(-1, channels // bk, taps, bk)
            array = chunks.transpose(0, 2, 1, 3).reshape(array.shape)
        return from_bits(np.ascontiguousarray(array)) if kind == "bfloat16" else array

    np.testing.assert_array_equal(numbers(made), right)
    of_group = channels if side == 1 else padded
    right_flipped = np.zeros((groups * of_group, window, window, -(-mine // per) * per), np.float32)
    for k, i, j, place in np.ndindex(filters, window, window, of_group):
        to = k // mine * of_group + place, window - 1 - i, window - 1 - j, k % mine
        right_flipped[to] = right[k, i, j, place]
    assert flipped.shape == right_flipped.shape
    np.testing.assert_array_equal(numbers(flipped), right_flipped)

    if kind == "float32":
        back = cuda_device.empty(w.shape, np.float32)
        filters_from_s2d(cuda_device.array(numbers(made)), back, side)
        np.testing.assert_array_equal(cuda_device.to_host(back), round_tf32(w, w))


# --- which side


@pytest.mark.parametrize(
    ("size", "stride", "channels", "per", "side", "terms"),
    [
        (11, 4, 3, 4, 4, 432),  # conv1; b = 1: 484
        (11, 4, 3, 8, 4, 432),  # b = 1: 968
        (3, 2, 64, 8, 1, 576),  # whole chunks already
        (3, 1, 3, 4, 1, 36),  # no stride, no choice
        (7, 2, 3, 4, 2, 192),  # b = 1: 196
        (3, 2, 3, 4, 1, 36),  # b = 2: 48
    ],
)
def test_the_side_with_the_fewest_terms(size, stride, channels, per, side, terms):
    chosen = choose_side(size, stride, channels, per)
    assert chosen == side
    count = s2d_size(size, chosen) ** 2 * s2d_channels(channels, chosen, per)
    assert count == terms


def test_too_many_numbers_are_refused(monkeypatch, cuda_device, buffer):
    monkeypatch.setattr("layers.fast.conv.tensor_tile.LARGEST", 100)
    x = cuda_device.array(draw((1, 5, 5, 3), np.float32))
    with pytest.raises(ValueError, match=r"100 elements at most.*\(1, 5, 5, 8\)"):
        image_to_s2d("x", x.astype(np.uint16), (1, 5, 5, 1), 1, 1, 1, 0, 1, buffer)
