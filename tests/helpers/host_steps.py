"""A convolution on the host with its input and gradient, its results, and those of the oracle."""

import numpy as np
import oracles

from layers import Conv2D, Device, ReLU


def host_step(kind, case, dtype=np.float64, relu=True):
    """(step, x, dy) of a convolution, and a ReLU.

    kind: the step's class; case: (image (N, H, W, C), filters, size, stride, padding, groups).
    """
    shape, *settings = case
    rng = np.random.default_rng(11)
    conv = Conv2D(shape[3], *settings).to("cpu", dtype)
    for parameter in conv.parameters():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal((len(x), *conv.output_shape(x.shape[1:]))).astype(dtype)
    layers = [conv, ReLU().to("cpu", dtype)] if relu else [conv]
    return kind(layers, Device("cpu"), dtype), x, dy


def results(step, x, dy):
    """y, dx, dw and db."""
    return [each.copy() for each in (*oracles.run(step, x, dy), *oracles.gradients(step.layers[0]))]


def formula(step, x, dy):
    """The same by the oracle; with a ReLU dy counts where y is positive."""
    conv = step.layers[0]
    geometry = conv.stride, conv.before, conv.after, conv.groups
    operands = x, conv.weight.value, conv.bias.value
    if len(step.layers) == 1:
        return oracles.conv(*operands, lambda shape: dy, *geometry)
    z = oracles.conv(*operands, lambda shape: dy, *geometry)[0]
    y, *rest = oracles.conv(*operands, lambda shape: dy * (z > 0), *geometry)
    return np.maximum(y, 0), *rest
