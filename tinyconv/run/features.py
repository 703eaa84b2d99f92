"""Feature vectors: what a layer of a trained net answers to photos (paper §6.1, figure 4, right).

The vector of a layer is its output behind the ReLU and dropout that directly follow it, in test
mode: for "fc7" the 4096 numbers from which fc8 computes the classes. Both kernels, "fast" and
"simple", so give the same vectors, although fast steps compute several layers at once.
"""

from typing import Any

import numpy as np

from layers import Dropout, ReLU, Tanh
from tinyconv.data.augment import Augment
from tinyconv.data.loader import Loader
from tinyconv.sequential import Sequential


def features(
    net: Sequential, photos: Any, augment: Augment, layer: str = "fc7", batch_size: int = 64
) -> np.ndarray:
    """The outputs (N, ...) float32 of `layer` for the central crop of each photo, on the host.

    net, augment: on one device; photos: a PhotoSet of N photos. KeyError lists the
    layers if there is none of that name; ValueError for an empty set.
    """
    found = []
    with Loader(photos, batch_size, net.device) as loader:
        for images, _, _ in loader.ordered():
            found.append(output_of(net, augment.centre(images), layer))
    return np.concatenate(found)


def output_of(net: Sequential, x: Any, layer: str) -> np.ndarray:
    """The output (N, ...) float32 of `layer` for the input x (N, H, W, C), a copy on the host.

    The forward pass ends there. KeyError lists the layers if there is none of that name.
    """
    last = end_of(net, layer)
    for step in net.steps:
        x = step.forward(x, False)
        if last in getattr(step, "layers", [step]):
            break
    y = np.array(net.device.to_host(x))
    if y.dtype == np.uint16:  # the bits of bfloat16, as between steps on a GPU
        y = (y.astype(np.uint32) << 16).view(np.float32)
    return y.astype(np.float32, copy=False)


def end_of(net: Sequential, layer: str) -> Any:
    """The last of the layers that belong to `layer`: it, and the ReLU and dropout behind it."""
    place = net.layers.index(net[layer])
    while place + 1 < len(net) and isinstance(net.layers[place + 1], ReLU | Tanh | Dropout):
        place += 1
    return net.layers[place]


def nearest(queries: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """For each row of queries (Q, D) the k rows of others (N, D) nearest in Euclidean distance.

    Places (Q, k), nearest first; of equals the first.
    """
    a, b = queries.astype(np.float64), others.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    return np.argsort(squares, axis=1, kind="stable")[:, :k]
