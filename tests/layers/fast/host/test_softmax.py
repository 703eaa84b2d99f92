"""The softmax of the host, by NumPy and for few classes by the loop: the same bits always, and
numbers that are not finite."""

import numba
import numpy as np
import pytest

from layers import Device
from layers.fast.plan import plan_loss

HOST = Device("cpu")


@pytest.mark.parametrize("classes", [10, 301])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(dtype, classes):
    rng = np.random.default_rng(1)
    logits = (5 * rng.standard_normal((9, classes))).astype(dtype)
    labels = rng.integers(classes, size=9)
    whole = plan_loss(HOST, dtype)
    whole.forward(logits, labels)
    threads = numba.get_num_threads()
    try:
        for n, count in enumerate([1, threads] * 4):
            numba.set_num_threads(count)
            alone = plan_loss(HOST, dtype)
            alone.forward(logits[n : n + 1], labels[n : n + 1])
            np.testing.assert_array_equal(alone.probabilities[0], whole.probabilities[n])
            assert alone.losses[0] == whole.losses[n]
    finally:
        numba.set_num_threads(threads)


@pytest.mark.parametrize("impossible", [0, 300])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("error")
def test_logits_of_any_size_and_not_finite_ones(dtype, impossible):
    logits = np.array([[0, -1e4, -np.inf], [1e4, 1e4, -1e4], [np.nan, 0, 1], [np.inf, 0, 0]], dtype)
    logits = np.pad(logits, [(0, 0), (0, impossible)], constant_values=-np.inf)
    loss = plan_loss(HOST, dtype)
    loss.load_labels(np.array([0, 1, 1, 1]), logits.shape)
    loss.compute(logits)
    np.testing.assert_array_equal(loss.probabilities[:2, :3], [[1, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(loss.losses[:2], [0, np.log(2)], rtol=1e-6)
    assert np.isnan(loss.losses[2:]).all()
