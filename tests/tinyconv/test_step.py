"""The training step: recorded and replayed it is the plain one, bit for bit."""

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
from layers.fast.graph import Recording
from tinyconv import SGD, Sequential
from tinyconv.data.random_arrays import normal, words
from tinyconv.initialize import initialize
from tinyconv.step import TrainingStep

SHAPE = (7, 6, 2)


def make(device, graph=True, kernels="fast", dtype="float64"):
    """A tiny net with one of each step, in training."""
    net = Sequential(
        {
            "conv1": Conv2D(2, 3, 3),
            "relu1": ReLU(),
            "norm1": LocalResponseNorm(3, alpha=0.5),
            "pool1": MaxPool2D(3, 2),
            "flatten": Flatten(),
            "fc2": Linear(6, 5),
            "relu2": ReLU(),
            "drop2": Dropout(0.3),
            "fc3": Linear(5, 4),
        },
        SHAPE,
    )
    initialize(net, "robust", seed=11).to(device, dtype, kernels=kernels)
    net.layers[0].input_gradient = False
    return TrainingStep(net, net.loss(), SGD(net.parameters(), lr=0.1), graph)


def seeded_batch(images, seed):
    """Input (images, 7, 6, 2) in float64, and labels."""
    x = normal((images, *SHAPE), 1.0, seed, 0).astype(np.float64)
    return x, (words(seed, 1, 0, np.arange(images)) % 4).astype(np.int64)


def after(step, batches, rates=()):
    """Losses, and the weights' bits at the end, after `step.run` on each batch in turn."""
    losses = []
    for number, (x, labels) in enumerate(batches):
        if number < len(rates):
            step.optimizer.lr = rates[number]
        step.run(step.net.device.array(x), labels, number)
        losses.append(step.loss.value())
    return losses, step.net.device.to_host(step.optimizer.values).copy()


def batches(count, images=3):
    return [seeded_batch(images, seed) for seed in range(count)]


def test_recorded_steps_are_the_plain_ones_bit_for_bit(cuda_device):
    rates = 0.1, 0.1, 0.03, 0.3, 0.01
    recorded, plain = make(cuda_device), make(cuda_device, graph=False)
    mine, right = (after(step, batches(5), rates) for step in (recorded, plain))
    assert recorded.replayed and not plain.replayed
    assert mine[0] == right[0]
    np.testing.assert_array_equal(mine[1], right[1])
    assert len(set(mine[0])) == 5


def test_float32_too_and_the_recording_is_what_runs(cuda_device, monkeypatch):
    recorded, plain = make(cuda_device, dtype="float32"), make(cuda_device, False, dtype="float32")
    data = [(x.astype(np.float32), labels) for x, labels in batches(4)]
    after(recorded, data[:3])
    # From here on no step is called any more.
    for layer in recorded.net.steps:
        monkeypatch.setattr(layer, "forward", None)
        monkeypatch.setattr(layer, "backward", None)
    right = after(plain, data)
    recorded.run(cuda_device.array(data[3][0]), data[3][1], 3)
    assert recorded.replayed and recorded.loss.value() == right[0][3]
    np.testing.assert_array_equal(cuda_device.to_host(recorded.optimizer.values), right[1])


def test_each_batch_shape_has_its_recording(cuda_device):
    data = [seeded_batch(images, seed) for seed, images in enumerate([3, 2, 3, 2, 3, 2, 3])]
    recorded, plain = make(cuda_device), make(cuda_device, graph=False)
    replayed = []
    run = recorded.run
    recorded.run = lambda *arguments: (run(*arguments), replayed.append(recorded.replayed))
    mine, right = after(recorded, data), after(plain, data)
    assert replayed == [False, False, True, True, True, True, True]
    assert mine[0] == right[0]
    np.testing.assert_array_equal(mine[1], right[1])
    assert recorded.loss.probabilities.shape == (3, 4)


def test_buffers_that_grew_are_noticed(cuda_device):
    data = [seeded_batch(images, seed) for seed, images in enumerate([2, 2, 3, 2, 2, 2])]
    recorded, plain = make(cuda_device), make(cuda_device, graph=False)
    replayed, losses = [], []
    for number, (x, labels) in enumerate(data):
        for step in (recorded, plain):
            step.run(cuda_device.array(x), labels, number)
        replayed.append(recorded.replayed)
        losses.append((recorded.loss.value(), plain.loss.value()))
    assert replayed == [False, True, False, False, True, True]
    assert all(mine == right for mine, right in losses)


def test_a_look_at_other_pictures_in_between_changes_nothing(cuda_device):
    recorded, plain = make(cuda_device), make(cuda_device, graph=False)
    for number, (x, labels) in enumerate(batches(5)):
        for step in (recorded, plain):
            step.run(cuda_device.array(x), labels, number)
            if number % 2:
                other, of = seeded_batch(2, 50)
                step.loss.forward(step.net.forward(cuda_device.array(other), train=False), of)
    assert recorded.replayed
    assert recorded.loss.value() == plain.loss.value()
    np.testing.assert_array_equal(recorded.optimizer.values, plain.optimizer.values)


def test_one_input_array_filled_again_is_not_copied_and_others_are_left_alone(cuda_device):
    recorded, plain = make(cuda_device), make(cuda_device, graph=False)
    buffer = cuda_device.empty((3, *SHAPE), np.float64)
    for number, (x, labels) in enumerate(batches(3)):
        buffer[...] = cuda_device.array(x)
        recorded.run(buffer, labels, number)
        plain.run(cuda_device.array(x), labels, number)
    assert not recorded._recorded[buffer.shape].copies
    last = buffer.copy()
    x, labels = seeded_batch(3, 77)
    recorded.run(cuda_device.array(x), labels, 3)  # a stranger
    plain.run(cuda_device.array(x), labels, 3)
    assert recorded.replayed and recorded._recorded[buffer.shape].copies
    np.testing.assert_array_equal(buffer, last)
    recorded.run(buffer, labels, 4)
    plain.run(buffer, labels, 4)
    assert recorded.loss.value() == plain.loss.value()
    np.testing.assert_array_equal(recorded.optimizer.values, plain.optimizer.values)


@pytest.mark.parametrize(
    "change",
    [
        lambda step: setattr(step.net, "_steps", list(step.net.steps)),
        lambda step: setattr(step.net.layers[0], "input_gradient", True),
        lambda step: step.forget(),
    ],
)
def test_a_changed_net_is_recorded_anew(change, cuda_device):
    step = make(cuda_device)
    data = batches(4)
    after(step, data[:2])
    assert step.replayed
    change(step)
    step.run(cuda_device.array(data[2][0]), data[2][1], 2)
    assert not step.replayed
    step.run(cuda_device.array(data[3][0]), data[3][1], 3)
    assert step.replayed


def test_simple_kernels_are_launched_one_by_one(cuda_device):
    step = make(cuda_device, kernels="simple")
    after(step, batches(3))
    assert not step.replayed


def test_on_the_host_steps_are_plain_and_those_of_the_loop_written_out():
    step, other = make("cpu"), make("cpu")
    mine = after(step, batches(3))
    assert not step.replayed
    net, loss, optimizer = other.net, other.loss, other.optimizer
    losses = []
    for number, (x, labels) in enumerate(batches(3)):
        net.set_step(number)
        losses.append(loss.forward(net.forward(x), labels))
        net.backward(loss.backward())
        optimizer.step()
    assert mine[0] == losses
    np.testing.assert_array_equal(mine[1], optimizer.values)


def test_if_recording_is_refused_one_line_says_so_and_training_goes_on(
    cuda_device, monkeypatch, capsys
):
    recorded, plain = make(cuda_device), make(cuda_device, graph=False)

    def refuse(device, work):
        Recording(device, work)  # goes through all of the step, and fails at its end
        raise NotImplementedError("this cannot be captured\nsecond line")

    monkeypatch.setattr("tinyconv.step.Recording", refuse)
    mine, right = after(recorded, batches(3)), after(plain, batches(3))
    assert mine[0] == right[0] and not recorded.replayed
    np.testing.assert_array_equal(mine[1], right[1])
    said = capsys.readouterr().err
    assert said == "no CUDA graph, each kernel is launched by itself: this cannot be captured\n"


@pytest.mark.parametrize("graph", [True, False])
def test_a_batch_that_does_not_fit_is_refused_before_anything_is_learned(graph, cuda_device):
    step = make(cuda_device, graph)
    after(step, batches(3))
    assert step.replayed == graph
    before = step.optimizer.values.copy()
    x, labels = seeded_batch(3, 9)
    for wrong_x, wrong_labels, message in [
        (x.astype(np.float32), labels, "x is float32, the layer computes in float64"),
        (x[:, :, :, :1], labels, r"\(7, 6, 1\) does not fit"),
        (x, labels[:2], r"need integer labels \(3,\)"),
        (x, labels + 4, r"outside 0\.\.3"),
    ]:
        with pytest.raises(ValueError, match=message):
            step.run(cuda_device.array(wrong_x), wrong_labels, 3)
    np.testing.assert_array_equal(step.optimizer.values, before)


def test_a_net_that_moved_is_noticed(cuda_device):
    step = make(cuda_device)
    after(step, batches(3))
    step.net.to(cuda_device)
    with pytest.raises(RuntimeError, match="moved after SGD was made"):
        step.run(cuda_device.array(seeded_batch(3, 3)[0]), seeded_batch(3, 3)[1], 3)
