"""The vectors that a layer computes for each photo, such as the 4096 numbers of fc7 (figure 4)."""

from typing import Any

import numpy as np

from layers import Dropout, ReLU, Tanh
from tinyconv.data.augment import Augment
from tinyconv.data.loader import Loader
from tinyconv.sequential import Sequential


def features(
    net: Sequential, photos: Any, augment: Augment, layer: str = "fc7", batch_size: int = 64
) -> np.ndarray:
    """The output of `layer` for the centre of each photo, float32 (N, values), on the host.

    With the ReLU (and the dropout, in test mode) that follow the layer. net and augment on one
    device; photos: a PhotoSet or a store's StoredPhotos. ValueError names the layers if there is no
    such one.
    """
    names = [each.name for each in net]
    if layer not in names:
        raise ValueError(f"no layer {layer!r}; there are {', '.join(names)}")
    last = names.index(layer)
    while last + 1 < len(names) and isinstance(net[last + 1], ReLU | Tanh | Dropout):
        last += 1
    found = []
    with Loader(photos, batch_size, net.device) as loader:
        for images, _, _ in loader.ordered():
            for name, y in net.outputs(augment.centre(images), train=False):
                if names[last] in name.split("+"):
                    found.append(net.device.to_host(y).reshape(len(images), -1).copy())
                    break
    return np.concatenate(found).astype(np.float32)


def nearest(queries: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """For each row of queries (Q, D) the k rows of others (N, D) nearest in Euclidean distance.

    Places (Q, k), nearest first; of equals the first.
    """
    a, b = queries.astype(np.float64), others.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    return np.argsort(squares, axis=1, kind="stable")[:, :k]
