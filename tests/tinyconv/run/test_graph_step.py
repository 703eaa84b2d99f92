"""The training step: recorded and replayed it is the plain one, bit for bit."""

import numpy as np
import pytest
from marks import long
from small import random_photos

from layers import (
    Conv2D,
    Dropout,
    Flatten,
    Linear,
    LocallyConnected2D,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
)
from layers.fast.graph import Recording
from tinyconv import SGD, Sequential, train
from tinyconv.data.augment import Augment
from tinyconv.data.random_arrays import normal, words
from tinyconv.initialize import initialize
from tinyconv.run.diagnose import origin_of
from tinyconv.run.graph_step import GraphStep
from tinyconv.run.training import step_for
from tinyconv.train import LossError, SingleStep, Training, TrainingData

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
    return step_for(net, SGD(net.parameters(), lr=0.1), graph)


def seeded_batch(images, seed):
    """Input (images, 7, 6, 2) in float64, and labels."""
    x = normal((images, *SHAPE), 1.0, seed, 0).astype(np.float64)
    return x, (words(seed, 1, 0, np.arange(images)) % 4).astype(np.int64)


def batches(count, images=3):
    return [seeded_batch(images, seed) for seed in range(count)]


def learn(step, batch, number):
    """A whole step, as the loop of `Training` makes it: the loss."""
    x, labels = batch
    loss, _, _ = step.forward_backward(step.net.device.array(x), labels, number)
    step.optimizer.step(loss)
    return step.loss.value()


def after(step, batches):
    """Losses, and the weights' bits at the end, after a step on each batch in turn."""
    losses = [learn(step, batch, number) for number, batch in enumerate(batches)]
    return losses, step.net.device.to_host(step.optimizer.values).copy()


def assert_equal_bits(recorded, plain, data, between=lambda step, number: None):
    """Both make these steps: the same losses and weights, bit for bit. Which were replayed.

    between(step, number): what each does before its step.
    """
    replayed = []
    for number, batch in enumerate(data):
        losses = []
        for step in (recorded, plain):
            between(step, number)
            losses.append(learn(step, batch, number))
        assert losses[0] == losses[1] and not plain.replayed
        replayed.append(recorded.replayed)
    np.testing.assert_array_equal(recorded.optimizer.values, plain.optimizer.values)
    return replayed


def pair(device, dtype="float64"):
    return make(device, dtype=dtype), make(device, graph=False, dtype=dtype)


@pytest.mark.parametrize(
    "images, replayed",
    [
        ([3, 3, 3, 3, 3], "nyyyy"),
        long([3, 2, 3, 2, 3, 2, 3], "nnyyyyy"),  # each batch shape has its recording
        long([2, 2, 3, 2, 2, 2], "nynnyy"),  # buffers that grew are noticed
    ],
)
def test_recorded_steps_are_the_plain_ones_bit_for_bit(images, replayed, cuda_device):
    def rate(step, number):
        step.optimizer.lr = (0.1, 0.1, 0.03, 0.3, 0.01, 0.1, 0.1)[number]

    recorded, plain = pair(cuda_device)
    data = [seeded_batch(count, seed) for seed, count in enumerate(images)]
    found = assert_equal_bits(recorded, plain, data, rate)
    assert found == [letter == "y" for letter in replayed]
    assert recorded.loss.probabilities.shape == (images[-1], 4)


def test_float32_too_and_the_recording_is_what_runs(cuda_device, monkeypatch):
    recorded, plain = pair(cuda_device, "float32")
    data = [(x.astype(np.float32), labels) for x, labels in batches(4)]
    assert_equal_bits(recorded, plain, data[:3])
    # From here on no step is called any more.
    for layer in recorded.net.steps:
        monkeypatch.setattr(layer, "forward", None)
        monkeypatch.setattr(layer, "backward", None)
    assert assert_equal_bits(recorded, plain, data[3:]) == [True]


@pytest.mark.full
def test_a_look_at_other_pictures_in_between_changes_nothing(cuda_device):
    def look(step, number):
        if number in (2, 4):
            other, of = seeded_batch(2, 50)
            step.loss.forward(step.net.forward(cuda_device.array(other), train=False), of)

    assert assert_equal_bits(*pair(cuda_device), batches(5), look)[-1]


@pytest.mark.full
def test_one_input_array_filled_again_is_not_copied_and_others_are_left_alone(cuda_device):
    recorded, plain = pair(cuda_device)
    buffer = cuda_device.empty((3, *SHAPE), np.float64)

    def learn_from(x, batch, number):
        if x is buffer:
            buffer[...] = cuda_device.array(batch[0])
        loss, _, _ = recorded.forward_backward(x, batch[1], number)
        recorded.optimizer.step(loss)
        assert recorded.loss.value() == learn(plain, batch, number)

    for number, batch in enumerate(batches(3)):
        learn_from(buffer, batch, number)
    assert not recorded._recorded[buffer.shape].copies
    last, stranger = buffer.copy(), seeded_batch(3, 77)
    learn_from(cuda_device.array(stranger[0]), stranger, 3)
    assert recorded.replayed and recorded._recorded[buffer.shape].copies
    np.testing.assert_array_equal(buffer, last)
    learn_from(buffer, stranger, 4)
    np.testing.assert_array_equal(recorded.optimizer.values, plain.optimizer.values)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        lambda step: setattr(step.net, "_steps", list(step.net.steps)),
        lambda step: setattr(step.net.layers[0], "input_gradient", True),
        lambda step: step.forget(),
    ],
)
def test_a_changed_net_is_recorded_anew(change, cuda_device):
    step, replayed = make(cuda_device), []
    for number, batch in enumerate(batches(4)):
        if number == 2:
            change(step)
        learn(step, batch, number)
        replayed.append(step.replayed)
    assert replayed == [False, True, False, True]


def test_simple_kernels_are_launched_one_by_one(cuda_device):
    step = make(cuda_device, kernels="simple")
    after(step, batches(3))
    assert type(step) is SingleStep


def test_a_net_with_locally_connected_layers_is_not_recorded(cuda_device):
    """Their products are the book's: a recording would leave them out."""

    def made(device):
        net = Sequential(
            {
                "local1": LocallyConnected2D(SHAPE, 3, 3),
                "relu1": ReLU(),
                "flatten": Flatten(),
                "fc2": Linear(5 * 4 * 3, 4),
            },
            SHAPE,
        )
        initialize(net, "robust", seed=2).to(device, "float64")
        return step_for(net, SGD(net.parameters(), lr=0.1))

    step, host = made(cuda_device), made("cpu")
    for number, batch in enumerate(batches(4)):
        learn(step, batch, number)
        learn(host, batch, number)
        assert not step.replayed
    # Sums in another order, in float64.
    np.testing.assert_allclose(
        cuda_device.to_host(step.optimizer.values), host.optimizer.values, rtol=1e-10, atol=1e-12
    )


def test_on_the_host_steps_are_plain_and_those_of_the_loop_written_out():
    step, other = make("cpu"), make("cpu")
    assert type(step) is SingleStep
    mine = after(step, batches(3))
    net, loss, optimizer = other.net, other.loss, other.optimizer
    losses = []
    for number, (x, labels) in enumerate(batches(3)):
        net.set_step(number)
        losses.append(loss.forward(net.forward(x), labels))
        net.backward(loss.backward())
        optimizer.step()
    assert mine[0] == losses
    np.testing.assert_array_equal(mine[1], optimizer.values)


@pytest.mark.full
def test_if_products_are_not_captured_the_recording_is_cut_there(cuda_device, monkeypatch, capsys):
    monkeypatch.setattr("tinyconv.run.graph_step.cublas_of", lambda device: True)
    tried = []

    def refuse_one(device, work, one_graph):
        tried.append(one_graph)
        recording = Recording(device, work)
        if one_graph:
            raise RuntimeError("cublasGemmEx failed with status 14")
        return recording

    monkeypatch.setattr("tinyconv.run.graph_step.Recording", refuse_one)
    assert assert_equal_bits(*pair(cuda_device), batches(3))[-1]
    assert tried == [True, False, False]  # the last one copies its input
    said = capsys.readouterr().err
    assert said == "the CUDA graph is cut at products: cublasGemmEx failed with status 14\n"


def test_if_recording_is_refused_one_line_says_so_and_training_goes_on(
    cuda_device, monkeypatch, capsys
):
    def refuse(device, work, one_graph):
        Recording(device, work)  # goes through all of the step, and fails at its end
        raise NotImplementedError("this cannot be captured\nsecond line")

    monkeypatch.setattr("tinyconv.run.graph_step.Recording", refuse)
    assert assert_equal_bits(*pair(cuda_device), batches(3)) == [False] * 3
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
            learn(step, (wrong_x, wrong_labels), 3)
    np.testing.assert_array_equal(step.optimizer.values, before)


def test_a_net_that_moved_is_noticed(cuda_device):
    step = make(cuda_device)
    after(step, batches(3))
    step.net.to(cuda_device)
    with pytest.raises(RuntimeError, match="moved after SGD was made"):
        learn(step, seeded_batch(3, 3), 3)


class Broken:
    """An augment whose batch in one step has a NaN."""

    def __init__(self, augment, step):
        self._augment, self._step, self.calls = augment, step, []

    def __getattr__(self, name):
        return getattr(self._augment, name)

    def random(self, images, ids, epoch):
        x = self._augment.random(images, ids, epoch)
        self.calls.append((epoch, ids.tolist()))
        if self.calls[self._step : self._step + 1] == [(epoch, ids.tolist())]:
            x[1, 0, 0, 0] = np.nan
        return x


@pytest.mark.parametrize("graph", [True, False])
def test_a_loss_that_is_not_finite_is_noticed_a_step_late_and_changes_no_weight(graph, cuda_device):
    photos = random_photos(12, size=8)
    net = Sequential(
        {"conv1": Conv2D(3, 2, 3), "flatten": Flatten(), "fc2": Linear(72, 3)}, (8, 8, 3)
    )
    initialize(net, "robust", seed=1).to(cuda_device, "float64")
    augment = Augment(photos.mean_image(), 8, 64.0)
    step = GraphStep(net, SGD(net.parameters(), 0.01), graph)
    data = TrainingData(photos, photos, augment, 2)
    training = Training(net, data, step, epochs=2)
    before, seen = [], []
    data.augment = broken = Broken(augment, 3)

    def keep():
        before.append(cuda_device.to_host(step.optimizer.values).copy())
        seen.append(training.progress.seen)

    with pytest.raises(LossError, match=r"nan in step 4 \(epoch 1\)") as error:
        training.run(on_step=keep)
    # Step 5 was made before the loss of step 4 was read; neither has changed a weight.
    assert len(broken.calls) == 5 and seen == [0, 2, 4, 6]
    np.testing.assert_array_equal(before[2], step.optimizer.values)
    assert not np.array_equal(before[1], before[2])
    said = origin_of(training, error.value)
    assert said == "the input of the net is not finite"
    assert broken.calls[-1] == broken.calls[3]  # the same photos once more


@pytest.mark.full
def test_a_run_on_a_gpu_gives_the_figures_of_the_host(cuda_device):
    photos, epochs = random_photos(12, size=8), []
    for device in ("cpu", cuda_device):
        net = Sequential({"flatten": Flatten(), "fc1": Linear(192, 3)}, (8, 8, 3))
        initialize(net, "robust", seed=1).to(device, "float64")
        augment = Augment(photos.mean_image(), 8, 64.0)
        epochs.append(train(net, photos, photos, augment, epochs=2, batch_size=5, lr=0.001))
    for host, gpu in zip(*epochs, strict=True):
        assert gpu.train_loss == pytest.approx(host.train_loss, rel=1e-12)
        assert gpu.first_loss == pytest.approx(host.first_loss, rel=1e-12)
        assert (gpu.train_top1, gpu.val_top1) == (host.train_top1, host.val_top1)
