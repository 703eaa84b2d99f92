"""The averaged predictions of several trained nets (paper §6: five, and seven).

Each net gets a photo preprocessed as in its own training: its size, mean image and divisor.
Probabilities are averaged over the views, then over the nets.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layers import Device
from tinyconv.data.augment import Augment
from tinyconv.data.listing import quoted
from tinyconv.data.loader import Loader
from tinyconv.data.photos import PhotoError, decode_square
from tinyconv.evaluate import (
    Tally,
    average,
    check_views,
    likeliest,
    log_probabilities,
    photos_at_once,
)
from tinyconv.recipes import Recipe
from tinyconv.run.checkpoint import CheckpointError, load_model
from tinyconv.sequential import Sequential

CENTRE = 4
"""The index of the centre crop among the ten views (`Augment.ten_views`)."""


@dataclass
class Member:
    """A trained net with the preprocessing of its photos and the ids and names of its classes."""

    name: str
    net: Sequential
    augment: Augment
    class_ids: list[str]
    class_names: list[str]

    @property
    def size(self) -> int:
        """Side S in pixels of the photos, equal to that of the mean image."""
        return len(self.augment.mean)


def load_member(
    path: str | Path, device: Device, precision: str = "fp32", kernels: str = "fast"
) -> Member:
    """The net in `path` (weights, a checkpoint, or a run's folder) on `device`.

    CheckpointError for a file that cannot be used.
    """
    model = load_model(path, device, precision, kernels)
    try:
        divisor = Recipe(**model.settings["recipe"]).input_divisor
        augment = Augment(model.mean_image, model.settings["image_size"], divisor)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its mean image does not fit ({error})") from None
    names = model.class_names
    ids = model.settings.get("class_ids", names)
    augment.to(device, model.net.dtype)
    return Member(str(path), model.net, augment, [str(each) for each in ids], names)


def first_other_class(
    name: str, ids: Sequence[str], other_name: str, other_ids: Sequence[str]
) -> str:
    """A message about the first class in which two lists differ; "" if they are equal."""
    for place, (one, other) in enumerate(zip(ids, other_ids, strict=False)):
        if one != other:
            return f"class {place} is {quoted(one)} in {name} and {quoted(other)} in {other_name}"
    if len(ids) != len(other_ids):
        return f"{name} has {len(ids)} classes and {other_name} has {len(other_ids)}"
    return ""


def check_members(members: Sequence[Member]) -> None:
    """ValueError that names the first difference if the nets were trained on other classes."""
    first = members[0]
    for other in members[1:]:
        difference = first_other_class(first.name, first.class_ids, other.name, other.class_ids)
        if difference:
            raise ValueError(f"{difference}: their predictions cannot be averaged")


@dataclass(frozen=True)
class Row:
    """The result of one net, or of the average of all (name ""), on one kind of views."""

    name: str
    views: str
    tally: Tally


def evaluate_members(
    members: Sequence[Member],
    photos: dict[int, Any],
    views: Sequence[str] = ("centre", "ten"),
    batch_size: int = 64,
    progress: Any = None,
) -> list[Row]:
    """Evaluate every net, and their average if there are several, on all photos.

    photos: the same photos in each size that a net needs, by size; views: "centre", "ten" or both;
    batch_size: crops per forward pass; progress wraps the iteration like tqdm:
    progress(iterable, total=number of batches). Returns the rows of each net in the order of the
    members, then those of their average. ValueError for other views, an empty set, or sets that
    are not the same photos.
    """
    for each in views:
        check_views(each)
    first = photos[members[0].size]
    if not len(first):
        raise ValueError("evaluate: the set has no photos")
    if any(not np.array_equal(each.labels, first.labels) for each in photos.values()):
        raise ValueError("evaluate: a photo could be read in one size but not in another")
    computed = "ten" if "ten" in views else "centre"
    count = photos_at_once(batch_size, computed)
    names = [member.name for member in members] + ([""] if len(members) > 1 else [])
    rows = [Row(name, each, Tally()) for name in names for each in views]
    batches = _batches(photos, count, members[0].net.device)
    total = -(-len(first) // count)
    for images, labels in batches if progress is None else progress(batches, total=total):
        every = [log_probabilities(m.net, m.augment, images[m.size], computed) for m in members]
        for place, each in enumerate(views):
            centre_only = computed == "ten" and each == "centre"
            means = [average(logs[[CENTRE]] if centre_only else logs) for logs in every]
            if len(members) > 1:
                means.append(average(np.stack(means)))
            for row, mean in zip(rows[place :: len(views)], means, strict=True):
                row.tally.add(mean, labels)
    return rows


def _batches(
    photos: dict[int, Any], count: int, device: Device
) -> Iterator[tuple[dict[int, Any], np.ndarray]]:
    """(images by size, labels) of each batch."""
    with ExitStack() as stack:
        loaders = {
            size: stack.enter_context(Loader(each, count, device)) for size, each in photos.items()
        }
        for batches in zip(*(each.ordered() for each in loaders.values()), strict=True):
            images = {size: batch.images for size, batch in zip(loaders, batches, strict=True)}
            yield images, batches[0].labels


def predict(
    members: Sequence[Member], photo: str | Path, views: str = "ten", k: int = 5
) -> list[tuple[int, float]]:
    """The k most probable classes of a photo in any format, best first: (label, probability).

    PhotoError for a file that cannot be read as a photo; ValueError for non-finite predictions.
    """
    check_views(views)
    path = Path(photo)
    if path.exists() and not path.is_file():  # opening a pipe would wait forever
        raise PhotoError("not an ordinary file")
    squares = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
        for size in {member.size for member in members}:
            squares[size] = decode_square(str(path), size)[None]
    every = [log_probabilities(m.net, m.augment, squares[m.size], views) for m in members]
    logs = average(np.stack([average(each) for each in every]))
    if not np.isfinite(logs).all():
        raise ValueError(f"{photo}: the predictions are not finite; did training fail?")
    best = likeliest(logs, k)[0]
    return [(int(place), float(np.exp(logs[0, place]))) for place in best]
