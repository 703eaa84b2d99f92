"""Rounding to bfloat16 and TF32, against the definition, and the same bits on every device."""

import instructions
import numpy as np
import pytest

from layers.device import grid_for
from layers.fast import bfloat16

UPPER = np.arange(2**16, dtype=np.uint32) << 16
ENDS = (0x0000, 0x0001, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
WORDS = (UPPER[:, None] | np.array(ENDS, np.uint32)).reshape(-1)
"""Every sign, exponent and upper fraction, with lower bits at and beside the middle of a step."""
X = WORDS.view(np.float32)


def rounded(x, bits, ties_away):
    """float64: x to the nearest number with the lower `bits` of its word 0, by the definition.

    Beyond the largest one the next would be 2¹²⁸, which stands for infinity.
    """
    word = x.view(np.uint32)
    below = word >> bits << bits
    above = below.astype(np.uint64) + (1 << bits)
    one = below.view(np.float32).astype(np.float64)
    largest = above == 0x7F800000, above == 0xFF800000
    other = above.astype(np.uint32).view(np.float32).astype(np.float64)
    other = np.select(largest, (2.0**128, -(2.0**128)), other)
    exact = x.astype(np.float64)
    nearer = np.abs(exact - one) - np.abs(exact - other)
    even = below >> bits & 1 == 0
    upwards = (nearer > 0) | ((nearer == 0) & (~even | ties_away) & (one != exact))
    result = np.where(upwards, other, one)
    return np.where(np.abs(result) == 2.0**128, np.copysign(np.inf, result), result)


FINITE = np.isfinite(X)


def same(results, wanted):
    """Whether two arrays are equal, the signs of their zeros too."""
    np.testing.assert_array_equal(results, wanted)
    np.testing.assert_array_equal(np.signbit(results), np.signbit(wanted))


def test_the_words_tried_hold_every_kind_of_number():
    assert np.isnan(X).sum() > 1000 and np.isinf(X).sum() == 2
    assert ((X != 0) & (np.abs(X) < 2.0**-126)).sum() > 1000
    assert np.float32(3.4028235e38) in X and np.float32(1e-45) in X
    assert {0x3F808000, 0x3F818000} <= set(WORDS.tolist())  # ties, above even and above odd


def test_bfloat16_is_the_nearest_and_ties_go_to_even():
    out = bfloat16.round_bf16(X, np.empty_like(X))
    same(out[FINITE], rounded(X[FINITE], 16, False).astype(np.float32))


def test_tf32_is_the_nearest_and_ties_go_away_from_zero():
    out = bfloat16.round_tf32(X, np.empty_like(X))
    same(out[FINITE], rounded(X[FINITE], 13, True).astype(np.float32))


def test_a_few_known_values():
    third = np.array([1 / 3, 1 + 2**-8, 1 + 3 * 2**-8, 3.4028235e38, -3.4e38], np.float32)
    wanted = [0.333984375, 1, 1 + 2**-6, np.inf, -np.inf]
    assert bfloat16.round_bf16(third, third.copy()).tolist() == wanted
    ties = np.array([1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-11, 1 + 2**-12], np.float32)
    assert bfloat16.round_tf32(ties, ties.copy()).tolist() == [
        *(1 + 2**-10, -1 - 2**-10, 1 + 2**-9, 1)
    ]


@pytest.mark.parametrize("name", ["round_bf16", "round_tf32"])
def test_infinity_stays_and_a_nan_stays_a_quiet_nan(name):
    out = getattr(bfloat16, name)(X, np.empty_like(X))
    infinite, nan = np.isinf(X), np.isnan(X)
    same(out[infinite], X[infinite])
    words = out.view(np.uint32)[nan]
    assert (words & 0x7FC00000 == 0x7FC00000).all()
    if name == "round_bf16":
        assert (words == 0x7FFF0000).all()
    else:
        assert (words & 0x1FFF == 0).all()
        assert (words >> 31 == WORDS[nan] >> 31).all()


def test_bits_are_the_upper_half_and_come_back():
    bits = bfloat16.to_bits(X)
    assert bits.dtype == np.uint16
    whole = bfloat16.from_bits(bits)
    np.testing.assert_array_equal(
        whole.view(np.uint32), bfloat16.round_bf16(X, X.copy()).view(np.uint32)
    )
    every = np.arange(2**16, dtype=np.uint16)
    back = bfloat16.from_bits(every)
    np.testing.assert_array_equal(back.view(np.uint32), UPPER)
    numbers = ~np.isnan(back)
    np.testing.assert_array_equal(bfloat16.to_bits(back)[numbers], every[numbers])


def test_pytorch_rounds_alike():
    torch = pytest.importorskip("torch")
    numbers = X[~np.isnan(X)]
    theirs = torch.from_numpy(numbers.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(bfloat16.to_bits(numbers), theirs.view(np.uint16))


def test_any_shape_in_place_and_not_contiguous():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 7, 5)).astype(np.float32)
    for name in ("round_bf16", "round_tf32"):
        function = getattr(bfloat16, name)
        wanted, there = function(x, np.empty_like(x)), x.copy()
        assert function(there, there) is there
        np.testing.assert_array_equal(there, wanted)
        assert not np.array_equal(there, x)
        np.testing.assert_array_equal(
            function(x[::-1, :, ::2], np.empty((2, 6, 4, 5), np.float32)), wanted[::-1, :, ::2]
        )
    bits = bfloat16.to_bits(x.transpose(3, 1, 2, 0))
    assert bits.shape == (5, 6, 7, 2)
    np.testing.assert_array_equal(bits, bfloat16.to_bits(x).transpose(3, 1, 2, 0))
    np.testing.assert_array_equal(
        bfloat16.from_bits(bits.T), bfloat16.from_bits(bits).transpose(3, 2, 1, 0)
    )
    assert bfloat16.to_bits(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_other_types_shapes_and_layouts_are_refused():
    x = np.zeros((4, 3), np.float32)
    for function in (bfloat16.round_bf16, bfloat16.round_tf32):
        with pytest.raises(ValueError, match="an array of float32, not of float64"):
            function(x.astype(np.float64), x)
        with pytest.raises(ValueError, match="an array of float32, not of float16"):
            function(x, x.astype(np.float16))
        with pytest.raises(ValueError, match=r"out \(3, 4\) must be contiguous.*x \(4, 3\)"):
            function(x, np.empty((3, 4), np.float32))
        with pytest.raises(ValueError, match=r"out \(4, 3\) must be contiguous"):
            function(x, np.empty((3, 4), np.float32).T)
    with pytest.raises(ValueError, match="an array of float32, not of float64"):
        bfloat16.to_bits(x.astype(np.float64))
    with pytest.raises(ValueError, match="an array of uint16, not of int16"):
        bfloat16.from_bits(x.astype(np.int16))


# --- in kernels

SOME = np.random.default_rng(1).permutation(len(WORDS))[:4000]


def convert(device, x, dtype):
    """narrow(widen(x)) in arrays of `dtype`, by a kernel."""
    y = device.zeros(x.shape, dtype)
    instructions.convert_kernel[grid_for(x.size)](device.array(x), y)
    return device.to_host(y)


def test_a_kernel_narrows_to_the_same_bits(cuda_device):
    x = X[SOME]
    with np.errstate(invalid="ignore"):
        double = x.astype(np.float64)
    for source in (x, double):
        np.testing.assert_array_equal(convert(cuda_device, source, np.uint16), bfloat16.to_bits(x))


def test_a_kernel_widens_to_the_same_bits(cuda_device):
    bits = (WORDS[SOME] >> 16).astype(np.uint16)
    whole = convert(cuda_device, bits, np.float32)
    np.testing.assert_array_equal(whole.view(np.uint32), bfloat16.from_bits(bits).view(np.uint32))
    numbers = bits[~np.isnan(whole)]
    np.testing.assert_array_equal(convert(cuda_device, numbers, np.uint16), numbers)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_leaves_floats_as_they_are(cuda_device, dtype):
    x = np.random.default_rng(0).standard_normal(200).astype(dtype)
    np.testing.assert_array_equal(convert(cuda_device, x, dtype), x)


def test_a_kernel_rounds_words_to_tf32(cuda_device):
    words = WORDS[SOME][~np.isnan(X[SOME])]
    y = cuda_device.zeros(words.shape, np.uint32)
    instructions.round_kernel[grid_for(words.size)](cuda_device.array(words), y)
    x = words.view(np.float32)
    wanted = bfloat16.round_tf32(x, x.copy()).view(np.uint32)
    np.testing.assert_array_equal(cuda_device.to_host(y), wanted)
