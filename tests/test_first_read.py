"""Read this test first: ten training steps of a small AlexNet, and the losses they must give.

One batch of eight random pictures, ten steps of momentum SGD, everything drawn from one seed. The
same ten losses have to come out of the book (`layers/*.py`, kernels="simple") and of the fast tier
(`layers/fast/`), on the host and from simulated CUDA kernels. A mistake in any formula, derivative,
random number, or in the order of the steps changes them.
"""

import numpy as np
import pytest

from layers import Conv2D, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool2D, ReLU
from tinyconv import SGD, Sequential, initialize
from tinyconv.data.random_arrays import normal

pytestmark = pytest.mark.first_read

LOSSES = [
    1.5446974362956267,
    1.4904573736370506,
    1.5093047999691018,
    1.6372150049055487,
    1.4352607149980348,
    1.4444525928277276,
    1.538903351387321,
    1.2370737516044266,
    1.2381989060982488,
    1.2430795110859483,
]
"""`losses("cpu", "simple", "float64")`."""


def losses(device, kernels, dtype):
    """The loss of each of ten training steps."""
    net = Sequential(
        {
            "conv1": Conv2D(3, 6, 5, stride=2, padding=(0, 1)),
            "relu1": ReLU(),
            "norm1": LocalResponseNorm(size=5, k=2, alpha=1e-4, beta=0.75),
            "pool1": MaxPool2D(3, 2),
            "conv2": Conv2D(6, 8, 3, padding=1, groups=2),
            "relu2": ReLU(),
            "flatten": Flatten(),
            "fc3": Linear(32, 12),
            "relu3": ReLU(),
            "drop3": Dropout(0.5),
            "fc4": Linear(12, 5),
        },
        input_shape=(12, 12, 3),
    )
    initialize(net, "robust", seed=1)
    net.to(device, dtype, kernels=kernels)
    net.set_seed(2)
    loss, optimizer = net.loss(), SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    x = net.device.array(normal((8, 12, 12, 3), std=1.0, seed=3, layer=0), dtype)
    labels = np.arange(8) % 5

    values = []
    for step in range(10):
        net.set_step(step)  # chooses dropout's mask
        values.append(loss.forward(net.forward(x), labels))
        net.backward(loss.backward())
        optimizer.step()
    return values


@pytest.fixture(autouse=True)
def checked_launches():
    """Instead of the one in conftest.py: other tests check the launches of these kernels."""


@pytest.mark.parametrize("kernels", ["simple", "fast"])
def test_ten_losses(kernels, device):
    # Tiers and devices add in different orders: some roundings of 1e-16 in each of ten steps.
    assert losses(device, kernels, "float64") == pytest.approx(LOSSES, rel=1e-11)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.full)])
@pytest.mark.parametrize("kernels", ["simple", "fast"])
def test_ten_losses_in_float32(kernels, device):
    assert losses(device, kernels, "float32") == pytest.approx(LOSSES, rel=1e-5)
