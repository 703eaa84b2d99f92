"""The training loop: the trajectory, the order of things, and what it says when it fails."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from marks import long
from small import new_training, random_photos, seeded_batch, seeded_net

from layers import Conv2D, Flatten, Linear, SoftmaxCrossEntropy
from tinyconv import RECIPES, SGD, Sequential, alexnet, initialize, train
from tinyconv.data.augment import Augment
from tinyconv.run.diagnose import losses_explained
from tinyconv.schedule import Plateau, Steps
from tinyconv.train import LossError, TrainingError

# Printed by trajectory("cpu") when the derivatives had been checked against PyTorch.
PINNED = [
    1.2117705653027075,
    1.5571050074534922,
    2.2517226698079407,
    1.392588303614803,
    1.386911405899467,
    1.3338732625375807,
    1.4469697745726444,
    1.3922020432373627,
    1.2668168586234891,
    1.4773120176046386,
]


def trajectory(device: str) -> list[float]:
    """Ten losses of the small net on ten batches, in float64."""
    net = seeded_net(device)
    loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters(), lr=0.05)
    loss.to(device, "float64")
    losses = []
    for step in range(10):
        x, labels = seeded_batch(seed=step % 3)
        net.set_step(step)
        losses.append(loss.forward(net.forward(net.device.array(x)), labels))
        net.backward(loss.backward())
        optimizer.step()
    return losses


@pytest.mark.parametrize("device", ["cpu", long("cuda:0")], indirect=True)
def test_ten_losses_are_what_they_were(device):
    # float64 keeps ten steps' roundings of sums in other orders far below 1e-9.
    np.testing.assert_allclose(trajectory(device.name), PINNED, rtol=1e-9)


def small_run(net=None, photos=None, **options):
    photos = photos or random_photos(30)
    net = net or alexnet(3, 0.05, 64, "robust", seed=1)
    augment = Augment(photos.mean_image(), 64, 64.0, seed=1)
    options = {"epochs": 2, "batch_size": 8, "seed": 1} | options
    return net, train(net, photos, random_photos(9, seed=9), augment, **options)


def test_it_learns_and_reports_every_epoch():
    seen = []
    # So few filters and steps need large first weights in conv1 too.
    recipe = replace(RECIPES["robust"], conv1_scale=1.0)
    net = alexnet(3, 0.05, 64, recipe, seed=1)
    _, history = small_run(net, epochs=6, on_epoch=seen.append, lr=0.02)
    assert seen == history and [e.epoch for e in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].train_loss < 0.7 * history[0].first_loss
    assert history[-1].val_top1 == 1.0 and history[-1].val_top5 == 1.0
    assert all(e.images_per_second > 0 and e.seconds > 0 for e in history)
    assert set(asdict(history[0])) >= {"epoch", "train_loss", "val_top1", "lr"}


def test_two_runs_with_one_seed_give_the_same_bits_and_another_seed_others():
    runs = [small_run(seed=seed) for seed in (4, 4, 5)]
    weights = [np.concatenate([p.value.ravel() for p in net.parameters()]) for net, _ in runs]
    assert weights[0].tobytes() == weights[1].tobytes() != weights[2].tobytes()


def test_the_learning_rate_drops_before_the_named_epochs():
    _, history = small_run(epochs=4, lr=0.01, schedule=Steps([2, 4]))
    assert [e.lr for e in history] == pytest.approx([0.01, 0.001, 0.001, 0.0001])


def test_the_learning_rate_drops_when_validation_stops_improving():
    # A rate of almost nothing: top-1 stays as it is, and no epoch but the first is a new best.
    _, history = small_run(epochs=5, lr=1e-9, schedule=Plateau(patience=2))
    assert [e.best for e in history] == [True, False, False, False, False]
    assert [e.lr for e in history] == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10])


def test_the_authors_last_stage_is_without_colour_and_leaves_conv1_as_it_is():
    photos = random_photos(30)
    net = alexnet(3, 0.05, 64, "authors", seed=1)
    augment = Augment(photos.mean_image(), 64, 1.1, 1, np.diag([20.0, 10.0, 5.0]))
    conv1, others, colour = [], [], []

    def note(epoch):
        conv1.append(np.concatenate([p.value.ravel() for p in net["conv1"].parameters()]))
        others.append(net["conv2"].weight.value.copy())
        colour.append(augment.colour_on)

    train(
        net, photos, photos, augment, epochs=4, batch_size=8, schedule=Steps([2, 3]),
        bare_last_stage=True, on_epoch=note,
    )  # fmt: skip
    assert colour == [True, True, False, False]
    assert not np.array_equal(conv1[0], conv1[1])
    np.testing.assert_array_equal(conv1[1], conv1[2])
    np.testing.assert_array_equal(conv1[1], conv1[3])
    assert not np.array_equal(others[2], others[3])


def test_should_stop_ends_it_after_the_step_with_everything_it_needs_to_go_on():
    photos = random_photos(30)
    net = alexnet(3, 0.05, 64, "robust", seed=1)
    training = new_training(
        net, photos, photos, Augment(photos.mean_image(), 64, 64.0), epochs=2, batch_size=8
    )
    steps = []
    assert not training.run(
        on_step=lambda: steps.append(training.progress.step),
        should_stop=lambda: len(steps) == 2,
    )
    assert steps == [1, 2] and training.progress.batch == 2 and training.progress.seen == 16
    assert training.run(on_step=lambda: steps.append(training.progress.step))
    assert steps == [1, 2, 3, 4, 5, 6] and training.progress.epoch == 3


def test_every_step_uses_another_mask_and_the_last_images_of_an_epoch_are_left_out(monkeypatch):
    net = alexnet(3, 0.05, 64, "robust")
    steps, sizes = [], []
    forward = net.forward

    def spy(x, train=True):
        if train:
            steps.append(net["drop6"].step)
            sizes.append(len(x))
        return forward(x, train)

    monkeypatch.setattr(net, "forward", spy)
    small_run(net)
    assert steps == [0, 1, 2, 3, 4, 5] and sizes == [8] * 6


def test_a_set_smaller_than_a_batch_is_one_batch():
    _, history = small_run(photos=random_photos(5), batch_size=64)
    assert len(history) == 2


def test_a_step_allocates_nothing_new():
    """Law 6: the arrays that layers hand out are the same ones from step to step."""
    net = seeded_net()
    loss = SoftmaxCrossEntropy()
    loss.to("cpu", "float64")
    x, labels = seeded_batch()

    def addresses():
        y, held = x, []
        for layer in net:
            y = layer.forward(y)
            held.append(y.ctypes.data)
        loss.forward(y, labels)
        dy = loss.backward()
        for layer in reversed(net.layers):
            dy = layer.backward(dy)
            held.append(dy.ctypes.data)
        return held

    assert addresses() == addresses()


def test_a_loss_that_is_no_number_ends_training_with_its_layer_and_step():
    net = alexnet(3, 0.05, 64, "robust")
    net["fc8"].bias.value[...] = np.nan
    with pytest.raises(
        TrainingError,
        match=r"nan in step 1 \(epoch 1\): fc8.bias has values.*came before the first step.*third",
    ):
        small_run(net)


def test_weights_that_were_never_drawn_are_refused():
    net = Sequential({"flat": Flatten(), "fc": Linear(64 * 64 * 3, 3)})
    with pytest.raises(ValueError, match=r"fc.weight is all zero; call initialize"):
        small_run(net)
    small_run(initialize(net))


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        small_run(**arguments)


def test_labels_that_the_net_has_no_class_for_are_refused():
    net = initialize(Sequential({"conv": Conv2D(3, 2, 64), "flat": Flatten(), "fc": Linear(2, 2)}))
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        small_run(net)


def test_weights_ruined_by_the_very_last_update_are_noticed_by_the_validation():
    """Only the validation comes after it: no further step would have found them."""
    photos = random_photos(30)
    net = alexnet(3, 0.05, 64, "robust", seed=1)
    training = new_training(
        net, photos, photos, Augment(photos.mean_image(), 64, 64.0), epochs=1, batch_size=10
    )

    def ruin():
        if training.progress.step == 3:
            net["conv2"].weight.value[0] = np.nan

    epochs = []
    with (
        pytest.raises(
            TrainingError, match=r"validation loss became nan after epoch 1: conv2.weig"
        ) as error,
        losses_explained(training),
    ):
        training.run(on_step=ruin, on_epoch=epochs.append)
    assert "came in the update of step 3; start again" in str(error.value) and not epochs


def test_of_replicas_each_looks_for_the_origin_of_a_validation_loss():
    """Their own losses in training were finite."""
    photos = random_photos(30)
    net = alexnet(3, 0.05, 64, "robust", seed=1)
    training = new_training(net, photos, photos, Augment(photos.mean_image(), 64, 64.0))
    training.step.own_loss = 1.5
    net["fc7"].bias.value[0] = np.inf

    class Rank:
        def exchange(self, text):
            return ["", text]

        def __str__(self):
            return "rank 1 (cpu)"

    with (
        pytest.raises(TrainingError, match=r"after epoch 2: rank 1 \(cpu\): fc7.bias has values"),
        losses_explained(training, Rank()),
    ):
        raise LossError(np.nan, 2, 0, 7, validation=True)
