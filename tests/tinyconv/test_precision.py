"""Whole nets in tf32 and bf16: kernels against the host's emulation, and who reads it."""

import numpy as np
import pytest

from layers import (
    Conv2D,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
)
from layers.fast.bfloat16 import round_bf16
from layers.fast.conv.steps import TensorConv
from layers.fast.conversions import RoundToBFloat16
from tinyconv import SGD, Sequential, evaluate
from tinyconv.data.augment import Augment
from tinyconv.data.photos import PhotoSet
from tinyconv.data.random_arrays import normal
from tinyconv.evaluate import log_probabilities
from tinyconv.initialize import initialize
from tinyconv.run.diagnose import where_not_finite
from tinyconv.run.training import step_for

SHAPE = (6, 7, 3)
LABELS = np.array([2, 0])


def small_net(device, precision):
    """Two convolutions in a row, which hand on a masked gradient, and one of each other step."""
    net = Sequential(
        {
            "conv1": Conv2D(3, 8, 2),
            "relu1": ReLU(),
            "conv2": Conv2D(8, 6, 2, groups=2),
            "relu2": ReLU(),
            "norm2": LocalResponseNorm(3, alpha=0.5),
            "pool2": MaxPool2D(3, 2),
            "flatten": Flatten(),
            "fc3": Linear(12, 7),
            "relu3": ReLU(),
            "drop3": Dropout(0.5, mode="inverted"),
            "fc4": Linear(7, 4),
        },
        SHAPE,
    )
    return initialize(net, "robust", seed=3).to(device, "float32", precision)


def batch(seed):
    return normal((2, *SHAPE), 1.0, seed, 0).astype(np.float32)


def is_bfloat16(array):
    """Whether float32 numbers are bfloat16."""
    return np.array_equal(array, round_bf16(array, np.empty_like(array)), equal_nan=True)


def train(net, steps, graph=True):
    """Losses and weights of a few training steps, and whether the last one was replayed."""
    net.layers[0].input_gradient = False
    step = step_for(net, SGD(net.parameters(), lr=0.1), graph)
    losses = []
    for number in range(steps):
        loss, _, _ = step.forward_backward(net.device.array(batch(number)), LABELS, number)
        step.optimizer.step(loss)
        losses.append(step.loss.value())
    return (
        losses,
        net.device.to_host(step.optimizer.values).copy(),
        getattr(step, "replayed", False),
    )


@pytest.fixture(scope="module")
def emulated():
    """What the host gives for two steps in each precision."""
    return {name: train(small_net("cpu", name), 2) for name in ("fp32", "tf32", "bf16")}


# --- a GPU and its emulation


@pytest.mark.full
@pytest.mark.parametrize(("precision", "error"), [("tf32", 3e-5), ("bf16", 2e-3)])
def test_training_steps_are_those_of_the_emulation(precision, error, emulated, cuda_device):
    losses, weights, _ = train(small_net(cuda_device, precision), 2)
    right_losses, right, _ = emulated[precision]
    # Sums in another order: a bfloat16 in the middle of two goes the other way now and then. In
    # tf32 a kernel adds up dL/db of what is rounded for the products, the emulation before that.
    assert losses == pytest.approx(right_losses, rel=error)
    size = np.abs(right).max()
    np.testing.assert_allclose(weights, right, rtol=0, atol=error * size)
    # That says something only if the precisions are further apart.
    assert np.abs(weights - emulated["fp32"][1]).max() > 3 * np.abs(weights - right).max()


@pytest.mark.full
def test_a_replayed_step_gives_the_bits_of_a_plain_one(cuda_device):
    found = []
    for graph in (True, False):
        layers = [Conv2D(3, 5, 4), ReLU(), MaxPool2D(3, 1), Flatten(), Linear(10, 4)]
        net = initialize(Sequential(layers, SHAPE), "robust", 2).to(cuda_device, precision="bf16")
        found.append(train(net, 3, graph))
    recorded, plain = found
    assert recorded[2] and not plain[2]
    assert recorded[0] == plain[0] and len(set(plain[0])) == 3
    np.testing.assert_array_equal(recorded[1], plain[1])


@pytest.mark.full
def test_a_gradient_masked_on_its_way_is_that_masked_afterwards(cuda_device):
    found = []
    for pairs in (True, False):
        net = small_net(cuda_device, "bf16")
        first, second = net.steps[1:3]  # behind the conversion of x
        assert isinstance(first, TensorConv) and first.dy_is_masked and second.masks_input
        assert not first.masks_input and not second.dy_is_masked
        first.dy_is_masked = second.masks_input = pairs
        y = net.forward(cuda_device.array(batch(0)))
        dx = net.backward(cuda_device.array(np.ones(y.shape, np.float32)))
        found.append([cuda_device.to_host(dx).copy()])
        found[-1] += [cuda_device.to_host(p.grad).copy() for p in net.parameters()]
    for masked, afterwards in zip(*found, strict=True):
        np.testing.assert_array_equal(masked, afterwards)


def test_pairs_are_masked_by_tensor_cores_alone(device):
    for precision in ("fp32", "tf32"):
        steps = small_net(device, precision).steps
        masks = any(getattr(step, "masks_input", False) for step in steps)
        assert masks == (device.is_cuda and precision == "tf32")


# --- what lies between the steps


def test_the_host_keeps_bfloat16_between_steps(monkeypatch):
    net = small_net("cpu", "bf16")
    seen = []
    steps = [step for step in net.steps if not isinstance(step, RoundToBFloat16)]
    for step in steps:
        monkeypatch.setattr(step, "forward", noting(step.forward, seen))
        monkeypatch.setattr(step, "backward", noting(step.backward, seen))
    x = batch(0)
    y = net.forward(x)
    dy = normal(y.shape, 1.0, 1, 1).astype(np.float32)
    dx = net.backward(dy)
    assert len(seen) == 2 * len(steps)
    assert all(map(is_bfloat16, [*seen, y, dx]))
    # The caller's own arrays are not rounded.
    np.testing.assert_array_equal(x, batch(0))
    np.testing.assert_array_equal(dy, normal(dy.shape, 1.0, 1, 1))
    assert not is_bfloat16(x) and not is_bfloat16(dy)
    assert not any(is_bfloat16(parameter.value) for parameter in net.parameters()[::2])
    assert not is_bfloat16(net["conv1"].weight.grad)


def noting(function, seen):
    def noted(array, *rest):
        seen.append(array.copy())
        return function(array, *rest)

    return noted


def dense_net(device, precision="bf16", classes=4):
    """Without a convolution: quick in the simulator. Takes (4, 4, 3)."""
    net = Sequential({"flatten": Flatten(), "fc1": Linear(48, 5), "relu1": ReLU(),
                      "fc2": Linear(5, classes)}, (4, 4, 3))  # fmt: skip
    return initialize(net, "robust", seed=1).to(device, "float32", precision)


def test_a_net_in_bf16_takes_and_gives_float32(device):
    net = dense_net(device)
    x = normal((2, 4, 4, 3), 1.0, 2, 2).astype(np.float32)
    y = net.forward(device.array(x))
    assert y.dtype == np.float32 and is_bfloat16(device.to_host(y))
    dx = net.backward(device.array(normal(y.shape, 1.0, 2, 3), np.float32))
    assert dx.dtype == np.float32 and is_bfloat16(device.to_host(dx))
    with pytest.raises(ValueError, match="flatten: x is float64"):
        net.forward(device.array(x, np.float64))
    with pytest.raises(ValueError, match="of shape .*fc1|fc1.*: an input of shape"):
        net.forward(device.array(x[:, :2]))


def test_the_table_says_so_and_the_networks_does_not(device):
    net = dense_net(device)
    last = str(net).splitlines()[-1]
    assert last == "precision bf16" + ("" if device.is_cuda else ", emulated on the host")
    assert net.table(computed=False) == dense_net(device, "fp32").table(computed=False)
    assert "precision" not in str(net.to(device, precision="fp32"))


# --- who reads its outputs


def photos_of_4_classes(count=10):
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), np.uint8)
    return PhotoSet(images, np.arange(count) % 4, tuple("abcd"))


def test_evaluation_reads_bfloat16_logits(cuda_device):
    photos = photos_of_4_classes()
    found = []
    for device in (cuda_device, "cpu"):
        net = dense_net(device)
        augment = Augment(photos.mean_image(), 4, 64.0).to(net.device, np.float32)
        views = [evaluate(net, photos, augment, 4, views) for views in ("centre", "ten")]
        found.append((views, log_probabilities(net, augment, photos.images[:3], "centre")))
    (mine, logs), (right, right_logs) = found
    np.testing.assert_allclose(logs, right_logs, rtol=2**-7, atol=2**-7)
    assert np.exp(logs).sum(axis=-1) == pytest.approx(1)
    for one, other in zip(mine, right, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2**-7)
        assert one.top5 == other.top5 == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_found_among_bits(value, device):
    net = dense_net(device)
    x = np.ones((2, 4, 4, 3), np.float32)
    assert "the loss itself" in where_not_finite(net, device.array(x), 3)
    x[0, 1, 2, 0] = value
    assert "the input of the net" in where_not_finite(net, device.array(x), 3)
    x[...] = 1
    net["fc1"].bias.value[...] = 3.4e38  # more than a bfloat16 can be
    assert "fc1+relu1 is the first" in where_not_finite(net, device.array(x), 3)


def test_layers_leave_the_largest_numbers_finite(device):
    """A bfloat16 goes as far as float32, but for what rounds up beyond its last step."""
    net = Sequential([ReLU()]).to(device, precision="bf16")
    x = np.array([[3.3e38, 3.4028e38]], np.float32)
    y = device.to_host(net.forward(device.array(x)))
    assert np.isfinite(y[0, 0]) and np.isinf(y[0, 1])
