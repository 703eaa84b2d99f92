"""Softmax with cross-entropy: host and kernels against the formula, and logits that overflow."""

import math

import numba
import numpy as np
import oracles
import pytest

from layers import Device, SoftmaxCrossEntropy
from layers.softmax_cross_entropy import exp_host


def run(logits, labels, device, dtype=np.float64, fuse=True):
    """Loss, probabilities and dL/dlogits on the host."""
    loss = SoftmaxCrossEntropy(fuse).to(device, dtype)
    value = loss.forward(device.array(logits, dtype), labels)
    dlogits = device.to_host(loss.backward()).copy()
    return value, device.to_host(loss.probabilities).copy(), dlogits


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (130, 3), (4, 1), (5, 2)])
def test_loss_and_gradient_follow_the_formula(shape, dtype, device):
    rng = np.random.default_rng(6)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(shape[1], size=shape[0])
    expected = oracles.softmax_cross_entropy(logits.astype(np.float64), labels)
    actual = run(logits, labels, device, dtype)
    assert isinstance(actual[0], float)
    for mine, right in zip(actual, expected, strict=True):
        oracles.assert_close(mine, right, dtype)
    assert actual[1].dtype == actual[2].dtype == dtype


def test_equal_logits_give_the_logarithm_of_the_number_of_classes(device):
    value, probabilities, dlogits = run(np.full((3, 1000), 4.2), np.array([0, 999, 5]), device)
    assert value == pytest.approx(math.log(1000), rel=1e-14)
    np.testing.assert_allclose(probabilities, 1e-3, rtol=1e-13)
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-14)


def test_huge_logits_overflow_nothing_and_a_probability_of_zero_gives_a_finite_loss(device):
    logits = np.array([[1000.0, 0.0, -1000.0], [-2000.0, -1000.0, -3000.0]])
    value, probabilities, dlogits = run(logits, np.array([1, 2]), device)
    assert value == pytest.approx((1000 + 2000) / 2, rel=1e-15)
    np.testing.assert_array_equal(probabilities, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5, 0], [0, 0.5, -0.5]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000])
def test_any_number_of_classes_on_the_host(classes, dtype):
    rng = np.random.default_rng(classes)
    logits = (8 * rng.standard_normal((3, classes))).astype(dtype)
    labels = np.array([0, classes - 1, classes // 2])
    expected = oracles.softmax_cross_entropy(logits.astype(np.float64), labels)
    for mine, right in zip(run(logits, labels, Device("cpu"), dtype), expected, strict=True):
        oracles.assert_close(mine, right, dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(dtype):
    rng = np.random.default_rng(1)
    logits, labels = (5 * rng.standard_normal((9, 301))).astype(dtype), rng.integers(301, size=9)
    whole = SoftmaxCrossEntropy().to("cpu", dtype)
    whole.forward(logits, labels)
    threads = numba.get_num_threads()
    try:
        for n, count in enumerate([1, threads] * 4):
            numba.set_num_threads(count)
            alone = SoftmaxCrossEntropy().to("cpu", dtype)
            alone.forward(logits[n : n + 1], labels[n : n + 1])
            np.testing.assert_array_equal(alone.probabilities[0], whole.probabilities[n])
            assert alone.losses[0] == whole.losses[n]
    finally:
        numba.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_infinite_logits_give_what_the_limit_does_or_not_a_number_on_the_host(dtype):
    inf = np.inf
    logits = np.array([[1, -inf, 1], [1, -inf, 1], [1, inf, 1], [-inf, -inf, -inf]], dtype)
    loss = SoftmaxCrossEntropy().to("cpu", dtype)
    assert math.isnan(loss.forward(logits, np.array([0, 1, 1, 0])))
    np.testing.assert_array_equal(loss.probabilities[:2], [[0.5, 0, 0.5]] * 2)
    assert np.isnan(loss.probabilities[2:]).any(axis=1).all()
    assert loss.losses[0] == pytest.approx(math.log(2)) and loss.losses[1] == inf
    assert np.isnan(loss.losses[2:]).all()


def test_the_largest_numbers_there_are_overflow_quietly_on_the_host():
    largest = np.finfo(np.float32).max
    logits = np.array([[largest, -largest, 0], [-largest, largest, largest]], np.float32)
    value, probabilities, _ = run(logits, np.array([0, 1]), Device("cpu"), np.float32)
    np.testing.assert_array_equal(probabilities, [[1, 0, 0], [0, 0.5, 0.5]])
    assert value == pytest.approx(math.log(2) / 2)


def test_the_exponential_of_the_host_is_right_to_its_last_digit():
    x = np.concatenate([np.linspace(-87, 0, 100_003), -np.geomspace(1e-45, 87, 10_001)])
    x = x.astype(np.float32)
    right, mine = np.exp(x.astype(np.float64)), x.copy()
    exp_host(mine)
    assert np.max(np.abs(mine - right) / right) < np.finfo(np.float32).eps
    halves = np.log(2) * -np.arange(0.5, 126, 1)  # where the rounding of x / ln 2 changes over
    x = np.float32(halves[:, None] * (1 + 1e-7 * np.arange(-3, 4)))
    right, mine = np.exp(x.astype(np.float64)), x.copy()
    exp_host(mine.reshape(-1))
    assert np.max(np.abs(mine - right) / right) < np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_exponential_of_the_host_at_its_ends(dtype):
    x = np.array([0.0, -0.0, -1e4, -np.inf, np.nan, -1e-30], dtype)
    exp_host(x)
    np.testing.assert_array_equal(x, [1, 1, 0, 0, np.nan, 1])


def test_the_exponential_has_the_same_bits_wherever_a_number_stands():
    numbers = np.float32(-40) * np.random.default_rng(0).random(70, np.float32)
    expected = numbers.copy()
    exp_host(expected)
    for length in range(1, 70):  # first and last of a group that is computed at once, and left over
        for part in (slice(0, length), slice(70 - length, 70)):
            alone = numbers[part].copy()
            exp_host(alone)
            np.testing.assert_array_equal(alone, expected[part])


def test_adding_a_constant_to_an_images_logits_changes_nothing(device):
    logits = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.75]])
    labels = np.array([0, 1])
    moved = logits + np.array([[64.0], [-512.0]])  # exact in binary
    for one, other in zip(run(logits, labels, device), run(moved, labels, device), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_not_a_number_among_the_logits_shows_in_the_loss(place, device):
    logits = np.zeros((2, 3))
    logits[1, place] = np.nan
    value, probabilities, _ = run(logits, np.array([0, 0]), device)
    assert math.isnan(value)
    assert not np.isnan(probabilities[0]).any()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.uint64])
def test_labels_may_be_integers_of_any_kind_on_the_host_or_the_device(dtype, device):
    logits, labels = np.arange(12.0).reshape(4, 3), np.array([2, 0, 1, 1])
    expected = run(logits, labels, device)
    for given in (labels.astype(dtype), device.array(labels, dtype)):
        for mine, right in zip(run(logits, given, device), expected, strict=True):
            np.testing.assert_array_equal(mine, right)


def test_the_labels_are_copied(device):
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    labels = np.array([2, 0])
    loss.forward(device.array(np.eye(2, 3)), labels)
    expected = device.to_host(loss.backward()).copy()
    labels[...] = 1
    np.testing.assert_array_equal(device.to_host(loss.backward()), expected)


def test_logits_are_left_as_they_were(device):
    logits = np.random.default_rng(0).standard_normal((3, 5))
    on_device = device.array(logits)
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    loss.forward(on_device, np.array([1, 2, 3]))
    loss.backward()
    np.testing.assert_array_equal(device.to_host(on_device), logits)


def test_strided_logits_give_the_same_loss(device):
    logits = np.random.default_rng(0).standard_normal((3, 5))
    twice = device.array(np.repeat(logits, 2, axis=1))
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    labels = np.array([1, 2, 3])
    assert loss.forward(twice[:, ::2], labels) == loss.forward(device.array(logits), labels)


def test_batches_of_changing_size_do_not_disturb_each_other(device):
    rng = np.random.default_rng(2)
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    for images in (3, 2, 6, 3):
        logits, labels = rng.standard_normal((images, 5)), rng.integers(5, size=images)
        value = loss.forward(device.array(logits), labels)
        expected = run(logits, labels, device)
        assert value == expected[0]
        np.testing.assert_array_equal(device.to_host(loss.probabilities), expected[1])
        np.testing.assert_array_equal(device.to_host(loss.backward()), expected[2])


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
def test_labels_of_another_shape_or_kind_are_refused_with_both_shapes(labels, device):
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    with pytest.raises(ValueError) as caught:
        loss.forward(device.zeros((3, 5), np.float64), labels)
    assert "(3, 5)" in str(caught.value)
    assert f"{labels.dtype} {labels.shape}" in str(caught.value)


@pytest.mark.parametrize("wrong", [5, -1, 2**40])
def test_labels_out_of_range_are_refused_and_named(wrong, device):
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    with pytest.raises(ValueError, match=rf"labels\[1\] is {wrong}.*0\.\.4.*\(3, 5\)"):
        loss.forward(device.zeros((3, 5), np.float64), np.array([4, wrong, 0]))


def test_logits_that_are_no_table_are_refused(device):
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    with pytest.raises(ValueError, match=r"\(3, 1, 5\)"):
        loss.forward(device.zeros((3, 1, 5), np.float64), np.array([0, 1, 2]))


def test_backward_needs_a_forward(device):
    with pytest.raises(RuntimeError, match="needs a forward"):
        SoftmaxCrossEntropy().to(device).backward()


def test_backward_needs_a_new_forward_after_a_move(device):
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    loss.forward(device.zeros((3, 5), np.float64), np.array([0, 1, 2]))
    loss.to(device, np.float32)
    with pytest.raises(RuntimeError, match="needs a forward"):
        loss.backward()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_three_parts_of_forward_give_what_it_gives(dtype, device):
    rng = np.random.default_rng(3)
    logits, labels = rng.standard_normal((130, 5)).astype(dtype), rng.integers(5, size=130)
    whole, parts = (SoftmaxCrossEntropy().to(device, dtype) for _ in range(2))
    value = whole.forward(device.array(logits), labels)
    parts.load_labels(labels, logits.shape)
    parts.compute(device.array(logits))
    assert parts.value() == parts.value() == value
    np.testing.assert_array_equal(
        device.to_host(parts.backward()), device.to_host(whole.backward())
    )


def test_labels_are_taken_from_any_device(device, cuda_device):
    loss = SoftmaxCrossEntropy().to(device, np.float64)
    logits = device.array(np.eye(3))
    expected = loss.forward(logits, np.array([0, 1, 1]))
    assert loss.forward(logits, cuda_device.array(np.array([0, 1, 1]))) == expected
