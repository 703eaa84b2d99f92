"""Softmax with cross-entropy: both tiers against the formula, and logits that overflow."""

import math

import numpy as np
import oracles
import pytest
from marks import long
from tiers import both_tiers, loss_of

from layers import Device

SHAPES = [(3, 5), (1, 7), (130, 3), (4, 1), (5, 2), (1, 1), (2, 128), (2, 129), (1, 300)]
"""The fast kernel has a block of 128 threads for a row."""


def run(logits, labels, tier, device, dtype=np.float64):
    """Loss, probabilities and dL/dlogits on the host."""
    loss = loss_of(tier, device, dtype)
    value = loss.forward(device.array(logits, dtype), labels)
    dlogits = device.to_host(loss.backward()).copy()
    return value, device.to_host(loss.probabilities).copy(), dlogits


@both_tiers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_follow_the_formula(shape, dtype, tier, device):
    rng = np.random.default_rng(6)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(shape[1], size=shape[0])
    expected = oracles.softmax_cross_entropy(logits.astype(np.float64), labels)
    actual = run(logits, labels, tier, device, dtype)
    assert isinstance(actual[0], float)
    for mine, right in zip(actual, expected, strict=True):
        oracles.assert_close(mine, right, dtype)
    assert actual[1].dtype == actual[2].dtype == dtype


@both_tiers
def test_equal_logits_give_the_logarithm_of_the_number_of_classes(tier, device):
    logits, labels = np.full((3, 1000), 4.2), np.array([0, 999, 5])
    value, probabilities, dlogits = run(logits, labels, tier, device)
    assert value == pytest.approx(math.log(1000), rel=1e-14)
    np.testing.assert_allclose(probabilities, 1e-3, rtol=1e-13)
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-14)


@both_tiers
def test_huge_logits_overflow_nothing_and_a_probability_of_zero_gives_a_finite_loss(tier, device):
    logits = np.array([[1000.0, 0.0, -1000.0], [-2000.0, -1000.0, -3000.0]])
    value, probabilities, dlogits = run(logits, np.array([1, 2]), tier, device)
    assert value == pytest.approx((1000 + 2000) / 2, rel=1e-15)
    np.testing.assert_array_equal(probabilities, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5, 0], [0, 0.5, -0.5]])


@both_tiers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000])
def test_any_number_of_classes_on_the_host(classes, dtype, tier):
    rng = np.random.default_rng(classes)
    logits = (8 * rng.standard_normal((3, classes))).astype(dtype)
    labels = np.array([0, classes - 1, classes // 2])
    expected = oracles.softmax_cross_entropy(logits.astype(np.float64), labels)
    for mine, right in zip(run(logits, labels, tier, Device("cpu"), dtype), expected, strict=True):
        oracles.assert_close(mine, right, dtype)


@both_tiers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_infinite_logits_give_what_the_limit_does_or_not_a_number_on_the_host(dtype, tier):
    inf = np.inf
    logits = np.array([[1, -inf, 1], [1, -inf, 1], [1, inf, 1], [-inf, -inf, -inf]], dtype)
    loss = loss_of(tier, Device("cpu"), dtype)
    assert math.isnan(loss.forward(logits, np.array([0, 1, 1, 0])))
    np.testing.assert_array_equal(loss.probabilities[:2], [[0.5, 0, 0.5]] * 2)
    assert np.isnan(loss.probabilities[2:]).any(axis=1).all()
    assert loss.losses[0] == pytest.approx(math.log(2)) and loss.losses[1] == inf
    assert np.isnan(loss.losses[2:]).all()


@both_tiers
def test_the_largest_numbers_there_are_overflow_quietly_on_the_host(tier):
    largest = np.finfo(np.float32).max
    logits = np.array([[largest, -largest, 0], [-largest, largest, largest]], np.float32)
    value, probabilities, _ = run(logits, np.array([0, 1]), tier, Device("cpu"), np.float32)
    np.testing.assert_array_equal(probabilities, [[1, 0, 0], [0, 0.5, 0.5]])
    assert value == pytest.approx(math.log(2) / 2)


@both_tiers
def test_adding_a_constant_to_an_images_logits_changes_nothing(tier, device):
    logits = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.75]])
    labels = np.array([0, 1])
    moved = logits + np.array([[64.0], [-512.0]])  # exact in binary
    here, there = (run(each, labels, tier, device) for each in (logits, moved))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


@both_tiers
@pytest.mark.parametrize("place", [0, 1, 2])
def test_not_a_number_among_the_logits_shows_in_the_loss(place, tier, device):
    logits = np.zeros((2, 3))
    logits[1, place] = np.nan
    value, probabilities, _ = run(logits, np.array([0, 0]), tier, device)
    assert math.isnan(value)
    assert not np.isnan(probabilities[0]).any()


@both_tiers
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.uint64])
def test_labels_may_be_integers_of_any_kind_on_the_host_or_the_device(dtype, tier, device):
    logits, labels = np.arange(12.0).reshape(4, 3), np.array([2, 0, 1, 1])
    expected = run(logits, labels, tier, device)
    for given in (labels.astype(dtype), device.array(labels, dtype)):
        for mine, right in zip(run(logits, given, tier, device), expected, strict=True):
            np.testing.assert_array_equal(mine, right)


@both_tiers
def test_the_labels_are_copied(tier, device):
    loss = loss_of(tier, device)
    labels = np.array([2, 0])
    loss.forward(device.array(np.eye(2, 3)), labels)
    expected = device.to_host(loss.backward()).copy()
    labels[...] = 1
    np.testing.assert_array_equal(device.to_host(loss.backward()), expected)


@both_tiers
def test_logits_are_left_as_they_were(tier, device):
    logits = np.random.default_rng(0).standard_normal((3, 5))
    on_device = device.array(logits)
    loss = loss_of(tier, device)
    loss.forward(on_device, np.array([1, 2, 3]))
    loss.backward()
    np.testing.assert_array_equal(device.to_host(on_device), logits)


@both_tiers
def test_strided_logits_give_the_same_loss(tier, device):
    logits = np.random.default_rng(0).standard_normal((3, 5))
    twice = device.array(np.repeat(logits, 2, axis=1))
    loss = loss_of(tier, device)
    labels = np.array([1, 2, 3])
    assert loss.forward(twice[:, ::2], labels) == loss.forward(device.array(logits), labels)


@both_tiers
def test_batches_of_changing_size_do_not_disturb_each_other(tier, device):
    rng = np.random.default_rng(2)
    loss = loss_of(tier, device)
    for images in (3, 2, 6, 3):
        logits, labels = rng.standard_normal((images, 5)), rng.integers(5, size=images)
        value = loss.forward(device.array(logits), labels)
        expected = run(logits, labels, tier, device)
        assert value == expected[0]
        np.testing.assert_array_equal(device.to_host(loss.probabilities), expected[1])
        np.testing.assert_array_equal(device.to_host(loss.backward()), expected[2])


@both_tiers
@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1]),
        np.array([[0], [1], [2]]),
        np.array([0.0, 1.0, 2.0]),
        np.array([True, False, True]),
        np.int64(1),
    ],
)
def test_labels_of_another_shape_or_kind_are_refused_with_both_shapes(labels, tier, device):
    loss = loss_of(tier, device)
    with pytest.raises(ValueError) as caught:
        loss.forward(device.zeros((3, 5), np.float64), labels)
    assert "(3, 5)" in str(caught.value)
    assert f"{labels.dtype} {labels.shape}" in str(caught.value)


@both_tiers
@pytest.mark.parametrize("wrong", [5, -1, 2**40])
def test_labels_out_of_range_are_refused_and_named(wrong, tier, device):
    loss = loss_of(tier, device)
    with pytest.raises(ValueError, match=rf"labels\[1\] is {wrong}.*0\.\.4.*\(3, 5\)"):
        loss.forward(device.zeros((3, 5), np.float64), np.array([4, wrong, 0]))


@both_tiers
def test_logits_that_are_no_table_are_refused(tier, device):
    loss = loss_of(tier, device)
    with pytest.raises(ValueError, match=r"\(3, 1, 5\)"):
        loss.forward(device.zeros((3, 1, 5), np.float64), np.array([0, 1, 2]))


@both_tiers
def test_backward_needs_a_forward(tier, device):
    with pytest.raises(RuntimeError, match="needs a forward"):
        loss_of(tier, device, np.float32).backward()


@both_tiers
def test_backward_needs_a_new_forward_after_a_move(tier, device):
    loss = loss_of(tier, device)
    loss.forward(device.zeros((3, 5), np.float64), np.array([0, 1, 2]))
    loss.to(device, np.float32)
    with pytest.raises(RuntimeError, match="needs a forward"):
        loss.backward()


@both_tiers
@pytest.mark.parametrize("dtype", [long(np.float64), np.float32])
def test_the_three_parts_of_forward_give_what_it_gives(dtype, tier, device):
    rng = np.random.default_rng(3)
    logits, labels = rng.standard_normal((130, 5)).astype(dtype), rng.integers(5, size=130)
    whole, parts = (loss_of(tier, device, dtype) for _ in range(2))
    value = whole.forward(device.array(logits), labels)
    parts.load_labels(labels, logits.shape)
    parts.compute(device.array(logits))
    assert parts.value() == parts.value() == value
    np.testing.assert_array_equal(
        device.to_host(parts.backward()), device.to_host(whole.backward())
    )


@both_tiers
def test_labels_are_taken_from_any_device(tier, device, cuda_device):
    loss = loss_of(tier, device)
    logits = device.array(np.eye(3))
    expected = loss.forward(logits, np.array([0, 1, 1]))
    assert loss.forward(logits, cuda_device.array(np.array([0, 1, 1]))) == expected
