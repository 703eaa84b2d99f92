"""Convolution by im2col on the host: images a few at a time, threads, the ReLU in the same step."""

import numpy as np
import oracles
import pytest
from layer_cases import CONV
from tiers import computing

from layers import Conv2D, Device, ReLU
from layers.fast.host import im2col as host
from layers.fast.host import threads

CASE = (3, 6, 7, 4), 6, 3, 2, (0, 2), 2


def make(case, dtype=np.float64):
    (_, _, _, channels), filters, size, stride, padding, groups = case
    rng = np.random.default_rng(11)
    conv = Conv2D(channels, filters, size, stride, padding, groups).to("cpu", dtype)
    for parameter in conv.parameters():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    x = rng.standard_normal(case[0]).astype(dtype)
    dy = rng.standard_normal((len(x), *conv.output_shape(x.shape[1:]))).astype(dtype)
    return conv, x, dy


def formula(conv, x, dy):
    geometry = conv.stride, conv.before, conv.after, conv.groups
    return oracles.conv(x, conv.weight.value, conv.bias.value, lambda shape: dy, *geometry)


@pytest.mark.parametrize("lines_at_once", [1, 2, 3, 6])
@pytest.mark.parametrize("splits", [False, True])
def test_a_few_lines_of_outputs_may_be_taken_at_a_time(lines_at_once, splits, monkeypatch):
    # 3 images of 3 lines: a part of an image with a rest, one image, two of three. In one thread,
    # and in as many as there are.
    rows, columns, per_filter = 3, 4, 3 * 3 * 2
    limit = lines_at_once * columns * per_filter * 8
    monkeypatch.setattr(host, "COLUMN_BYTES", limit)
    monkeypatch.setattr(threads, "SPLITS", splits)
    found = host.blocks(CASE[0], (3, rows, columns, 6), (6, 3, 3, 2), 8)
    assert found == (max(1, lines_at_once // rows), lines_at_once)
    conv, x, dy = make(CASE)
    mine = *oracles.run(computing(conv, "fast"), x, dy), *oracles.gradients(conv)
    for each, right in zip(mine, formula(conv, x, dy), strict=True):
        oracles.assert_close(each, right, np.float64)


def test_a_line_whose_columns_exceed_the_limit_is_taken_whole(monkeypatch):
    monkeypatch.setattr(host, "COLUMN_BYTES", 1)
    assert host.blocks((3, 6, 7, 4), (3, 3, 4, 6), (6, 3, 3, 2), 8) == (1, 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("title", CONV)
def test_the_relu_of_the_step_changes_no_bit(title, dtype):
    """Im2col with the ReLU in its step gives the bits of im2col and then the ReLU."""
    conv, x, dy = make(CONV[title], dtype)
    apart = computing(conv, "fast")
    relu = ReLU().to("cpu", dtype)
    y = relu.forward(apart.forward(x)).copy()
    dx = apart.backward(relu.backward(dy)).copy()
    wanted = [y, dx, *oracles.gradients(conv)]
    together, kept = computing([conv, relu], "fast"), dy.copy()
    assert type(together) is host.Im2colConv and together.layers == [conv, relu]
    found = [*oracles.run(together, x, dy), *oracles.gradients(conv)]
    for mine, right in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, right)
    assert together.forward(x) is conv.y is relu.y
    together.backward(dy)
    np.testing.assert_array_equal(dy, kept)  # it is the caller's


def test_not_a_number_passes_the_relu():
    conv, x, dy = make(CONV["plain"])
    conv.bias.value[1] = 100  # the ReLU of filter 1 is on
    x[1, 2, 3, 0] = np.nan
    dy[0, 1, 1, 1] = np.nan
    y, dx = oracles.run(computing([conv, ReLU().to("cpu", np.float64)], "fast"), x, dy)
    assert np.isnan(y[1]).any() and not np.isnan(y[0]).any()
    assert np.isnan(dx[0]).any() and np.isnan(oracles.gradients(conv)[0]).any()


def test_any_number_of_threads_gives_the_same_but_for_roundings(monkeypatch):
    results = []
    for count in (1, 2, 3, 8, 3):
        monkeypatch.setattr(threads, "SPLITS", True)
        monkeypatch.setattr(threads, "get_num_threads", lambda count=count: count)
        conv, x, dy = make(((5, 7, 6, 4), 6, 3, 2, (0, 2), 2))
        step = computing(conv, "fast")
        results.append([*oracles.run(step, x, dy), *oracles.gradients(conv)])
    for others in results[1:]:
        for mine, right in zip(others, results[0], strict=True):
            oracles.assert_close(mine, right, np.float64)
    for mine, again in zip(results[2], results[4], strict=True):
        np.testing.assert_array_equal(mine, again)


def test_the_columns_are_the_windows():
    rng = np.random.default_rng(1)
    padded = rng.standard_normal((2, 7, 8, 3))
    columns = np.full((4, 2, 2 * 2 * 3), np.nan)
    host.im2col(padded, columns, 2, 2, 3, 1)
    for line, q in np.ndindex(4, 2):
        n, p = divmod(line + 1, 3)
        window = padded[n, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2]
        np.testing.assert_array_equal(columns[line, q], window.reshape(-1))


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_col2im_is_the_transpose_of_im2col(size, stride, at_once):
    """Σ im2col(a) · b = Σ a · col2im(b), for every a and b, a few lines at a time."""
    rng = np.random.default_rng(2)
    rows, width = 2, 3
    sides = (rows - 1) * stride + size, (width - 1) * stride + size
    a, back = rng.standard_normal((2, *sides, 4)), np.zeros((2, *sides, 4))
    columns = np.empty((2 * rows, width, size * size * 4))
    b = rng.standard_normal(columns.shape)
    for first in range(0, 2 * rows, at_once):
        host.im2col(a, columns[first : first + at_once], size, stride, rows, first)
        host.col2im(b[first : first + at_once], back, size, stride, rows, first)
    # A few hundred products in float64.
    assert np.sum(columns * b) == pytest.approx(np.sum(a * back), rel=1e-12)


def test_complaints_are_the_layers():
    conv, _, _ = make(CONV["plain"])
    relu = ReLU().to("cpu", np.float64)
    conv.name, relu.name = "conv1", "relu1"
    step, host_device = computing([conv, relu], "fast"), Device("cpu")
    assert step.name == "conv1+relu1"
    assert step.notes() == {"conv1": "(im2col, BLAS)", "relu1": "(in conv1)"}
    with pytest.raises(RuntimeError, match=r"conv1\+relu1: backward.. needs a forward"):
        step.backward(host_device.zeros((2, 4, 5, 4), np.float64))
    with pytest.raises(ValueError, match=r"conv1: an image of shape \(6, 7, 4\)"):
        step.forward(host_device.zeros((2, 6, 7, 4), np.float64))
    step.forward(host_device.zeros((2, 6, 7, 5), np.float64))
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4, 5, 3\)"):
        step.backward(host_device.zeros((2, 4, 5, 3), np.float64))
