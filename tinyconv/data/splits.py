"""Lists of photos that tell training from validation photos, as some data sets have them.

    meta/test.txt                            Food-101: "apple_pie/1005649" in each line
    TestImages.txt                           Indoor-67: "kitchen/int474.jpg"
    images.txt, train_test_split.txt         CUB-200: "17 001.Albatross/x.jpg" and "17 0" (or 1)

Photos that are in no list of validation photos are training photos.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyconv.data.listing import Found, SourceError, quoted, some
from tinyconv.data.trees import Tree

LISTS = ("test.txt", "testimages.txt", "val.txt")
FOLDERS = ("meta", "lists", "splits")
_MAX_LIST = 2**26


class ListedPhotos(NamedTuple):
    """What tells the photos apart, and "train" or "val" for each of them."""

    kind: str
    splits: list[str]


def listed_photos(tree: Tree, prefix: str, photos: list[Found]) -> ListedPhotos | None:
    """The split of each photo, if lists in `tree` say so; prefix: of the photos' names.

    SourceError for a list that names photos which do not exist.
    """
    files = {each.name[len(tree.prefix) :]: each for each in tree.loose}
    for folder in FOLDERS:
        files |= {each.name[len(tree.prefix) :]: each for each in tree.below(folder).loose}
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
    return ListedPhotos(kind, ["val" if place in val else "train" for place in range(len(photos))])


def _lines(found: Found) -> list[str]:
    if found.size > _MAX_LIST:
        raise SourceError(f"{quoted(found.name)} is too large for a list of photos")
    lines = (line.strip() for line in found.read().decode("utf-8", "replace").splitlines())
    return [line for line in lines if line]
