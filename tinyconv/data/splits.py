"""Tells training from validation photos where the photos of both are in the same class folders.

By lists of photos, as some data sets have them:

    meta/test.txt                            Food-101: "apple_pie/1005649" in each line
    TestImages.txt                           Indoor-67: "kitchen/int474.jpg"
    images.txt, train_test_split.txt         CUB-200: "17 001.Albatross/x.jpg" and "17 0" (or 1)

Photos that are in no list of validation photos are training photos. Or by chance: a share of all
photos, or half of each class, as the paper tests on ImageNet of Fall 2009 (§5).
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinyconv.data.listing import Found, SourceError, quoted, some
from tinyconv.data.photos import SPLITS
from tinyconv.data.random_arrays import permutation
from tinyconv.data.trees import Tree

SHARE = 2**32 - 6
"""Stream of the generator that draws the validation photos (see `augment.py`)."""

LISTS = ("test.txt", "testimages.txt", "val.txt")
FOLDERS = ("meta", "lists", "splits")


@dataclass
class Options:
    """Which of the photos are taken, and how they get their labels and splits.

    labels: a file with labels for photos without class folders; None: searched beside them.
    labels_from: the number of the first class in it, 0 or 1, where labels are numbers. For a source
    without validation photos, val_share: of all photos, between 0 and 1, or halves: half of each
    class; seed: of their choice. splits: those that are needed; others are not listed.
    """

    labels: str | os.PathLike[str] | None = None
    labels_from: int = 0
    val_share: float | None = None
    halves: bool = False
    seed: int = 0
    splits: tuple[str, ...] = SPLITS

    def drawing(self) -> str:
        """The option that draws validation photos, as it is typed, or ""."""
        return "--split half" if self.halves else "--val-share" if self.val_share else ""

    def choices(self) -> dict[str, Any]:
        """What decided which photos are for validation, to be recorded."""
        if self.halves:
            return {"split": "half", "seed": self.seed}
        return {"val_share": self.val_share, "seed": self.seed} if self.val_share else {}

    def check(self) -> None:
        """SourceError for values that cannot be used with any source."""
        if self.val_share is not None and not 0 < self.val_share < 1:
            share = self.val_share
            raise SourceError(f"--val-share must be between 0 and 1, such as 0.2, not {share}")
        if self.halves and self.val_share:
            raise SourceError("--val-share and --split half exclude each other: give one of them")
        if not 0 <= self.seed < 2**64:
            raise SourceError(f"seed {self.seed}: must be from 0 to 2**64 - 1")


class ListedPhotos(NamedTuple):
    """What tells the photos apart, and "train" or "val" for each of them."""

    kind: str
    splits: list[str]


def listed_photos(tree: Tree, prefix: str, photos: list[Found]) -> ListedPhotos | None:
    """The split of each photo, if lists in `tree` say so; prefix: of the photos' names.

    SourceError for a list that names photos which do not exist.
    """
    files = tree.top()
    for folder in FOLDERS:
        files |= {f"{folder}/{name}": each for name, each in tree.below(folder).top().items()}
    if {"images.txt", "train_test_split.txt"} <= set(files):
        kind = "train_test_split.txt"
        names = dict(line.split(None, 1) for line in _lines(files["images.txt"]) if " " in line)
        pairs = (line.split() for line in _lines(files[kind]))
        wanted = {names.get(pair[0], pair[0]) for pair in pairs if pair[1:] == ["0"]}
    else:
        kind = next((name for name in files if name.rpartition("/")[2].lower() in LISTS), "")
        if not kind:
            return None
        wanted = set(_lines(files[kind]))
    by_name = {each.name[len(prefix) :]: place for place, each in enumerate(photos)}
    by_name |= {name.rpartition(".")[0]: place for name, place in by_name.items() if "." in name}
    if unknown := sorted(wanted - set(by_name)):
        raise SourceError(f"{quoted(kind)} names photos that are not there: {some(unknown)}")
    val = {by_name[name] for name in wanted}
    if not 0 < len(val) < len(photos):
        raise SourceError(f"{quoted(kind)} names {len(val):,} of {len(photos):,} photos")
    return ListedPhotos(kind, _told_apart(len(photos), val))


def drawn_share(photos: int, share: float, seed: int) -> list[str]:
    """The split of each of so many photos: a share of them, drawn by the seed, is for validation.

    SourceError if that leaves none for one of the splits.
    """
    count = round(share * photos)
    if not 0 < count < photos:
        raise SourceError(
            f"--val-share {share} of {photos:,} photos is {count:,}: it leaves "
            f"none to {'train' if count else 'validate'} with"
        )
    return _told_apart(photos, set(permutation(photos, seed, SHARE, 0)[:count].tolist()))


def drawn_halves(photos: list[tuple[str, str]], seed: int) -> list[str]:
    """The split of each photo, (name, class): half of each class is for validation (§5).

    The first half in the order of SHA-256(seed, name). So the order of the files and the other
    classes have no influence. Of an odd number, one more is for training. SourceError if no class
    has two photos.
    """
    classes = defaultdict(list)
    for place, (name, label) in enumerate(photos):
        key = f"{seed} {name}".encode("utf-8", "surrogateescape")
        classes[label].append((hashlib.sha256(key).digest(), place))
    val = {place for each in classes.values() for _, place in sorted(each)[: len(each) // 2]}
    if not val:
        raise SourceError("--split half needs a class with two photos: there is none")
    return _told_apart(len(photos), val)


def _told_apart(photos: int, val: set[int]) -> list[str]:
    return ["val" if place in val else "train" for place in range(photos)]


def _lines(found: Found) -> list[str]:
    lines = (line.strip() for line in found.read().decode("utf-8", "replace").splitlines())
    return [line for line in lines if line]
