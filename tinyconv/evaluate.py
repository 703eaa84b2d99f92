"""Top-1 and top-5 accuracy and loss of a net on photos that it was not trained on (paper §4.1).

The net gets the centre of each photo, or ten views of it (`Augment.ten_views`), whose probabilities
are averaged; `tools/ensemble.py` also averages over nets.

    p[n, c] = 1/V Σ_v softmax(z[v, n])[c]              loss = − 1/N Σ_n log p[n, label[n]]

Probabilities are kept as logarithms, which stay finite where a probability underflows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyconv.data.augment import VIEWS, Augment
from tinyconv.data.loader import Loader
from tinyconv.sequential import Sequential


@dataclass(frozen=True)
class Evaluation:
    """Mean loss; shares of photos (0 to 1) whose label is the most probable, or among five."""

    loss: float
    top1: float
    top5: float

    def __str__(self) -> str:
        return f"top-1 {self.top1:.1%}, top-5 {self.top5:.1%}, loss {self.loss:.4f}"


def likeliest(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The k most probable classes of each row of (N, C), best first: (N, k), or (N, C) if C < k.

    Of equal values the first counts as the larger, as in argmax, so that a net with equal outputs
    scores no better than chance. probabilities: or any monotonic function of them, such as logits.
    """
    if k == 1:  # the first of equals, as in the stable order, without sorting
        return np.argmax(probabilities, axis=1)[:, None]
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


def count_hits(probabilities: np.ndarray, labels: np.ndarray, k: int) -> int:
    """How many rows of (N, C) have their label among the k `likeliest`.

    A row with a non-finite value never counts.
    """
    best = likeliest(probabilities, k)
    finite = np.isfinite(probabilities).all(axis=1)
    return int(np.count_nonzero((best == labels[:, None]).any(axis=1) & finite))


def evaluate(
    net: Sequential,
    photos: Any,
    augment: Augment,
    batch_size: int = 64,
    views: str = "centre",
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Mean loss, top-1 and top-5 of `photos`, with dropout in test mode (paper §4.1).

    net and augment on one device; photos: a PhotoSet, in memory or of a store; batch_size: crops
    per forward pass; views: "centre", or "ten" to average ten of each photo; on_batch is called
    after each batch. ValueError for an empty set, labels that are not classes of the net, or other
    views.
    """
    check_views(views)
    if not len(photos):
        raise ValueError("evaluate: the set has no photos")
    tally = Tally()
    with Loader(photos, photos_at_once(batch_size, views), net.device) as loader:
        for images, labels, _ in loader.ordered():
            tally.add(average(log_probabilities(net, augment, images, views)), labels)
            if on_batch is not None:
                on_batch()
    return tally.evaluation()


# --- views, and their average


def check_views(views: str) -> None:
    """ValueError unless views is "centre" or "ten"."""
    if views not in ("centre", "ten"):
        raise ValueError(f"evaluate: views must be 'centre' or 'ten', not {views!r}")


def photos_at_once(batch_size: int, views: str) -> int:
    """Photos whose views make at most `batch_size` crops, or one photo. ValueError below 1."""
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, not {batch_size}")
    return max(1, batch_size // VIEWS) if views == "ten" else batch_size


def log_probabilities(net: Sequential, augment: Augment, images: Any, views: str) -> np.ndarray:
    """The logarithms of the net's probabilities for each view, float64 (V, N, C).

    images: uint8 (N, S, S, 3); V is 1 for "centre", 10 for "ten", in the order of
    `Augment.ten_views`.
    """
    x = augment.ten_views(images) if views == "ten" else augment.centre(images)
    logits = net.device.to_host(net.forward(x, train=False)).astype(np.float64)
    z = logits.reshape(len(images), -1, logits.shape[-1]).swapaxes(0, 1)
    with np.errstate(invalid="ignore"):  # NaN logits give NaN results, which are reported there
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def average(logs: np.ndarray) -> np.ndarray:
    """The mean over V of probabilities given as logarithms, (V, N, C), as logarithms (N, C)."""
    if len(logs) == 1:
        return logs[0]
    with np.errstate(invalid="ignore"):
        largest = logs.max(axis=0)
        return largest + np.log(np.exp(logs - largest).mean(axis=0))


# --- counting


class Tally:
    """Predictions and labels of the photos so far."""

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._loss = 0.0

    def add(self, logs: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: logarithms of probabilities (N, C) and labels (N,).

        ValueError for a label that is not a class of the net.
        """
        classes = logs.shape[1]
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            raise ValueError(f"evaluate: a label is {wrong[0]}, and the net has {classes} classes")
        finite = np.isfinite(logs).all(axis=1)
        best = likeliest(logs, 5)
        in_top5 = (best == labels[:, None]).any(axis=1) & finite
        self._loss -= float(logs[np.arange(len(labels)), labels].sum())
        self._batches.append((labels, np.where(finite, best[:, 0], -1), in_top5))

    def photos(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(labels, predictions, label is in the top five) of all photos so far, (N,) each.

        A prediction is the most probable class, or -1 if the net's output was not finite.
        """
        labels, predicted, in_top5 = (np.concatenate(x) for x in zip(*self._batches, strict=True))
        return labels, predicted, in_top5

    def evaluation(self) -> Evaluation:
        """Loss and accuracy of all photos so far; needs at least one batch."""
        labels, predicted, in_top5 = self.photos()
        count = len(labels)
        right = int(np.count_nonzero(predicted == labels))
        return Evaluation(self._loss / count, right / count, int(np.count_nonzero(in_top5)) / count)
