"""Small nets and photo sets for the tests of training."""

import numpy as np

from tinyconv import SGD, Sequential, alexnet
from tinyconv.data import PhotoSet
from tinyconv.data.random_arrays import normal, words
from tinyconv.lab.cases.book import small_net
from tinyconv.parallel.column_training import ColumnAugment, ColumnSGD
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.replicas import ReplicaStep
from tinyconv.recipes import RECIPES
from tinyconv.run.checkpoint import save_weights
from tinyconv.run.training import step_for
from tinyconv.train import Training, TrainingData


def random_photos(count: int, classes: int = 3, size: int = 75, seed: int = 0) -> PhotoSet:
    """Photos that a net can tell apart: noise around a grey level of each class."""
    labels = np.arange(count) % classes
    noise = words(seed, 0, 0, np.arange(count * size * size * 3)) % 64
    level = 60 * labels[:, None, None, None]
    images = (level + noise.reshape(count, size, size, 3)).astype(np.uint8)
    return PhotoSet(images, labels.astype(np.int64), tuple(f"class{i}" for i in range(classes)))


def saved_net(path, classes, recipe="robust", net=None, mean=None, **changes):
    """Save a small AlexNet for these classes as a run does; returns it. None: without a setting."""
    net = net or alexnet(len(classes), 0.05, 64, recipe, seed=1)
    settings = {"width": 0.05, "image_size": 64, "recipe": dict(vars(RECIPES[recipe]))}
    settings |= {"class_names": list(classes), "class_ids": list(classes)} | changes
    mean = np.full((73, 73, 3), 100, np.float32) if mean is None else mean
    save_weights(path, net, mean, {k: v for k, v in settings.items() if v is not None})
    return net


def seeded_net(device: str = "cpu", dtype: str = "float64") -> Sequential:
    """The net of the gradient check; the same weights on every device and with every NumPy."""
    net = small_net(np.random.default_rng(0))
    for parameter in net.parameters():
        if parameter.name.endswith("bias"):
            parameter.value[...] = 0.1
    return net.to(device, dtype)


def seeded_batch(count: int = 4, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Input (N, 9, 8, 3) in float64 and labels (N,) for `seeded_net`."""
    x = normal((count, 9, 8, 3), 1.0, seed, 0).astype(np.float64)
    return x, (words(seed, 1, 0, np.arange(count)) % 4).astype(np.int64)


def new_training(net, photos, val, augment, *, batch_size=128, lr=0.01, seed=0, **settings):
    """`Training` of a net, of one in two columns, or with `replica` (and `check_every`)."""
    share = ()
    if replica := settings.pop("replica", None):
        share = replica.rank, replica.size
        step = ReplicaStep(
            *(net, SGD(net.parameters(), lr), replica), settings.pop("check_every", 100)
        )
    elif isinstance(net, Columns):
        augment = ColumnAugment(augment, net)
        step = step_for(net, ColumnSGD(net.parameters(), lr), graph=False)
    else:
        step = step_for(net, SGD(net.parameters(), lr))
    data = TrainingData(photos, val, augment, batch_size, seed, *share)
    return Training(net, data, step, seed=seed, **settings)
