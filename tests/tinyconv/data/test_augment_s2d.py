"""Crops written as conv1 multiplies them: the bits of two passes, borders and training included."""

import numpy as np
import pytest
from marks import long
from small import random_photos

from layers import Conv2D, Flatten, Linear, ReLU
from layers.fast.conv.steps import TensorConv
from layers.fast.conversions import ToBFloat16
from layers.fast.plan import plan
from tinyconv import SGD, Sequential
from tinyconv.data.augment import Augment
from tinyconv.initialize import initialize
from tinyconv.run.training import step_for
from tinyconv.train import Training, TrainingData

SIDE, COLOUR = 13, np.array([[900.0, 200, -70], [-400, 500, 30], [100, -600, 90]])

# crop, window, stride, padding, precision
WRITTEN = {
    "odd crop, border of two": (11, 11, 4, 2, "bf16"),
    "TF32": (11, 11, 4, 2, "tf32"),
    "border on two sides, unlike": (8, 11, 4, (2, 1), "bf16"),
    "a whole square of border": (5, 11, 4, 5, "tf32"),
    "no border, pixels that no window reaches": (13, 11, 4, 0, "bf16"),
    "a crop of one pixel": (1, 5, 4, 3, "bf16"),
}
AS_BEFORE = {
    "another stride": (9, 5, 2, 1, "bf16"),
    "squares of one pixel": (9, 5, 4, 2, "tf32"),
    "float32": (9, 11, 4, 2, "fp32"),
}


def cutter(crop):
    mean = np.random.default_rng(1).uniform(0, 255, (SIDE, SIDE, 3))
    return Augment(mean, crop, 1.7, seed=3, colour=COLOUR)


def photos(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def steps_of(case, device):
    """The steps of one convolution with its ReLU, the same weights each time."""
    _, size, stride, padding, precision = case
    layers = [Conv2D(3, 5, size, stride, padding).to(device), ReLU().to(device)]
    weight = layers[0].weight.value
    weight[...] = device.array(np.random.default_rng(2).standard_normal(weight.shape), np.float32)
    return plan(layers, device, np.float32, precision)


def run(steps, x, device):
    """x in space-to-depth form as it was multiplied, y, dL/dw and dL/dx."""
    for step in steps:
        x = step.forward(x)
    dy = device.array(np.random.default_rng(4).standard_normal(x.shape), np.float32)
    for step in reversed(steps):
        dy = step.backward(dy)
    conv = next(step for step in steps if isinstance(step, TensorConv))
    return conv.x_s2d, [device.to_host(each).copy() for each in (x, conv.layers[0].weight.grad, dy)]


@pytest.mark.parametrize("title", list(WRITTEN)[:1] + [long(title) for title in list(WRITTEN)[1:]])
def test_one_pass_gives_the_bits_of_two(title, cuda_device):
    case = WRITTEN[title]
    two, one = steps_of(case, cuda_device), steps_of(case, cuda_device)
    augment, direct = cutter(case[0]), cutter(case[0])
    augment.to(cuda_device, "float32")
    direct.to(cuda_device, "float32", one[0])
    direct.ten_views(255 - photos(1))  # what was there before is overwritten, the border as well
    x = direct.random(photos(), np.array([5, 9]), 7)
    assert x.shape[1:] != (case[0], case[0], 3)
    multiplied, found = run(one, x, cuda_device)
    assert multiplied is x
    multiplied, right = run(two, augment.random(photos(), np.array([5, 9]), 7), cuda_device)
    for ours, theirs in zip([x, *found], [multiplied, *right], strict=True):
        np.testing.assert_array_equal(cuda_device.to_host(ours), cuda_device.to_host(theirs))
        assert np.count_nonzero(cuda_device.to_host(ours))


@pytest.mark.parametrize("title", AS_BEFORE)
def test_other_convolutions_get_the_crops_themselves(title, cuda_device):
    case = AS_BEFORE[title]
    augment = cutter(case[0]).to(cuda_device, "float32", steps_of(case, cuda_device)[0])
    x = augment.centre(photos())
    assert (x.shape, x.dtype) == ((2, case[0], case[0], 3), np.float32)


def test_on_the_host_and_for_the_book_nothing_changes(device):
    steps = steps_of((9, 11, 4, 2, "fp32"), device)
    book = Conv2D(3, 5, 11, 4, 2)
    for reader in (steps[0], book, None):
        x = cutter(9).to(device, "float32", reader).centre(photos())
        assert x.shape == (2, 9, 9, 3)


def test_a_net_that_was_not_asked_refuses_such_images(cuda_device):
    case = WRITTEN["odd crop, border of two"]
    asked, other = steps_of(case, cuda_device), steps_of(case, cuda_device)
    assert isinstance(asked[0], ToBFloat16)
    augment = cutter(case[0]).to(cuda_device, "float32", asked[0])
    x = augment.centre(photos())
    asked[0].forward(x)
    pixels = cuda_device.array(np.zeros((3, 11, 11, 3)), np.uint16)
    for steps, wrong in ((other, x), (asked, x[:, 1:]), (asked, pixels)):
        with pytest.raises(ValueError, match="x is uint16, the layer computes in float32"):
            steps[0].forward(wrong)
    with pytest.raises(ValueError, match="needs x as a numpy array, not builtins.list"):
        asked[0].forward(x.tolist())


@pytest.mark.full
def test_training_gives_the_bits_of_two_passes_plain_and_replayed(cuda_device, monkeypatch):
    data, val, weights, sizes = random_photos(4, size=SIDE), random_photos(2, size=SIDE), [], []
    to = Augment.to
    for direct in (False, True):
        net = Sequential(
            {
                "conv1": Conv2D(3, 4, 11, 4, 2),
                "relu1": ReLU(),
                "flatten": Flatten(),
                "fc2": Linear(16, 3),
            },
            (11, 11, 3),
        )
        initialize(net, "robust", seed=1).to(cuda_device, "float32", "bf16")
        step = step_for(net, SGD(net.parameters(), 0.01), graph=direct)
        augment = Augment(data.mean_image(), 11, 64.0, colour=COLOUR)
        if not direct:
            monkeypatch.setattr(Augment, "to", lambda self, *where: to(self, *where[:2]))
        training = Training(net, TrainingData(data, val, augment, 2), step, epochs=1)
        monkeypatch.undo()
        assert training.run()
        assert step.replayed == direct
        weights.append(cuda_device.to_host(step.optimizer.values).copy())
        sizes.append(augment.centre(data.images[:1]).shape)
    assert sizes == [(1, 11, 11, 3), (1, 4, 4, 48)]
    np.testing.assert_array_equal(*weights)
