"""Arrays in two parts, seen as one."""

import numpy as np
import pytest

from layers import Device, Linear
from tinyconv.parallel.split import SplitArray, SplitParameter

CPU = Device("cpu")


def parts():
    return np.arange(6.0).reshape(3, 2), np.arange(6.0, 10.0).reshape(2, 2)


def test_the_parts_are_one_array_end_to_end(device):
    first, second = parts()
    array = SplitArray([(device, device.array(first)), (CPU, second)])
    assert (array.shape, array.size, array.ndim, array.dtype) == ((5, 2), 10, 2, np.float64)
    np.testing.assert_array_equal(array.get(), np.arange(10.0).reshape(5, 2))
    np.testing.assert_array_equal(np.asarray(array, np.float32), array.get())
    assert np.isfinite(array).all()


def test_assignment_reaches_both_parts(device):
    first, second = (device.array(part) for part in parts())
    array = SplitArray([(device, first), (device, second)])
    array[...] = np.arange(10.0)[::-1].reshape(5, 2)
    np.testing.assert_array_equal(device.to_host(first)[0], [9, 8])
    np.testing.assert_array_equal(device.to_host(second)[1], [1, 0])
    assert array.any()
    array[...] = 0
    assert not array.any()
    second[1, 1] = 3
    assert array.any()


def test_an_assignment_that_does_not_fit_changes_nothing():
    array = SplitArray([(CPU, each) for each in parts()])
    with pytest.raises(ValueError, match=r"\(2, 5\) do not fit an array of \(5, 2\)"):
        array[...] = np.zeros((2, 5))
    with pytest.raises(TypeError, match="assign to the whole"):
        array[0] = 1
    np.testing.assert_array_equal(array.get(), np.arange(10.0).reshape(5, 2))


def test_a_parameter_renames_and_shows_its_parts():
    layers = Linear(4, 3), Linear(4, 2)
    parameter = SplitParameter([layer.weight for layer in layers])
    parameter.name = "fc.weight"
    assert [layer.weight.name for layer in layers] == ["fc.weight"] * 2
    assert repr(parameter) == "SplitParameter('fc.weight', (5, 4), float32)"
    layers[1].weight.grad[...] = 2
    assert parameter.grad.get().sum() == 2 * 4 * 2 and not parameter.value.any()
    assert (parameter.lr_multiplier, parameter.decay_multiplier) == (1, 1)
