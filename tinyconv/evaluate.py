"""How good is the net? Top-1 and top-5 accuracy on photos it was not trained on (paper §4.1).

The likeliest class is the net's answer. It is asked about the centre of each photo, or about ten
views of it (`Augment.ten_views`), or together with other nets (`ensemble.py`); answers are averaged
as probabilities:

    p[n, c] = 1/V Σ_v softmax(z[v, n])[c]              loss = − 1/N Σ_n log p[n, label[n]]

They are kept as logarithms, which stay finite where a probability is too small for a number.
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
    """Mean loss, and the shares of photos (0 to 1) whose class is the likeliest, or among five."""

    loss: float
    top1: float
    top5: float

    def __str__(self) -> str:
        return f"top-1 {self.top1:.1%}, top-5 {self.top5:.1%}, loss {self.loss:.4f}"


def likeliest(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The k likeliest classes of each row of (N, C), best first: (N, k), or (N, C) if C < k.

    Of equal values the first counts as the larger, as in argmax: a net that gives every class the
    same must not pass for one that knows. Any monotonic function of probabilities will do.
    """
    if k == 1:  # the first of equals, as in the stable order, without sorting
        return np.argmax(probabilities, axis=1)[:, None]
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


def count_hits(probabilities: np.ndarray, labels: np.ndarray, k: int) -> int:
    """How many rows of (N, C) have their label among the k `likeliest`.

    A row with a number that is not finite is never a hit.
    """
    best = likeliest(probabilities, k)
    known = np.isfinite(probabilities).all(axis=1)
    return int(np.count_nonzero((best == labels[:, None]).any(axis=1) & known))


def evaluate(
    net: Sequential,
    photos: Any,
    augment: Augment,
    batch_size: int = 64,
    views: str = "centre",
    on_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Mean loss, top-1 and top-5 of `photos`, with dropout in test mode (paper §4.1).

    net and augment on one device; photos: a PhotoSet or a store's StoredPhotos; batch_size: crops
    that go through the net at once; views: "centre", or "ten" to average ten of each photo.
    on_batch is called after each batch (training ends there if it is asked to). ValueError for an
    empty set, labels the net has no class for, or other views.
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
    """ValueError for anything but "centre" and "ten"."""
    if views not in ("centre", "ten"):
        raise ValueError(f"evaluate: views must be 'centre' or 'ten', not {views!r}")


def photos_at_once(batch_size: int, views: str) -> int:
    """Photos whose views make at most `batch_size` crops, or one photo. ValueError below 1."""
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, not {batch_size}")
    return max(1, batch_size // VIEWS) if views == "ten" else batch_size


def log_probabilities(net: Sequential, augment: Augment, images: Any, views: str) -> np.ndarray:
    """What the net says of each view, as logarithms of probabilities: float64 (V, N, C).

    images: uint8 (N, S, S, 3); V is 1 for "centre", 10 for "ten", in the order of
    `Augment.ten_views`.
    """
    x = augment.ten_views(images) if views == "ten" else augment.centre(images)
    logits = net.device.to_host(net.forward(x, train=False)).astype(np.float64)
    z = logits.reshape(len(images), -1, logits.shape[-1]).swapaxes(0, 1)
    with np.errstate(invalid="ignore"):  # a net that has gone to NaN is told by its results
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def average(logs: np.ndarray) -> np.ndarray:
    """The mean over V of probabilities given as logarithms, (V, N, C), as logarithms (N, C)."""
    if len(logs) == 1:
        return logs[0]
    with np.errstate(invalid="ignore"):
        largest = logs.max(axis=0)
        return largest + np.log(np.exp(logs - largest).mean(axis=0))


# --- keeping count


class Tally:
    """What was said of photo after photo, and what they were."""

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._loss = 0.0

    def add(self, logs: np.ndarray, labels: np.ndarray) -> None:
        """Count a batch: logarithms of probabilities (N, C) and labels (N,).

        ValueError for a label that is no class.
        """
        classes = logs.shape[1]
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            raise ValueError(f"evaluate: a label is {wrong[0]}, and the net has {classes} classes")
        known = np.isfinite(logs).all(axis=1)
        best = likeliest(logs, 5)
        among = (best == labels[:, None]).any(axis=1) & known
        self._loss -= float(logs[np.arange(len(labels)), labels].sum())
        self._batches.append((labels, np.where(known, best[:, 0], -1), among))

    def photos(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(labels, answers, whether the label was among five) of all photos so far, (N,) each.

        An answer is the likeliest class, or -1 where the net gave something else than numbers.
        """
        labels, answers, among = (np.concatenate(each) for each in zip(*self._batches, strict=True))
        return labels, answers, among

    def evaluation(self) -> Evaluation:
        """Of all photos so far, at least one batch of them."""
        labels, answers, among = self.photos()
        count = len(labels)
        right = int(np.count_nonzero(answers == labels))
        return Evaluation(self._loss / count, right / count, int(np.count_nonzero(among)) / count)
