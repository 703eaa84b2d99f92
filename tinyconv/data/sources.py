"""Lists the photos of a source: a folder or an archive, in any of these layouts.

    {train,val}/<class>/...                     in a folder, a tar, or a small .tar.gz
    train/<class>/..., val/*, and labels        val without folders, as ILSVRC 2012 has it
    train/<class>/images/*, val/images/*        Tiny-ImageNet-200, with its val_annotations.txt
    ILSVRC2012_img_{train,val}.tar, and labels  its official archives (`ilsvrc.py`)
    <class>/...                                 and a share that is set aside for validation
    images/<class>/..., and lists of photos     Food-101, CUB-200, Indoor-67 (`splits.py`)
    any photos, and labels for them             and a share that is set aside
    cifar-10-binary.tar.gz                      or its folder (`cifar10.py`)

Upper and lower case do not matter in train and val, nor do `training/` and, if it has class folders
and there is no `val/`, `validation/`, `valid/`, `test/` or `testing/`. All this may be in one
folder. Classes are sorted by name, and so are the photos of a class: equal photos give equal
listings, whatever the file system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tinyconv.data import ilsvrc
from tinyconv.data.cifar10 import list_cifar10
from tinyconv.data.ilsvrc import TRAIN_ARCHIVE, VAL_ARCHIVE
from tinyconv.data.listing import EXPECTED, Found, Listed, Listing, Photo, SourceError, quoted, some
from tinyconv.data.random_arrays import permutation
from tinyconv.data.splits import listed_photos
from tinyconv.data.trees import Tree, open_tree

SHARE = 2**32 - 6
"""Stream of the generator that draws the validation photos (see `augment.py`)."""

TRAIN_NAMES = ("train", "training")
OTHER_NAMES = ("validation", "valid", "test", "testing")
"""Folders with class folders that serve as val if there is none."""

SPLITS = ("train", "val")

_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_ANNOTATIONS = "val_annotations.txt"


@dataclass
class Options:
    """How a source is to be read.

    labels: a file with labels for photos without class folders; None: searched beside them.
    labels_from: the number of the first class in it, 0 or 1, where labels are numbers. val_share:
    between 0 and 1, for a source without validation photos; seed: of their choice. splits: those
    that are needed; others are not listed.
    """

    labels: str | os.PathLike[str] | None = None
    labels_from: int = 0
    val_share: float | None = None
    seed: int = 0
    splits: tuple[str, ...] = SPLITS


def list_source(
    source: str | os.PathLike[str], options: Options | None = None, listed: Listed | None = None
) -> Listing:
    """List the photos of a source and their classes.

    listed is called from time to time with the number of further files. SourceError, one line that
    says what was found and what is expected.
    """
    path, options = Path(os.path.abspath(source)), options or Options()
    if not path.exists():
        raise SourceError(f"no such file or folder: {quoted(source)}")
    if options.val_share is not None and not 0 < options.val_share < 1:
        share = options.val_share
        raise SourceError(f"--val-share must be between 0 and 1, such as 0.2, not {share}")
    try:
        listing = list_cifar10(path)
        if listing is None:
            listing = _Source(path, options, listed).listing()
        elif options.labels or options.val_share:
            raise SourceError(f"{quoted(source)} is CIFAR-10: leave out --labels and --val-share")
    except OSError as error:
        where = quoted(error.filename or source)
        raise SourceError(f"cannot read {where}: {error.strerror or error}") from error
    listing.photos = [each for each in listing.photos if each.split in options.splits]
    if len(listing.class_ids) < 2:
        raise SourceError(
            f"only one class in {quoted(source)} ({some(listing.class_ids)}): a classifier needs "
            "at least two"
        )
    return listing


Classed = list[tuple[str, str, Found]]
"""(split, class, file) of each photo."""


@dataclass
class _Source:
    """A source, its options, and what its listing shall say."""

    path: Path
    options: Options
    listed: Listed | None
    names: dict[str, str] = field(default_factory=dict)  # of classes, from the file with labels

    def listing(self) -> Listing:
        self.tree, self.notes = open_tree(self.path, self.listed)
        while (inner := _only_folder(self.tree)) is not None:
            self.tree = self.tree.below(inner)
        # Labels and names are beside the photos or beside the archive.
        self.near = [self.path.parent]
        if self.path.is_dir():
            self.near[:0] = [self.path / self.tree.prefix, self.path]
        archives = {each.name.rpartition("/")[2]: each for each in self.tree.loose}
        train = self._folder(TRAIN_NAMES) or archives.get(TRAIN_ARCHIVE)
        val = self._folder(("val",)) or archives.get(VAL_ARCHIVE) or self._folder(OTHER_NAMES, True)
        if isinstance(train, str) and not val and not self.tree.below(train).folders:
            train = None  # a class of this name
        found = {"train": train, "val": val}
        places = {split: found[split] for split in self.options.splits if found[split]}
        if not train and not val:
            kind, classed = self._one_folder()
        elif len(places) == len(self.options.splits):
            kind, classed = self._splits(places)
        else:
            missing = next(split for split in self.options.splits if split not in places)
            raise SourceError(
                f"{quoted(self.path)} has no folder {missing!r} ({self._inside()}): rename the one "
                f"that takes its place; {EXPECTED}"
            )
        ids = sorted({name for _, name, _ in classed})
        label_of = {name: label for label, name in enumerate(ids)}
        names = ilsvrc.read_class_names(self.near) | self.names
        listing = Listing(
            kind,
            _text(self.path.name),
            tuple(_text(name) for name in ids),
            tuple(_text(names.get(name, name)) for name in ids),
            [Photo(split, label_of[name], each) for split, name, each in classed],
            notes=self.notes,
        )
        if not train and self.options.val_share is not None:
            listing.choices = {"val_share": self.options.val_share, "seed": self.options.seed}
        return listing

    def _folder(self, names: tuple[str, ...], classed: bool = False) -> str | None:
        """The folder with the first of these names, in any case; classed: it has folders."""
        for name in names:
            found = [each for each in self.tree.folders if each.lower() == name]
            for each in sorted(found, reverse=True):  # "val" before "Val"
                if not classed or self.tree.below(each).folders:
                    return each
        return None

    def _splits(self, places: dict[str, str | Found | None]) -> tuple[str, Classed]:
        """The source has the photos of each split in a place; returns its kind and the photos."""
        if self.options.val_share is not None:
            raise SourceError(f"{quoted(self.path)} has its own val: leave out --val-share")
        kind, photos, ids = "train/ and val/", Classed(), None
        for split, place in places.items():
            classes = self._class_folders(split, place)
            if classes is None:
                kind = "train, and val with labels in a file"
                photos += self._without_folders(place, ids)
                continue
            if self.options.labels and split == "val":
                raise SourceError(f"{quoted(self.path)}: val has class folders: leave out --labels")
            self._check_not_empty(place if isinstance(place, str) else "", classes)
            if ids is not None:
                self._check_same_classes(ids, set(classes), places)
            ids = set(classes)
            photos += [(split, name, each) for name in sorted(classes) for each in classes[name]]
        for split in places:
            if not any(each == split for each, _, _ in photos):
                raise SourceError(f"{quoted(self.path)}: {split} is empty: put photos there")
        return kind, photos

    def _class_folders(self, split: str, place: str | Found | None) -> dict | None:
        """The photos by class, or None for validation photos that have no class folders."""
        if isinstance(place, Found):
            return ilsvrc.train_classes(place, self.listed) if split == "train" else None
        tree = self.tree.below(place or "")
        if split == "val" and any(each.name.endswith(f"/{_ANNOTATIONS}") for each in tree.loose):
            return None
        if tree.folders:
            return {name: _photos_of(tree.below(name)) for name in tree.folders}
        if split == "val":
            return None
        raise SourceError(
            f"{quoted(self.path)}: {place} has no class folders; make one for each class"
        )

    def _without_folders(self, place: str | Found | None, ids: set[str] | None) -> Classed:
        """Validation photos with labels in a file; ids: the classes, if they are known."""
        tree = None if isinstance(place, Found) else self.tree.below(place or "")
        files = tree.files if tree else ilsvrc.photos(place)  # type: ignore[arg-type]
        table = (
            [each for each in tree.loose if each.name.endswith(f"/{_ANNOTATIONS}")] if tree else []
        )
        photos = self._labelled(files, sorted(ids) if ids else None, table[0] if table else None)
        for each, name in photos:
            if ids is not None and name not in ids:
                raise SourceError(
                    f"{quoted(self.path)}: the labels say that {quoted(each.name)} is of the "
                    f"class {quoted(name)}, which is not in 'train'"
                )
        return [("val", name, each) for each, name in photos]

    def _check_same_classes(self, train: set[str], val: set[str], places: dict) -> None:
        for one, other, missing in (
            (places["train"], places["val"], val - train),
            (places["val"], places["train"], train - val),
        ):
            if missing:
                one, other = (each if isinstance(each, str) else "train" for each in (one, other))
                raise SourceError(
                    f"{quoted(self.path)}: {one} lacks the class {some(sorted(missing))} of "
                    f"{other}; both need a folder for every class"
                )

    def _one_folder(self) -> tuple[str, Classed]:
        """Photos of both splits, to be told apart by lists or by chance."""
        share, listed = self.options.val_share, None
        if self.options.labels:
            kind, photos = "photos with labels", self._labelled(self.tree.files, None)
        else:
            images = self._folder(("images",), True)
            tree = self.tree.below(images) if images else self.tree
            classes = {name: tree.below(name).files for name in tree.folders}
            nested = [name for name in tree.folders if _holds_folders(tree.below(name))]
            if not classes or nested:
                raise SourceError(f"{quoted(self.path)}: {self._inside()}; {EXPECTED}")
            self._check_not_empty(images or "", classes)
            kind, photos = "<class>/", [(each, name) for name in classes for each in classes[name]]
            listed = listed_photos(self.tree, tree.prefix, [each for each, _ in photos])
        if listed and share is not None:
            raise SourceError(f"{quoted(self.path)} has {listed.kind}: leave out --val-share")
        if listed:
            kind, split = f"<class>/ and {listed.kind}", listed.splits
            self.notes.append(f"train and val: from {listed.kind}")
        elif share is None:
            classes_found = sorted({name for _, name in photos})
            raise SourceError(
                f"{quoted(self.path)} has no train/ and val/, but {len(photos):,} files of "
                f"{len(classes_found):,} classes ({some(classes_found)}): add --val-share 0.2, "
                "which sets a fifth of them aside for validation"
            )
        else:
            split = self._drawn(len(photos), share)
        # The order within a split is that of the classes, then of the files.
        found = zip(split, photos, strict=True)
        classed = [(each, name, photo) for each, (photo, name) in found if each]
        return kind, sorted(classed, key=lambda photo: photo[0])

    def _drawn(self, photos: int, share: float) -> list[str]:
        count = round(share * photos)
        if not 0 < count < photos:
            raise SourceError(
                f"--val-share {share} of {photos:,} photos is {count:,}: it leaves "
                f"none to {'train' if count else 'validate'} with"
            )
        drawn = set(permutation(photos, self.options.seed, SHARE, 0)[:count].tolist())
        return ["val" if place in drawn else "train" for place in range(photos)]

    def _labelled(
        self, photos: list[Found], class_ids: list[str] | None, table: Found | None = None
    ) -> list[tuple[Found, str]]:
        """Photos without class folders, each with its class id; table: of Tiny-ImageNet-200."""
        if table:
            rows = table.read().decode("utf-8", "replace").splitlines()
            text = "\n".join("\t".join(row.split("\t")[:2]) for row in rows)
            labels = ilsvrc.labels_in(text, Path(table.name), class_ids)
        else:
            given, first = self.options.labels, self.options.labels_from
            path = None if given is None else Path(given)
            labels = ilsvrc.read_labels(path, self.near, class_ids, first)
        self.names = labels.class_names
        file = os.path.abspath(labels.path)  # may be among the photos
        photos = [each for each in photos if each != table and (each.path != file or each.offset)]
        if without := [each.name for each in photos if labels.of(each.name) is None]:
            raise SourceError(f"{quoted(labels.path)} has no label for {some(without)}")
        self.notes += labels.notes
        if len(labels.classes) > len(photos):
            self.notes.append(f"note: {len(labels.classes):,} labels for {len(photos):,} photos")
        return [(each, labels.of(each.name) or "") for each in photos]

    def _check_not_empty(self, above: str, classes: dict[str, list[Found]]) -> None:
        for name, photos in classes.items():
            if not photos:
                raise SourceError(
                    f"{quoted(self.path / above / name)} is empty: put photos there or remove the "
                    "class"
                )

    def _inside(self) -> str:
        shown = []
        for name in self.tree.folders[:5]:
            inner = self.tree.below(name).folders
            shown.append(quoted(name) + (f" with folders {some(inner)}" if inner else ""))
        more = ", ..." if len(self.tree.folders) > 5 else ""
        beside = len(self.tree.loose)
        return f"folders: {', '.join(shown) or 'none'}{more}; files beside them: {beside:,}"


def _photos_of(tree: Tree) -> list[Found]:
    """The photos of a class; in Tiny-ImageNet-200, those in images/, beside a text file."""
    if tree.folders == ["images"] and all(each.name.endswith(".txt") for each in tree.loose):
        return tree.below("images").files
    return tree.files


def _holds_folders(tree: Tree) -> bool:
    return len(tree.folders) > 1 and not tree.loose


def _only_folder(tree: Tree) -> str | None:
    """The folder to look into instead of this tree, if there is one."""
    for depth, name in enumerate(_KAGGLE):
        if name in tree.folders and tree.prefix == "".join(f"{x}/" for x in _KAGGLE[:depth]):
            return name
    known = ("val", *TRAIN_NAMES, *OTHER_NAMES)
    if tree.prefix or len(tree.folders) != 1 or tree.folders[0].lower() in known:
        return None
    inside = tree.below(tree.folders[0]).folders
    has_train = {each.lower() for each in inside} & set(TRAIN_NAMES)
    return tree.folders[0] if has_train or not tree.loose else None


def _text(name: str) -> str:
    """A name that can be stored as UTF-8, whatever bytes the file system has in it."""
    return name.encode("utf-8", "backslashreplace").decode()
