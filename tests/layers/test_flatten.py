"""Flatten: the same memory in another shape, channels fastest."""

import numpy as np
import oracles
import pytest

from layers import Flatten


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(2, 6, 7, 5), (3, 4), (2, 3, 4)])
def test_rows_are_images_with_channels_fastest_and_backward_undoes_it(shape, dtype, device):
    x = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    layer = Flatten().to(device, dtype)
    dy = -x.reshape(shape[0], -1)
    y, dx = oracles.run(layer, x, dy)
    assert layer.output_shape(shape[1:]) == y.shape[1:]
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, -dy)
    np.testing.assert_array_equal(dx, -x)
    if len(shape) == 4:
        _, _, width, channels = shape
        assert y[1, (3 * width + 2) * channels + 4] == x[1, 3, 2, 4]


def test_no_number_moves(device):
    layer = Flatten().to(device, np.float64)
    x = device.zeros((2, 3, 4, 5), np.float64)
    y = layer.forward(x)
    dx = layer.backward(y)
    y[1, 2] = 7
    assert float(x[1, 0, 0, 2]) == 7
    assert float(dx[1, 0, 0, 2]) == 7
