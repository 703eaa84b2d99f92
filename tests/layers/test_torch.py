"""Against PyTorch, in float64: each layer, and the training of a small AlexNet step by step."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

import torch_twin  # noqa: E402  (imports torch)
from tiers import both_tiers, loss_of  # noqa: E402

from layers import (  # noqa: E402
    AvgPool2D,
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocallyConnected2D,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from tinyconv import SGD, Sequential, alexnet  # noqa: E402

SHAPE = (2, 6, 7, 5)

# Both sides compute in float64 and differ by the order of their sums, about 1e-13; a formula that
# is off by anything shows at 1e-8.
TOLERANCE = 1e-8

LAYERS = {
    "Conv2D": (Conv2D(5, 4, 3), SHAPE),
    "Conv2D, stride 2, padding (0, 2)": (Conv2D(5, 4, 3, stride=2, padding=(0, 2)), SHAPE),
    "Conv2D, stride 3, padding 1": (Conv2D(5, 4, 2, stride=3, padding=1), SHAPE),
    "Conv2D, three groups": (Conv2D(6, 9, 3, padding=1, groups=3), (2, 4, 5, 6)),
    "Conv2D, 1x1": (Conv2D(5, 4, 1), SHAPE),
    "MaxPool2D": (MaxPool2D(3, 2), SHAPE),
    "MaxPool2D with gaps": (MaxPool2D(2, 3), (2, 9, 7, 5)),
    "MaxPool2D over the edge": (MaxPool2D(3, 2, ceil=True), SHAPE),
    "MaxPool2D, stride 3, over the edge": (MaxPool2D(2, 3, ceil=True), (2, 8, 7, 5)),
    "AvgPool2D": (AvgPool2D(3, 2), (2, 8, 7, 5)),
    "AvgPool2D over the edge": (AvgPool2D(4, 3, ceil=True), (2, 9, 8, 5)),
    "LocallyConnected2D": (LocallyConnected2D(SHAPE[1:], 4, 3, padding=1), SHAPE),
    "LocallyConnected2D, stride 3": (LocallyConnected2D(SHAPE[1:], 3, 2, 3, 2), SHAPE),
    "LocalResponseNorm": (LocalResponseNorm(5, 2.0, 0.5, 0.75), SHAPE),
    "LocalResponseNorm, the paper's": (LocalResponseNorm(), (2, 3, 4, 17)),
    "LocalResponseNorm, size 3": (LocalResponseNorm(3, 1.0, 0.9, 1.3), SHAPE),
    "LocalResponseNorm, wider than its input": (LocalResponseNorm(13, 2.0, 0.5), SHAPE),
    "ReLU": (ReLU(), SHAPE),
    "Tanh": (Tanh(), SHAPE),
    # Rows, as in AlexNet: the twin numbers the units of feature maps in another order.
    "Dropout": (Dropout(0.4), (3, 43)),
    "Dropout, inverted": (Dropout(0.4, mode="inverted"), (3, 43)),
    "Flatten": (Flatten(), SHAPE),
    "Linear": (Linear(7, 5), (3, 7)),
}


def close(mine, theirs):
    """Compare our array with PyTorch's, already in our layout."""
    size = np.max(np.abs(theirs), initial=0)
    np.testing.assert_allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE * size)


def input_tensor(x):
    return torch_twin.channels_first(x).requires_grad_()


def compare_gradients(net, twin):
    """The gradients of all weights and biases."""
    ours = [layer for layer in net if layer.parameters()]
    for layer, module in zip(ours, torch_twin.learned(twin), strict=True):
        close(layer.weight.grad, torch_twin.channels_last(module.weight.grad))
        close(layer.bias.grad, module.bias.grad.numpy())


@both_tiers
@pytest.mark.parametrize("train", [True, False], ids=["training", "testing"])
@pytest.mark.parametrize("title", LAYERS)
def test_a_layer_agrees_with_pytorch_forward_and_backward(title, train, tier):
    layer, shape = LAYERS[title]
    rng = np.random.default_rng(17)
    net = Sequential([layer]).to("cpu", np.float64, kernels=tier)
    net.set_seed(23)
    net.set_step(5)
    for parameter in net.parameters():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    twin = torch_twin.twin(net).train(train)
    x = rng.standard_normal(shape)
    y = net.forward(x, train)
    dy = rng.standard_normal(y.shape)
    dx = net.backward(dy)

    tensor = input_tensor(x)
    output = twin(tensor)
    output.backward(torch_twin.channels_first(dy))
    close(y, torch_twin.channels_last(output))
    close(dx, torch_twin.channels_last(tensor.grad))
    compare_gradients(net, twin)


@both_tiers
def test_pytorch_too_lets_the_first_of_equals_win(tier):
    rng = np.random.default_rng(1)
    net = Sequential([MaxPool2D(3, 2)]).to("cpu", np.float64, kernels=tier)
    x = rng.integers(3, size=(2, 7, 9, 5)).astype(np.float64)
    dy = rng.standard_normal(net.forward(x).shape)
    tensor = input_tensor(x)
    torch_twin.twin(net)(tensor).backward(torch_twin.channels_first(dy))
    close(net.backward(dy), torch_twin.channels_last(tensor.grad))


@both_tiers
def test_the_loss_agrees_with_pytorch(tier):
    rng = np.random.default_rng(19)
    logits, labels = 3 * rng.standard_normal((4, 7)), rng.integers(7, size=4)
    loss = loss_of(tier, Device("cpu"))
    value = loss.forward(logits, labels)
    tensor = torch.from_numpy(logits.copy()).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(tensor, torch.from_numpy(labels))
    theirs.backward()
    close(value, theirs.item())
    close(loss.probabilities, tensor.detach().softmax(1).numpy())
    close(loss.backward(), tensor.grad.numpy())


@both_tiers
@pytest.mark.parametrize("recipe", ["paper", "robust"])
def test_three_training_steps_of_a_small_alexnet_agree_with_pytorch(recipe, tier):
    rng = np.random.default_rng(29)
    net = alexnet(num_classes=7, width=0.05, image_size=67, recipe=recipe)
    net.to("cpu", np.float64, kernels=tier)
    if recipe == "paper":
        # Weights of 0.01 are meant for wide layers: in narrow ones the image would not come
        # through, and nothing but biases would be compared.
        for parameter in net.parameters():
            if parameter.name.endswith("weight"):
                parameter.value *= 10
    net.set_step(3)
    twin = torch_twin.twin(net).train()
    loss = net.loss()
    # Large rates and decay: after three steps each of them has changed every digit.
    lr, momentum, decay = 0.02, 0.9, 0.05
    optimizer = SGD(net.parameters(), lr, momentum, decay)
    groups = []
    for layer, module in zip(
        [layer for layer in net if layer.parameters()], torch_twin.learned(twin), strict=True
    ):
        tensors = module.weight, module.bias
        for parameter, tensor in zip(layer.parameters(), tensors, strict=True):
            rates = {
                "lr": lr * parameter.lr_multiplier,
                "weight_decay": decay * parameter.decay_multiplier,
            }
            groups.append({"params": [tensor], **rates})
    their_optimizer = torch.optim.SGD(groups, lr, momentum)

    for _ in range(3):
        x, labels = rng.standard_normal((5, 67, 67, 3)), rng.integers(7, size=5)
        value = loss.forward(net.forward(x), labels)
        dx = net.backward(loss.backward())
        tensor = input_tensor(x)
        their_optimizer.zero_grad()
        theirs = torch.nn.functional.cross_entropy(twin(tensor), torch.from_numpy(labels))
        theirs.backward()
        assert value == pytest.approx(theirs.item(), rel=TOLERANCE)
        close(dx, torch_twin.channels_last(tensor.grad))
        assert np.abs(dx).max() > 0
        compare_gradients(net, twin)

        optimizer.step()
        their_optimizer.step()
        learned = [layer for layer in net if layer.parameters()]
        for layer, module in zip(learned, torch_twin.learned(twin), strict=True):
            close(layer.weight.value, torch_twin.channels_last(module.weight))
            close(layer.bias.value, module.bias.detach().numpy())

    y = net.forward(x, train=False)
    twin.eval()
    close(y, twin(torch_twin.channels_first(x)).detach().numpy())


def test_groups_in_normalization_have_no_twin():
    with pytest.raises(ValueError, match="LRN knows no groups"):
        torch_twin.twin(alexnet(num_classes=7, width=0.05, image_size=67, recipe="authors"))
