"""The paper's update rule, on one flat buffer."""

import numpy as np
import pytest

from layers import Linear
from layers.fast.streams import Pending
from layers.layer import Parameter
from tinyconv import SGD
from tinyconv.sgd import BLOCK


def parameter(name, values, device, dtype="float64"):
    p = Parameter(name, np.shape(values))
    p.value[...] = values
    p.to(device, dtype)
    return p


def random_parameters(device, dtype="float64"):
    """Sizes around BLOCK, with different multipliers."""
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (BLOCK,), (BLOCK + 1,), (1,), (2, 3, 4, 5)]
    parameters = [
        parameter(str(i), rng.standard_normal(shape).astype(np.float32), device, dtype)
        for i, shape in enumerate(shapes)
    ]
    parameters[1].lr_multiplier, parameters[1].decay_multiplier = 2.0, 0.0
    parameters[3].lr_multiplier, parameters[3].decay_multiplier = 0.5, 3.0
    return parameters


def test_the_rule_is_the_papers_over_steps_and_a_change_of_rate(device):
    parameters = random_parameters(device)
    w = [device.to_host(p.value).copy() for p in parameters]
    v = [np.zeros_like(each) for each in w]
    rng = np.random.default_rng(1)
    optimizer = SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
    for lr in (0.1, 0.1, 0.01):
        optimizer.lr = lr
        for i, p in enumerate(parameters):
            g = rng.standard_normal(w[i].shape)
            p.grad[...] = device.array(g)
            rate = lr * p.lr_multiplier
            v[i] = 0.9 * v[i] - 0.01 * p.decay_multiplier * rate * w[i] - rate * g
            w[i] = w[i] + v[i]
        optimizer.step()
        for p, expected in zip(parameters, w, strict=True):
            # The same sum in another order of products: a few roundings.
            np.testing.assert_allclose(device.to_host(p.value), expected, rtol=1e-12, atol=1e-14)


def test_float32_is_the_same_on_host_and_device_to_rounding(cuda_device):
    results = []
    for device in ("cpu", cuda_device):
        parameters = random_parameters(device, "float32")
        optimizer = SGD(parameters, lr=0.1)
        for p in parameters:
            p.grad[...] = 1.5
        optimizer.step()
        optimizer.step()
        results.append(optimizer.device.to_host(optimizer.values))
    # A GPU contracts a product and a sum into one rounding: at most an ulp or two each step.
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-7)


def test_parameters_become_views_of_the_flat_buffer_and_keep_their_values():
    layer = Linear(4, 3)
    layer.weight.value[...] = np.arange(12).reshape(3, 4)
    layer.bias.grad[...] = 7
    optimizer = SGD(layer.parameters())
    np.testing.assert_array_equal(layer.weight.value, np.arange(12).reshape(3, 4))
    assert (layer.bias.grad == 7).all()
    assert np.shares_memory(layer.weight.value, optimizer.values)
    assert np.shares_memory(layer.bias.grad, optimizer.grads)
    assert optimizer.values.size == 2 * BLOCK


def test_the_gaps_between_parameters_stay_zero():
    parameters = random_parameters("cpu")
    optimizer = SGD(parameters, lr=0.5)
    for p in parameters:
        p.grad[...] = 1
    for _ in range(3):
        optimizer.step()
    used = sum(p.value.size for p in parameters)
    assert np.count_nonzero(optimizer.values) == used < optimizer.values.size


def test_frozen_parameters_stay_and_the_others_go_on(device):
    parameters = random_parameters(device.name)
    optimizer = SGD(parameters, lr=0.5)
    for p in parameters:
        p.grad[...] = 1
    optimizer.step()
    optimizer.freeze(parameters[1:2])
    before = [device.to_host(p.value).copy() for p in parameters]
    optimizer.step()
    after = [device.to_host(p.value) for p in parameters]
    same = [np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
    assert same == [place == 1 for place in range(len(parameters))]
    assert not optimizer.velocity(parameters[1]).any() and optimizer.velocity(parameters[0]).all()


def test_velocity_is_the_stretch_of_a_parameter_in_its_shape():
    parameters = random_parameters("cpu")
    optimizer = SGD(parameters)
    for place, p in enumerate(parameters, start=1):
        optimizer.velocity(p)[...] = place
        assert optimizer.velocity(p).shape == p.value.shape
    counts = [np.count_nonzero(optimizer.velocities == i + 1) for i in range(len(parameters))]
    assert counts == [p.value.size for p in parameters]


def test_a_net_that_moved_is_noticed():
    layer = Linear(4, 3)
    optimizer = SGD(layer.parameters())
    layer.to("cpu", "float64")
    with pytest.raises(RuntimeError, match="weight moved after SGD was made"):
        optimizer.step()


@pytest.mark.parametrize(
    "arguments",
    [{"lr": -1}, {"lr": np.nan}, {"lr": np.inf}, {"momentum": 1.0}, {"weight_decay": np.nan}],
)
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="SGD: needs"):
        SGD(Linear(2, 2).parameters(), **arguments)
    with pytest.raises(ValueError, match="no parameters"):
        SGD([])


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(loss, device):
    (p,) = parameters = [parameter("p", [1.0, 2.0], device)]
    optimizer = SGD(parameters, lr=0.5, momentum=0.5, weight_decay=0.1)
    p.grad[...] = np.nan
    optimizer.step(loss)
    np.testing.assert_array_equal(device.to_host(p.value), [1, 2])
    np.testing.assert_array_equal(device.to_host(optimizer.velocities), 0)


def test_a_loss_still_on_the_device_is_judged_there(cuda_device):
    (p,) = parameters = [parameter("p", [1.0, 2.0], cuda_device)]
    optimizer = SGD(parameters, lr=0.5, momentum=0.0, weight_decay=0.0)
    loss = Pending(np.zeros(1), 0, None, cuda_device.zeros((1,), np.int32))
    for skip, wanted in ((0, [0.5, 1.5]), (1, [0.5, 1.5]), (0, [0, 1])):
        cuda_device.write(loss.skip, [skip])
        p.grad[...] = np.nan if skip else 1.0
        optimizer.step(loss)
        np.testing.assert_array_equal(cuda_device.to_host(p.value), wanted)


def test_the_rate_may_change_between_steps(device):
    (p,) = parameters = [parameter("p", [1.0, 2.0], device)]
    optimizer = SGD(parameters, lr=0.5, momentum=0.0, weight_decay=0.0)
    p.grad[...] = 1.0
    optimizer.step()
    optimizer.lr = 0.25
    optimizer.step(1.5)
    np.testing.assert_array_equal(device.to_host(p.value), [0.25, 1.25])
