"""Convolution with sums in registers: hostile shapes, unused lanes, threads, a tile itself."""

import numpy as np
import oracles
import pytest
from host_steps import formula, host_step, results
from marks import long
from numba import njit

from layers.fast.host import register_tiles as host
from layers.fast.host import threads
from layers.fast.host.tile import VECTORS, add_products, add_tile, lanes, rows, zeros

# image (N, H, W, C), filters, size, stride, padding, groups
CASES = {
    "conv1": ((3, 23, 27, 3), 24, 11, 4, (1, 2), 1),
    "two groups, unused lanes": ((3, 9, 7, 26), 34, 5, 1, 2, 2),
    "1x1": ((5, 4, 6, 16), 32, 1, 1, 0, 1),
    "several panels, padding only before": ((2, 5, 7, 12), 70, 3, 1, (2, 0), 1),
    "last rows beyond every window": ((2, 17, 14, 12), 14, 6, 2, 0, 1),
    "one output, padding after as wide as the filter": ((1, 2, 2, 13), 15, 3, 1, (0, 3), 1),
}


def make(title, dtype=np.float64, relu=True):
    return host_step(host.RegisterTileConv, CASES[title], dtype, relu)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("vectors", VECTORS)
def test_a_tile_is_an_outer_product_summed_up(vectors, dtype):
    @njit
    def two_terms(a, places, b, out):
        tile = add_products(zeros(vectors, a), a, places, 1, b, 2)
        add_tile(add_products(tile, a, places, 3, b, 5), out)

    rng = np.random.default_rng(1)
    width, at_once = lanes(vectors, dtype), rows(vectors)
    a, b = (rng.integers(-9, 9, 80).astype(dtype) for _ in range(2))
    places, out = rng.integers(0, 70, at_once), np.ones(at_once * width, dtype)
    two_terms(a, places, b, out)
    wanted = 1 + np.outer(a[places + 1], b[2 : 2 + width])
    wanted += np.outer(a[places + 3], b[5 : 5 + width])
    np.testing.assert_array_equal(out.reshape(at_once, width), wanted)


@pytest.mark.parametrize("dtype", [long(np.float64), np.float32])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("title", CASES)
def test_the_formula_holds(title, relu, dtype):
    step, x, dy = make(title, dtype, relu)
    assert step.fits(step.layers[0])
    for mine, right in zip(results(step, x, dy), formula(step, x, dy), strict=True):
        oracles.assert_close(mine, right, dtype)


@pytest.mark.parametrize("title", CASES)
def test_without_an_input_gradient(title):
    """Then dL/dw of a stride is computed by tiles as well, and dz has no zeros around it."""
    step, x, dy = make(title)
    step.layers[0].input_gradient = False
    step.forward(x)
    assert step.backward(dy) is None
    _, _, *wanted = formula(step, x, dy)
    for mine, right in zip(oracles.gradients(step.layers[0]), wanted, strict=True):
        oracles.assert_close(mine, right, np.float64)


def test_images_may_be_padded_one_at_a_time(monkeypatch):
    wanted = results(*make("two groups, unused lanes"))
    monkeypatch.setattr(host, "CACHED_BYTES", 1)
    step, x, dy = make("two groups, unused lanes")
    for mine, right in zip(results(step, x, dy), wanted, strict=True):
        oracles.assert_close(mine, right, np.float64)
    assert step.geometry(x.shape, step.y.shape).padded[0] == 1


def test_any_number_of_threads_gives_the_same_but_for_roundings(monkeypatch):
    monkeypatch.setattr(threads, "SPLITS", True)
    found = []
    for count in (1, 2, 3, 8, 2):
        monkeypatch.setattr(threads, "get_num_threads", lambda count=count: count)
        found.append(results(*make("two groups, unused lanes", np.float32)))
    for others in found[1:]:
        for mine, right in zip(others, found[0], strict=True):
            oracles.assert_close(mine, right, np.float32)
    for mine, again in zip(found[1], found[4], strict=True):
        np.testing.assert_array_equal(mine, again)


def test_other_sizes_of_batch_and_image_in_turn():
    """Arrays are used again: nothing of a larger batch before may be left in them."""
    step, x, dy = make("two groups, unused lanes")
    wanted = results(step, x, dy)
    y = step.forward(np.full((5, 14, 12, 26), np.nan))
    step.backward(np.full(y.shape, np.nan))
    for mine, right in zip(results(step, x, dy), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_not_a_number_reaches_what_depends_on_it():
    step, x, dy = make("several panels, padding only before")
    x[1, 2, 3, 0] = np.nan
    y, _, dw, _ = results(step, x, dy)
    # Window rows p - 2 .. p of the image: the pixel is in those of p = 2, 3, 4 and q = 3, 4, 5.
    assert np.isnan(y[1, 2:5, 3:6]).all() and np.isnan(y).sum() == 9 * 70
    assert np.isnan(dw[..., 0]).any()
