"""The loss by a block for each image: long rows that overflow or hold a NaN, beside the book's."""

import numpy as np
import oracles
import pytest
from tiers import TIERS, loss_of

from layers.device import THREADS
from layers.fast.plan import plan_loss
from layers.fast.softmax import SoftmaxRows
from tinyconv.evaluate import count_hits


def run(logits, labels, device, tier="fast"):
    """Loss, probabilities and dL/dlogits on the host."""
    loss = loss_of(tier, device, logits.dtype)
    value = loss.forward(device.array(logits), labels)
    return value, device.to_host(loss.probabilities).copy(), device.to_host(loss.backward()).copy()


@pytest.mark.parametrize("largest", [1e4, -1e4])
def test_logits_that_would_overflow(largest, cuda_device):
    logits = np.full((2, THREADS + 22), largest)
    logits[0, THREADS + 12] += 1
    labels = np.array([THREADS + 12, 3])
    fast, simple = (run(logits, labels, cuda_device, tier) for tier in reversed(TIERS))
    for mine, right in zip(fast, simple, strict=True):
        assert np.isfinite(mine).all()
        oracles.assert_close(mine, right, np.float64)


def test_not_a_number_spoils_its_image_and_the_mean(cuda_device):
    logits = np.zeros((3, THREADS + 3))
    logits[1, THREADS + 2] = np.nan
    value, probabilities, dlogits = run(logits, np.array([0, 1, 2]), cuda_device)
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(probabilities).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(dlogits).any(axis=1), [False, True, False])


def test_hits_are_counted_as_on_the_host(cuda_device):
    """The first of equal logits counts as the larger; a row with a NaN or +inf is no hit."""
    classes = THREADS + 9
    rng = np.random.default_rng(5)
    logits = rng.integers(-3, 4, (40, classes)).astype(np.float64)  # many ties
    labels = np.argmax(logits, axis=1)
    labels[::4] = rng.integers(0, classes, 10)
    logits[0, 7], logits[1, classes - 1], logits[2, 3] = np.nan, np.inf, -np.inf
    loss = plan_loss(cuda_device, np.float64)
    loss.load_labels(labels, logits.shape)
    with np.errstate(invalid="ignore"):
        loss.compute(cuda_device.array(logits))
    probabilities = cuda_device.to_host(loss.probabilities)
    single = [count_hits(probabilities[n : n + 1], labels[n : n + 1], 1) for n in range(40)]
    np.testing.assert_array_equal(cuda_device.to_host(loss.hits), single)
    assert 0 < sum(single) < 40
    mean, hits = loss.pending()
    assert np.isnan(float(mean)) and float(hits) == sum(single)


def test_pending_numbers_are_read_before_the_next_but_one(cuda_device):
    loss, pending = plan_loss(cuda_device, np.float64), []
    for label in range(3):
        loss.load_labels(np.array([label]), (1, 3))
        loss.compute(cuda_device.array(np.array([[0.0, 1.0, 2.0]])))
        pending.append(loss.pending())
        mean, hits = pending[max(0, label - 1)]
        wanted = np.log(np.exp([0, 1, 2]).sum()) - max(0, label - 1)
        assert float(mean) == pytest.approx(wanted, rel=1e-12)
        assert float(hits) == 0
    assert float(pending[2][1]) == 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_loss_waits_on_the_device_until_it_is_read(dtype, cuda_device):
    """`compute` leaves the mean and dL/dlogits in buffers; `backward` launches nothing."""
    loss = plan_loss(cuda_device, dtype)
    assert type(loss) is SoftmaxRows
    logits = np.random.default_rng(3).standard_normal((3, 7)).astype(dtype)
    loss.load_labels(np.array([1, 0, 6]), logits.shape)
    loss.compute(cuda_device.array(logits))
    assert loss.backward() is loss.dlogits
    wanted, _, _ = oracles.softmax_cross_entropy(logits.astype(np.float64), [1, 0, 6])
    # Three exponentials, a logarithm and a mean: a few roundings.
    assert loss.value() == pytest.approx(wanted, rel=oracles.rounding(dtype))
