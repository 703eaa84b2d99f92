"""What is planned together: the pairs, each layer once, and the three recipes' nets."""

import pytest

from layers import Conv2D, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool2D, ReLU, Tanh
from layers.fast.plan import plan
from tinyconv import alexnet

HOST_BLOCK = ["conv1+relu1", "norm1", "pool1"]
AUTHORS_BLOCK = ["conv1", "norm1", "pool1", "relu1"]
REST = [
    *("conv2+relu2", "norm2", "pool2", "conv3+relu3", "conv4+relu4", "conv5+relu5", "pool5"),
    *("flatten", "fc6+relu6+drop6", "fc7+relu7+drop7", "fc8"),
]


@pytest.mark.parametrize(
    "recipe, block",
    [("paper", HOST_BLOCK), ("robust", HOST_BLOCK), ("authors", AUTHORS_BLOCK)],
)
def test_the_plan_of_alexnet(recipe, block, device):
    net = alexnet(3, width=0.02, image_size=64, recipe=recipe).to(device)
    assert [step.name for step in net.steps] == block + REST
    assert "ReLU (in conv2)" in str(net) and "Dropout (in fc6)" in str(net)
    assert ("LocalResponseNorm (by rows)" in str(net)) == device.is_cuda
    assert ("ReLU (in conv1)" in str(net)) == (recipe != "authors")


def kinds(layers):
    return [type(step).__name__ for step in plan(layers)]


def test_only_neighbours_in_the_right_order_are_joined(device):
    assert kinds([Conv2D(3, 4, 3), Tanh(), ReLU()]) == ["Conv2D", "Tanh", "ReLU"]
    assert kinds([ReLU(), Conv2D(3, 4, 3)]) == ["ReLU", "Conv2D"]
    assert kinds([Linear(3, 4), Dropout(0.5), ReLU()])[1:] == ["Dropout", "ReLU"]
    assert kinds([Linear(3, 4), ReLU(), ReLU(), Dropout(0.5)]) == ["LinearStep", "ReLU", "Dropout"]
    assert kinds([Linear(3, 4), ReLU(), Linear(4, 4), ReLU()]) == ["LinearStep"] * 2
    assert kinds([Flatten(), Linear(3, 4), ReLU(), Dropout(0.5)]) == ["Flatten", "LinearStep"]


def test_a_kind_of_layer_derived_from_ours_is_left_alone(cuda_device):
    class Leaky(ReLU):
        """Something else."""

    class Wide(MaxPool2D):
        """Something else too."""

    layers = [Conv2D(3, 4, 3), Leaky(), Wide(3, 2), LocalResponseNorm()]
    for layer in layers:
        layer.to(cuda_device)
    assert kinds(layers) == ["Conv2D", "Leaky", "Wide", "LRNRowsStep"]


def test_every_layer_is_in_one_step(device):
    net = alexnet(3, width=0.02, image_size=64, recipe="robust").to(device)
    flat = []
    for step in net.steps:
        flat += getattr(step, "layers", [step])
    assert flat == net.layers
