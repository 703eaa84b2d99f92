"""The loss's second rung against the formula, and beside the first."""

import numpy as np
import oracles
import pytest

from layers import SoftmaxCrossEntropy
from layers.device import THREADS


def run(logits, labels, device, fuse=True):
    """Loss, probabilities and dL/dlogits on the host."""
    loss = SoftmaxCrossEntropy(fuse).to(device, logits.dtype)
    value = loss.forward(device.array(logits), labels)
    return value, device.to_host(loss.probabilities).copy(), device.to_host(loss.backward()).copy()


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "shape", [(3, 5), (1, 1), (2, THREADS), (2, THREADS + 1), (3, 2), (1, 300)]
)
def test_both_rungs_follow_the_formula(shape, dtype, fuse, cuda_device):
    rng = np.random.default_rng(6)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(shape[1], size=shape[0])
    expected = oracles.softmax_cross_entropy(logits.astype(np.float64), labels)
    for mine, right in zip(run(logits, labels, cuda_device, fuse), expected, strict=True):
        # An exponential of a difference near 10 adds some ten roundings to those of the sum.
        oracles.assert_close(mine, right, dtype)


@pytest.mark.parametrize("largest", [1e4, -1e4])
def test_logits_that_would_overflow(largest, cuda_device):
    logits = np.full((2, 150), largest)
    logits[0, 140] += 1
    labels = np.array([140, 3])
    expected = run(logits, labels, cuda_device, fuse=False)
    for mine, right in zip(run(logits, labels, cuda_device), expected, strict=True):
        assert np.isfinite(mine).all()
        oracles.assert_close(mine, right, np.float64)


def test_not_a_number_spoils_its_image_and_the_mean(cuda_device):
    logits = np.zeros((3, 131))
    logits[1, 130] = np.nan
    value, probabilities, dlogits = run(logits, np.array([0, 1, 2]), cuda_device)
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(probabilities).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(dlogits).any(axis=1), [False, True, False])
