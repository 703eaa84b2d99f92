"""Dropout: how many units it keeps, which, and by what it multiplies them."""

import numpy as np
import oracles
import pytest

from layers import Device, Dropout
from layers.random_bits import random_words

SHAPE = (2, 6, 7, 5)


def mask(layer, shape=SHAPE):
    """What the layer's next training pass keeps, as booleans."""
    y, _ = oracles.run(layer, np.ones(shape))
    return y != 0


def test_a_unit_is_kept_where_its_random_word_reaches_p(device):
    layer = Dropout(0.3).to(device, np.float64)
    layer.set_seed(2**40 + 9, stream=17)
    layer.set_step(2**31 + 5)
    seed, stream, step = np.uint64(2**40 + 9), np.uint64(17), np.uint64(2**31 + 5)
    expected = [
        int(random_words(seed, stream, step, np.uint64(i))[0]) >= 0.3 * 2**32 for i in range(420)
    ]
    np.testing.assert_array_equal(mask(layer).ravel(), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_of_units_kept_is_one_minus_p(p):
    count = 40_000
    kept = mask(Dropout(p).to("cpu", np.float64), (4, count // 4)).sum()
    # Binomial: five standard deviations, and the draw is the same every time.
    assert abs(kept - (1 - p) * count) < 5 * np.sqrt(count * p * (1 - p))


def test_neighbouring_units_are_dropped_independently():
    kept = mask(Dropout(0.5).to("cpu", np.float64), (1, 40_000)).ravel()
    for distance in (1, 2, 4, 32):
        agree = (kept[:-distance] == kept[distance:]).mean()
        assert abs(agree - 0.5) < 5 * np.sqrt(0.25 / 39_000)


def test_the_mask_does_not_depend_on_device_or_dtype(cuda_device):
    masks = []
    for device in (Device("cpu"), cuda_device):
        for dtype in (np.float32, np.float64):
            layer = Dropout(0.4).to(device, dtype)
            layer.set_seed(2**63 + 3, 2)
            layer.set_step(12)
            masks.append(mask(layer))
    for other in masks[1:]:
        np.testing.assert_array_equal(other, masks[0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("mode", "in_training", "in_testing"), [("paper", 1, 0.6), ("inverted", 1 / 0.6, 1)]
)
def test_kept_units_are_scaled_as_the_mode_says(mode, in_training, in_testing, dtype, device):
    rng = np.random.default_rng(8)
    x, dy = (rng.standard_normal(SHAPE).astype(dtype) for _ in range(2))
    layer = Dropout(0.4, mode=mode).to(device, dtype)
    kept = mask(layer)
    layer.set_step(0)
    y, dx = oracles.run(layer, x, dy)
    assert y.dtype == dx.dtype == dtype
    # One multiplication, by a factor that is itself rounded.
    for mine, right in ((y, x), (dx, dy)):
        oracles.assert_close(mine, np.where(kept, right * in_training, 0), dtype, terms=2)
    y, dx = oracles.run(layer, x, dy, train=False)
    for mine, right in ((y, x), (dx, dy)):
        oracles.assert_close(mine, right * in_testing, dtype, terms=2)


def test_backward_uses_the_mask_of_the_last_forward(device):
    layer = Dropout(0.5).to(device, np.float64)
    mask(layer)
    y, dx = oracles.run(layer, np.ones(SHAPE), np.ones(SHAPE))
    np.testing.assert_array_equal(y, dx)
    # Twice, and with the next step already set: it is still that of the last forward.
    layer.set_step(99)
    again = layer.backward(device.array(np.ones(SHAPE)))
    np.testing.assert_array_equal(device.to_host(again), y)


def test_every_training_pass_draws_a_new_mask_and_set_step_repeats_one(device):
    layer = Dropout(0.5).to(device, np.float64)
    first, second = mask(layer), mask(layer)
    assert (first != second).mean() > 0.3
    layer.set_step(0)
    np.testing.assert_array_equal(mask(layer), first)
    np.testing.assert_array_equal(mask(layer), second)


def test_testing_draws_nothing(device):
    layer = Dropout(0.5).to(device, np.float64)
    first, second = mask(layer), mask(layer)
    layer.set_step(0)
    np.testing.assert_array_equal(mask(layer), first)
    oracles.run(layer, np.ones(SHAPE), train=False)
    np.testing.assert_array_equal(mask(layer), second)


def test_seed_and_stream_each_change_the_mask(device):
    masks = []
    for seed, stream in ((0, 0), (1, 0), (0, 1), (2**32, 0)):
        layer = Dropout(0.5).to(device, np.float64)
        layer.set_seed(seed, stream)
        masks.append(mask(layer))
    for i in range(4):
        for j in range(i):
            # Independent masks differ in half the units.
            assert 0.3 < (masks[i] != masks[j]).mean() < 0.7


def test_moving_the_layer_keeps_its_step(device):
    layer = Dropout(0.5).to(device, np.float64)
    mask(layer)
    second = mask(layer)
    layer.set_step(1)
    layer.to(device, np.float32)
    np.testing.assert_array_equal(mask(layer), second)


def test_the_key_lies_on_the_device_and_is_written_only_if_it_changes(device, monkeypatch):
    layer = Dropout(0.5).to(device, np.float64)
    written = []
    write = layer.device.write
    monkeypatch.setattr(layer.device, "write", lambda *a: (written.append(a[1]), write(*a)))
    layer.set_seed(2**64 - 1, 3)
    layer.set_step(4)
    layer.write_key()
    layer.write_key()
    mask(layer)  # of step 4: its key is there already
    np.testing.assert_array_equal(layer.device.to_host(layer.key), [2**64 - 1, 3, 4, 0])
    mask(layer)
    np.testing.assert_array_equal(layer.device.to_host(layer.key), [2**64 - 1, 3, 5, 0])
    assert len(written) == 2


@pytest.mark.parametrize("mode", ["paper", "inverted"])
def test_p_zero_drops_nothing(mode, device):
    x = np.random.default_rng(1).standard_normal(SHAPE)
    y, dx = oracles.run(Dropout(0, mode).to(device, np.float64), x, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, x)


def test_dropped_infinities_become_zero(device):
    y, _ = oracles.run(Dropout(0.5).to(device, np.float64), np.full((1, 50), np.inf))
    assert set(y.ravel()) == {0, np.inf}


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_p_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match=f"at least 0 and below 1, not {p}"):
        Dropout(p)


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'paper' or 'inverted', not 'spatial'"):
        Dropout(0.5, mode="spatial")
