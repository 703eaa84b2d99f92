"""Two columns in bf16: the one-device net's roundings at the same places, on host and kernels."""

import numpy as np
import pytest

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
)
from layers.fast.bfloat16 import from_bits, round_bf16, to_bits
from layers.fast.precision import BITS
from tinyconv import SGD, Sequential, initialize
from tinyconv.parallel.collectives import AllGather
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.stage import Both

SHAPE = (12, 14, 3)
LABELS = np.array([1, 0, 2, 1])


def small_net():
    """Every collective: a border, an all-gather of maps and of units, the logits."""
    layers = {
        "conv1": Conv2D(3, 6, 3, stride=2, padding=(0, 1)),
        "relu1": ReLU(),
        "norm1": LocalResponseNorm(5, 2.0, 0.5, 0.75),
        "pool1": MaxPool2D(3, 2),
        "conv2": Conv2D(6, 8, 3, padding=1, groups=2),
        "relu2": ReLU(),
        "conv3": Conv2D(8, 4, 3, padding=1),
        "flatten": Flatten(),
        "fc6": Linear(4 * 2 * 3, 7),
        "relu6": ReLU(),
        "drop6": Dropout(0.5),
        "fc8": Linear(7, 3),
    }
    return initialize(Sequential(layers, SHAPE), "robust", seed=5)


def batch(step):
    return np.random.default_rng(step).normal(size=(4, *SHAPE)).astype(np.float32)


def training(net, both=False, steps=2):
    """The losses of a few steps, and all weights after them, on the host."""
    sgd = ColumnSGD if isinstance(net, Columns) else SGD
    optimizer = sgd(net.parameters(), 0.1)
    loss = net.loss()
    losses = []
    for step in range(steps):
        x = net.device.array(batch(step))
        net.set_step(step)
        losses.append(loss.forward(net.forward(Both((x, x)) if both else x), LABELS))
        net.backward(loss.backward())
        optimizer.step()
    weights = [Device.to_host(p.value).reshape(-1).copy() for p in net.parameters()]
    return losses, np.concatenate(weights)


@pytest.mark.parametrize("both", [False, True])
def test_training_steps_are_those_of_one_device(both):
    """But for roundings: what crosses back is rounded before the columns' gradients are added."""
    nets = (small_net().to("cpu", precision=name) for name in ("bf16", "fp32"))
    (right_losses, right), (_, single) = map(training, nets)
    losses, weights = training(Columns(small_net()).to("cpu", precision="bf16"), both)
    assert losses == pytest.approx(right_losses, rel=1e-3)
    np.testing.assert_allclose(weights, right, rtol=0, atol=1e-3 * np.abs(right).max())
    assert np.abs(weights - single).max() > 5 * np.abs(weights - right).max()


@pytest.mark.full
def test_kernels_round_where_the_host_does(cuda_device):
    found = []
    for device in (cuda_device, Device("cpu")):
        net = Columns(small_net()).to((device, device), precision="bf16")
        found.append(training(net, both=device is cuda_device, steps=1))
    (losses, weights), (right_losses, right) = found
    assert losses == pytest.approx(right_losses, rel=1e-6)
    # A bfloat16 in the middle of two goes the other way now and then.
    np.testing.assert_allclose(weights, right, rtol=0, atol=1e-4 * np.abs(right).max())


def test_what_the_columns_all_gather_is_bfloat16_and_is_added_in_float32(cuda_device):
    rng = np.random.default_rng(3)
    x = [round_bf16(*[rng.normal(size=(2, 5, 3)).astype(np.float32)] * 2) for _ in range(2)]
    dy = [round_bf16(*[rng.normal(size=(2, 5, 6)).astype(np.float32)] * 2) for _ in range(2)]
    net = Columns(small_net()).to((cuda_device, cuda_device), precision="bf16")
    all_gather = AllGather()
    all_gather.to(net.devices, "float32", "bf16")
    y = all_gather.forward(Both(cuda_device.array(to_bits(each)) for each in x))
    dx = all_gather.backward(Both(cuda_device.array(to_bits(each)) for each in dy))
    assert all(array.dtype == BITS for array in (*y, *dx))
    for c in range(2):
        np.testing.assert_array_equal(from_bits(y[c]), np.concatenate(x, axis=-1))
        mine = slice(3 * c, 3 * c + 3)
        total = dy[c][..., mine] + dy[1 - c][..., mine]
        np.testing.assert_array_equal(from_bits(dx[c]), round_bf16(total, total))
