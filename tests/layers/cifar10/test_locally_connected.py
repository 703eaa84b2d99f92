"""Locally connected layers against the formula, and against convolution where that is the same."""

import numpy as np
import oracles
import pytest

from layers import Conv2D, LocallyConnected2D

# image (N, H, W, C), filters, window, stride, padding
CASES = {
    "padding 1": ((2, 6, 7, 5), 4, 3, 1, 1),
    "no padding": ((2, 5, 4, 3), 2, 3, 1, 0),
    "stride 2, the last rows do not fit": ((2, 6, 7, 3), 3, 3, 2, 0),
    "gaps": ((2, 6, 8, 2), 3, 2, 3, 0),
    "windows that lie in the padding": ((3, 2, 3, 2), 2, 2, 1, 2),
    "1x1": ((3, 2, 4, 5), 6, 1, 1, 0),
    "one place": ((4, 3, 3, 2), 5, 3, 1, 0),
    "one number": ((1, 1, 1, 1), 1, 1, 1, 0),
}


def with_weights(shape, rest, device, dtype, seed=1):
    layer = LocallyConnected2D(shape[1:], *rest).to(device, dtype)
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters():
        parameter.value[...] = device.array(rng.standard_normal(parameter.value.shape), dtype)
    return layer


def oracle(x, w, b, dy, stride, padding):
    """y, dx, dw, db, one output after the other."""
    size = w.shape[3]
    side = (0, 0), (padding, padding), (padding, padding), (0, 0)
    padded = np.pad(x.astype(np.float64), side)
    y, d_padded, dw = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(w.shape)
    for n, p, q, k in np.ndindex(dy.shape):
        place = np.s_[n, p * stride : p * stride + size, q * stride : q * stride + size]
        y[n, p, q, k] = b[p, q, k] + np.sum(padded[place] * w[p, q, k])
        d_padded[place] += dy[n, p, q, k] * w[p, q, k]
        dw[p, q, k] += dy[n, p, q, k] * padded[place]
    height, width = x.shape[1:3]
    dx = d_padded[:, padding : padding + height, padding : padding + width]
    return y, dx, dw, dy.sum(axis=0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CASES)
def test_all_passes_follow_the_formula(title, dtype, device):
    shape, *rest = CASES[title]
    layer = with_weights(shape, rest, device, dtype)
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal((shape[0], *layer.bias.value.shape)).astype(dtype)
    oracles.run(layer, x + 1, dy + 1)  # what an earlier pass left must not stay
    found = (*oracles.run(layer, x, dy), *oracles.gradients(layer))
    w, b = (device.to_host(parameter.value) for parameter in layer.parameters())
    for mine, right in zip(found, oracle(x, w, b, dy, *rest[2:]), strict=True):
        assert mine.dtype == dtype and mine.shape == right.shape
        oracles.assert_close(mine, right, dtype)


def test_with_equal_filters_everywhere_it_is_a_convolution(device):
    shape = (2, 5, 6, 3)
    conv = Conv2D(3, 4, 3, stride=2, padding=1).to(device, np.float64)
    local = LocallyConnected2D(shape[1:], 4, 3, stride=2, padding=1).to(device, np.float64)
    rng = np.random.default_rng(4)
    for shared, own in zip(conv.parameters(), local.parameters(), strict=True):
        shared.value[...] = device.array(rng.standard_normal(shared.value.shape))
        own.value[...] = shared.value
    x, dy = rng.standard_normal(shape), rng.standard_normal((2, 3, 3, 4))
    for mine, right in zip(oracles.run(local, x, dy), oracles.run(conv, x, dy), strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-13)
    for own, shared in zip(oracles.gradients(local), oracles.gradients(conv), strict=True):
        np.testing.assert_allclose(own.sum(axis=(0, 1)), shared, rtol=0, atol=1e-13)


def test_a_place_without_gradient_learns_nothing(device):
    layer = with_weights((2, 4, 4, 2), (3, 3, 1, 1), device, np.float64)
    dy = np.zeros((2, 4, 4, 3))
    dy[:, 1, 2] = 1
    oracles.run(layer, np.ones((2, 4, 4, 2)), dy)
    dw, db = oracles.gradients(layer)
    assert dw[1, 2].all() and (db[1, 2] == 2).all()
    dw[1, 2], db[1, 2] = 0, 0
    assert not dw.any() and not db.any()


def test_a_smaller_batch_after_a_larger_one(device):
    layer = with_weights((5, 4, 3, 2), (3, 3, 1, 1), device, np.float64)
    x = np.random.default_rng(0).standard_normal((5, 4, 3, 2))
    whole = oracles.run(layer, x)[0]
    np.testing.assert_array_equal(oracles.run(layer, x[:2])[0], whole[:2])


@pytest.mark.parametrize(
    "rest",
    [((4, 5, 3), 0, 3), ((4, 5, 3), 2, 7, 1, 1), ((4, 5, 3), 2, 3, 0), ((4, 5, 3), 2, 3, 1, -1)],
)
def test_sizes_that_do_not_fit_are_refused(rest):
    with pytest.raises(ValueError, match=r"do not fit an image of shape \(4, 5, 3\)"):
        LocallyConnected2D(*rest)


def test_an_image_of_another_size_is_refused_with_both_shapes(device):
    layer = LocallyConnected2D((4, 5, 3), 2, 3).to(device, np.float32)
    with pytest.raises(ValueError, match=r"\(5, 4, 3\) does not fit .* \(4, 5, 3\)"):
        layer.forward(device.zeros((1, 5, 4, 3), np.float32))
