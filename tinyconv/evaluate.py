"""How good is the net? Top-1 and top-5 accuracy on photos it was not trained on (paper §4.1)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from layers import SoftmaxCrossEntropy
from tinyconv.data.augment import Augment
from tinyconv.data.loader import ordered_batches
from tinyconv.data.photos import PhotoSet
from tinyconv.sequential import Sequential


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, and the shares of photos (0 to 1) whose class is the likeliest, or among five."""

    loss: float
    top1: float
    top5: float

    def __str__(self) -> str:
        return f"top-1 {self.top1:.1%}, top-5 {self.top5:.1%}, loss {self.loss:.4f}"


def hits(probabilities: np.ndarray, labels: np.ndarray, k: int) -> int:
    """How many rows of (N, C) have their label among the k largest.

    Of equal values the first counts as the larger, as in argmax: a net that gives every class the
    same must not pass for one that knows. A row with a NaN is never a hit.
    """
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    known = np.isfinite(probabilities).all(axis=1)
    return int(np.count_nonzero((best == labels[:, None]).any(axis=1) & known))


def evaluate(
    net: Sequential,
    photos: PhotoSet,
    augment: Augment,
    batch_size: int = 64,
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Mean loss, top-1 and top-5 of the centre crops of `photos`, with dropout in test mode.

    net and augment on one device. on_batch is called after each batch (training ends there if it
    is asked to). ValueError for an empty set or labels the net has no class for.
    """
    if not len(photos):
        raise ValueError("evaluate: the set has no photos")
    loss = SoftmaxCrossEntropy()
    loss.to(net.device, net.dtype)
    total, top1, top5 = 0.0, 0, 0
    for images, labels in ordered_batches(photos, batch_size):
        logits = net.forward(augment.centre(images), train=False)
        total += loss.forward(logits, labels) * len(labels)
        probabilities = net.device.to_host(loss.probabilities)
        top1 += hits(probabilities, labels, 1)
        top5 += hits(probabilities, labels, 5)
        if on_batch is not None:
            on_batch()
    count = len(photos)
    return Evaluation(total / count, top1 / count, top5 / count)
