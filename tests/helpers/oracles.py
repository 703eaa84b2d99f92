"""The layers' formulas written out once more, and how the tests run a layer or step and compare.

Plain loops in float64 which follow the formulas in the layers' docstrings letter by letter. Where
a layer gathers (each output asks who contributes), the loops here scatter (each product goes where
it belongs), so that one mistake in index arithmetic cannot be made twice.
"""

import itertools
import math

import numpy as np


def run(layer, x, dy=None, train=True):
    """(y, dx) of one pass of a layer or step on its device, as host copies; no dy, no dx."""
    device = layer.device
    y = device.to_host(layer.forward(device.array(x, layer.dtype), train)).copy()
    if dy is None:
        return y, None
    dx = layer.backward(device.array(dy, layer.dtype))
    return y, None if dx is None else device.to_host(dx).copy()


def gradients(layer):
    """Host copies of the parameter gradients of a layer, or of all layers of a step."""
    layers = getattr(layer, "layers", [layer])
    parameters = [parameter for each in layers for parameter in each.parameters()]
    return [layer.device.to_host(parameter.grad).copy() for parameter in parameters]


def rounding(dtype, terms=100):
    """The error to allow, relative to an array's largest element, for sums of some `terms` terms.

    Two right computations differ by the order of their additions, that is by a few roundings
    (1.2e-7 in float32, 2.2e-16 in float64) for each term; rarely do all of them err one way.
    """
    return float(np.finfo(dtype).eps) * terms


def assert_close(actual, expected, dtype, terms=100):
    """`actual` is `expected` but for roundings of `dtype` in sums of `terms` terms.

    NaN and infinities must be where they are in `expected`.
    """
    error = rounding(dtype, terms)
    size = float(np.max(np.abs(expected), initial=0, where=np.isfinite(expected)))
    np.testing.assert_allclose(actual, expected, rtol=error, atol=error * size)


def conv(x, w, b, dy, stride, before, after, groups):
    """y, dx, dw, db of a convolution; dy: a function of y's shape."""
    images, height, width, channels = x.shape
    filters, size, _, mine = w.shape
    padded = np.zeros((images, height + before + after, width + before + after, channels))
    padded[:, before : before + height, before : before + width] = x
    rows = (padded.shape[1] - size) // stride + 1
    columns = (padded.shape[2] - size) // stride + 1
    y = np.zeros((images, rows, columns, filters))
    dy = dy(y.shape)
    d_padded, dw, db = np.zeros_like(padded), np.zeros(w.shape), np.zeros(filters)
    for n, p, q, k in np.ndindex(y.shape):
        first = k // (filters // groups) * mine
        part = slice(first, first + mine)
        y[n, p, q, k] = b[k]
        db[k] += dy[n, p, q, k]
        for r in range(size):
            for s in range(size):
                place = n, p * stride + r, q * stride + s, part
                y[n, p, q, k] += np.sum(padded[place] * w[k, r, s])
                dw[k, r, s] += dy[n, p, q, k] * padded[place]
                d_padded[place] += dy[n, p, q, k] * w[k, r, s]
    dx = d_padded[:, before : before + height, before : before + width]
    return y, dx, dw, db


def windows_along(side, size, stride, ceil):
    """Where pooling windows begin and end along a side; with `ceil` also those that hang over."""
    found = [(at, min(at + size, side)) for at in range(0, side, stride)]
    # Of windows that reach the edge only the first adds something.
    whole = [window for window in found if window[0] + size <= side]
    return found[: len(whole) + 1] if ceil and whole[-1][1] < side else whole


def avg_pool(x, dy, size, stride, ceil):
    """y, dx of average pooling over what is inside the image; dy: a function of y's shape."""
    rows, columns = (windows_along(side, size, stride, ceil) for side in x.shape[1:3])
    y = np.zeros((len(x), len(rows), len(columns), x.shape[3]))
    dy, dx = dy(y.shape), np.zeros(x.shape)
    for (p, (top, bottom)), (q, (left, right)) in itertools.product(
        enumerate(rows), enumerate(columns)
    ):
        count = (bottom - top) * (right - left)
        y[:, p, q] = x[:, top:bottom, left:right].sum(axis=(1, 2), dtype=np.float64) / count
        dx[:, top:bottom, left:right] += dy[:, p, q][:, None, None] / count
    return y, dx


def max_pool(x, dy, size, stride, ceil=False):
    """y, dx of max pooling; dy: a function of y's shape. The first of equals wins."""
    images, height, width, channels = x.shape
    rows, columns = (windows_along(side, size, stride, ceil) for side in (height, width))
    y = np.zeros((images, len(rows), len(columns), channels))
    dy, dx = dy(y.shape), np.zeros(x.shape)
    for n, p, q, c in np.ndindex(y.shape):
        window = [(float(x[n, h, w, c]), h, w) for h in range(*rows[p]) for w in range(*columns[q])]
        best = max(value for value, _, _ in window)
        h, w = next((h, w) for value, h, w in window if value == best)
        y[n, p, q, c] = best
        dx[n, h, w, c] += dy[n, p, q, c]
    return y, dx


def lrn(x, dy, size, k, alpha, beta, groups):
    """y, dx of local response normalization, by the Jacobian: dx = Σ_i dy[i] · ∂y[i]/∂x[j]."""
    channels = x.shape[-1]
    width = channels // groups
    flat, flat_dy = x.reshape(-1, channels), dy.reshape(-1, channels)
    y, dx = np.zeros(flat.shape), np.zeros(flat.shape)
    for row, i in np.ndindex(flat.shape):
        window = [
            j for j in range(i - size // 2, i + size // 2 + 1)
            if 0 <= j < channels and j // width == i // width
        ]  # fmt: skip
        s = k + alpha * sum(flat[row, j] ** 2 for j in window)
        y[row, i] = flat[row, i] / s**beta
        dx[row, i] += flat_dy[row, i] / s**beta
        for j in window:
            slope = -beta * flat[row, i] * s ** (-beta - 1) * 2 * alpha * flat[row, j]
            dx[row, j] += flat_dy[row, i] * slope
    return y.reshape(x.shape), dx.reshape(x.shape)


def softmax_cross_entropy(logits, labels):
    """The mean loss, the probabilities and dL/dlogits, one image after the other."""
    images, classes = logits.shape
    probabilities, dlogits, losses = np.zeros(logits.shape), np.zeros(logits.shape), []
    for n in range(images):
        exponentials = [math.exp(z - max(logits[n])) for z in logits[n]]
        for c in range(classes):
            probabilities[n, c] = exponentials[c] / math.fsum(exponentials)
            dlogits[n, c] = (probabilities[n, c] - (1 if c == labels[n] else 0)) / images
        losses.append(-math.log(probabilities[n, labels[n]]))
    return math.fsum(losses) / images, probabilities, dlogits
