"""What is said of training that goes wrong."""

import math

import numpy as np
import pytest
from small import random_photos

from tinyconv import alexnet, initialize, train
from tinyconv.data.augment import Augment
from tinyconv.run.diagnose import (
    CAUSES,
    LEARNED,
    first_loss_note,
    overfit_one_batch,
    stuck_note,
    where_not_finite,
)
from tinyconv.train import TrainingError


def batch(count=4):
    photos = random_photos(count)
    return (photos.images[:, :64, :64].astype(np.float32) - 90) / 64, photos.labels


@pytest.fixture
def net():
    return alexnet(3, 0.05, 64, "robust", seed=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["conv2.weight", "fc7.bias"])
def test_a_spoilt_parameter_is_named_with_the_update_that_spoilt_it(net, name, value):
    next(p for p in net.parameters() if p.name == name).value.flat[3] = value
    x, _ = batch()
    note = where_not_finite(net, x, 7)
    assert note == f"{name} has values that are not finite; they came in the update of step 7"
    assert "came before the first step" in where_not_finite(net, x, 0)


def test_an_overflow_is_traced_to_the_first_layer_whose_output_has_it(net):
    net["conv3"].weight.value[...] = 3e38
    x, _ = batch()
    with np.errstate(all="ignore"):
        said = where_not_finite(net, x, 3)
    assert said == "the output of conv3+relu3 is the first that is not finite"


def test_the_same_masks_are_drawn_again(net):
    """An overflow that only the dropped units hide or show must be looked for with their mask."""
    x, _ = batch()
    net.set_step(5)
    net.forward(x, train=True)
    before = net["drop6"].y.copy()
    where_not_finite(net, x, 5)
    np.testing.assert_array_equal(net["drop6"].y, before)


def test_a_spoilt_input_and_a_loss_of_its_own_are_told_apart(net):
    x, _ = batch()
    assert "the loss itself" in where_not_finite(net, x, 0)
    x[2, 3, 4, 1] = np.nan
    assert where_not_finite(net, x, 0) == "the input of the net is not finite"


def test_training_with_a_rate_that_explodes_names_layer_and_step(net):
    photos = random_photos(30)
    augment = Augment(photos.mean_image(), 64, 64.0)
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingError, match=r"in step \d+ .*(in the update of step|the output of)"),
    ):
        train(net, photos, photos, augment, epochs=9, batch_size=8, lr=1e6)


def test_the_first_loss_is_compared_with_guessing():
    assert first_loss_note(2.4, 10) == "first loss 2.400; guessing gives ln 10 = 2.303"
    assert "too large" in first_loss_note(30.0, 10)


def test_a_net_that_keeps_guessing_is_noticed_after_two_epochs_with_the_five_causes():
    assert stuck_note([1.1], 3) == "" and stuck_note([1.1, 0.9], 3) == ""
    note = stuck_note([1.1, 1.0986], 3)
    assert "ln 3 = 1.099" in note and "--recipe robust" in note
    assert len(CAUSES) == 5 and len(note.splitlines()) == 6


def test_a_net_that_is_stuck_in_earnest():
    net = alexnet(3, 0.05, 64, "paper")
    for parameter in net.parameters():
        parameter.value *= 0.01
    photos = random_photos(30)
    augment = Augment(photos.mean_image(), 64, 1.0)
    history = train(net, photos, photos, augment, epochs=2, batch_size=8, lr=1e-6)
    assert math.isclose(history[0].first_loss, math.log(3), rel_tol=1e-3)
    assert stuck_note([epoch.train_loss for epoch in history], 3)


def test_a_batch_is_learned_by_heart(net):
    photos = random_photos(12)
    augment, seen = Augment(photos.mean_image(), 64, 64.0), []
    losses = overfit_one_batch(
        net, photos, augment, 6, lr=0.02, report=lambda step, loss: seen.append((step, loss))
    )
    assert losses[-1] < LEARNED < losses[0] and len(losses) < 200
    assert seen == list(enumerate(losses, start=1))


def test_a_batch_that_cannot_be_learned_ends_after_the_steps():
    """Equal photos with different labels: nobody can do better than guess."""
    photos = random_photos(12)
    photos.images[...] = 100
    augment = Augment(np.zeros((75, 75, 3), np.float32), 64, 64.0)
    net = initialize(alexnet(3, 0.05, 64, "robust"))
    losses = overfit_one_batch(net, photos, augment, 6, steps=25)
    assert len(losses) == 25 and losses[-1] > 1.0


def test_a_batch_that_explodes_ends_at_once(net):
    photos = random_photos(12)
    with np.errstate(all="ignore"):
        losses = overfit_one_batch(net, photos, Augment(photos.mean_image(), 64, 64.0), lr=1e12)
    assert not math.isfinite(losses[-1]) and len(losses) < 20
