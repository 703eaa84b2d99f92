"""Lists the photos of a source: a folder or an archive, in any of these layouts.

    {train,val}/<class>/...                     in a folder, a tar, or a small .tar.gz
    train/<class>/..., val/*, and labels        val without folders, as ILSVRC 2012 has it
    train/<class>/images/*, val/images/*        Tiny-ImageNet-200, with its val_annotations.txt
    ILSVRC2012_img_{train,val}.tar, and labels  its official archives (`ilsvrc.py`)
    <class>/...                                 and a share or half set aside for validation
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
from tinyconv.data.archives import list_members
from tinyconv.data.cifar10 import list_cifar10
from tinyconv.data.ilsvrc import TRAIN_ARCHIVE, VAL_ARCHIVE
from tinyconv.data.listing import EXPECTED, Found, Listed, Listing, Photo, SourceError, quoted, some
from tinyconv.data.splits import Options, drawn_halves, drawn_share, listed_photos
from tinyconv.data.trees import Tree, open_tree, sorted_tree

TRAIN_NAMES = ("train", "training")
OTHER_NAMES = ("validation", "valid", "test", "testing")
"""Folders with class folders that serve as val if there is none."""

_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_ANNOTATIONS = "val_annotations.txt"


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
    options.check()
    try:
        listing = _Source(path, options, listed).listing()
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


Pairs = list[tuple[Found, str]]
"""(file, class) of each photo."""

Classed = list[tuple[str, str, Found]]
"""(split, class, file) of each photo."""


@dataclass
class _Source:
    """A source, its options, and what its listing shall say."""

    path: Path
    options: Options
    listed: Listed | None
    names: dict[str, str] = field(default_factory=dict)  # of classes, from the file with labels
    notes: list[str] = field(default_factory=list)

    def listing(self) -> Listing:
        self.tree = open_tree(self.path, self.listed)
        while (inner := _only_folder(self.tree)) is not None:
            self.tree = self.tree.below(inner)
        drawing = self.options.drawing()
        if listing := list_cifar10(self.tree, self.path):
            if self.options.labels or drawing:
                raise self._error(
                    f" is CIFAR-10: leave out --labels and {drawing or '--val-share'}"
                )
            return listing
        # Labels and names are beside the photos or beside the archive.
        self.near = [self.path.parent]
        if self.path.is_dir():
            self.near[:0] = [self.path / self.tree.prefix, self.path]
        places = self._places()
        if not places:
            kind, classed = self._one_folder(drawing)
        else:
            for split in self.options.splits:
                if split not in places:
                    raise self._error(
                        f" has no folder {split!r} ({self._inside()}): rename the one that takes "
                        f"its place; {EXPECTED}"
                    )
            if drawing:
                raise self._error(f" has its own val: leave out {drawing}")
            kind, classed = self._splits({each: places[each] for each in self.options.splits})
        ids = sorted({name for _, name, _ in classed})
        label_of = {name: label for label, name in enumerate(ids)}
        names = ilsvrc.read_class_names(self.near) | self.names
        return Listing(
            kind,
            _text(self.path.name),
            tuple(_text(name) for name in ids),
            tuple(_text(names.get(name, name)) for name in ids),
            [Photo(split, label_of[name], each) for split, name, each in classed],
            choices=self.options.choices() if not places else {},
            notes=self.notes,
        )

    def _error(self, text: str) -> SourceError:
        return SourceError(f"{quoted(self.path)}{text}")

    def _places(self) -> dict[str, Tree | Found]:
        """Where the photos of each split are: a folder, or one of ILSVRC's archives."""
        archives = self.tree.top()
        train = self._folder(TRAIN_NAMES) or archives.get(TRAIN_ARCHIVE)
        val = self._folder(("val",)) or archives.get(VAL_ARCHIVE) or self._folder(OTHER_NAMES, True)
        if isinstance(train, Tree) and not val and not train.folders:
            return {}  # a class of this name
        return {split: each for split, each in (("train", train), ("val", val)) if each}

    def _folder(self, names: tuple[str, ...], classed: bool = False) -> Tree | None:
        """The folder with the first of these names, in any case; classed: it has folders."""
        for name in names:
            found = [each for each in self.tree.folders if each.lower() == name]
            for each in sorted(found, reverse=True):  # "val" before "Val"
                tree = self.tree.below(each)
                if not classed or tree.folders:
                    return tree
        return None

    def _splits(self, places: dict[str, Tree | Found]) -> tuple[str, Classed]:
        """The source has the photos of each split in a place; returns its kind and the photos."""
        kind, photos, titles = "train/ and val/", dict[str, Pairs](), dict[str, str]()
        for split, place in places.items():
            tree = self._opened(split, place)
            titles[split] = tree.name
            table = tree.top().get(_ANNOTATIONS) if split == "val" else None
            if tree.folders and not table:
                if self.options.labels and split == "val":
                    raise self._error(": val has class folders: leave out --labels")
                photos[split] = self._class_folders(tree)
            elif split == "train":
                raise self._error(f": {tree.name} has no class folders; make one for each class")
            else:
                kind = "train, and val with labels in a file"
                known = {name for _, name in photos.get("train", [])}
                photos[split] = self._labelled(tree.files, sorted(known) or None, table)
                for each, name in photos[split]:
                    if known and name not in known:
                        raise self._error(
                            f": the labels say that {quoted(each.name)} is of the class "
                            f"{quoted(name)}, which is not in 'train'"
                        )
            if not photos[split]:
                raise self._error(f": {split} is empty: put photos there")
        if kind == "train/ and val/" and len(photos) == 2:
            for one, other in (("train", "val"), ("val", "train")):
                known = {name for _, name in photos[one]}
                if missing := sorted({name for _, name in photos[other]} - known):
                    raise self._error(
                        f": {titles[one]} lacks the class {some(missing)} of {titles[other]}; both "
                        "need a folder for every class"
                    )
        return kind, [(split, name, x) for split, pairs in photos.items() for x, name in pairs]

    def _opened(self, split: str, place: Tree | Found) -> Tree:
        if isinstance(place, Tree):
            return place
        if split == "train":
            return ilsvrc.train_tree(place, self.listed)
        return sorted_tree(list_members(place, self.listed), f"{place.name}/")

    def _class_folders(self, tree: Tree) -> Pairs:
        """The photos of a folder for each class; of Tiny-ImageNet-200, those in its images/."""
        pairs = Pairs()
        for name in tree.folders:
            inner = tree.below(name)
            texts = all(each.name.endswith(".txt") for each in inner.loose)
            photos = (
                inner.below("images") if inner.folders == ["images"] and texts else inner
            ).files
            if not photos:
                folder = quoted(self.path / inner.prefix)
                raise SourceError(f"{folder} is empty: put photos there or remove the class")
            pairs += [(each, name) for each in photos]
        return pairs

    def _one_folder(self, drawing: str) -> tuple[str, Classed]:
        """Photos of both splits, to be told apart by lists or by chance."""
        lists, tree, kind = None, self.tree, "photos with labels"
        if self.options.labels:
            photos = self._labelled(tree.files, None)
        else:
            tree, kind = self._folder(("images",), True) or tree, "<class>/"
            inner = [tree.below(name) for name in tree.folders]
            if not inner or any(len(each.folders) > 1 and not each.loose for each in inner):
                raise self._error(f": {self._inside()}; {EXPECTED}")
            photos = self._class_folders(tree)
            lists = listed_photos(self.tree, tree.prefix, [each for each, _ in photos])
        if lists and drawing:
            raise self._error(f" has {lists.kind}: leave out {drawing}")
        if lists:
            kind, split = f"<class>/ and {lists.kind}", lists.splits
            self.notes.append(f"train and val: from {lists.kind}")
        elif self.options.halves:
            names = [(each.name[len(tree.prefix) :], name) for each, name in photos]
            split = drawn_halves(names, self.options.seed)
        elif self.options.val_share:
            split = drawn_share(len(photos), self.options.val_share, self.options.seed)
        else:
            classes = sorted({name for _, name in photos})
            raise self._error(
                f" has no train/ and val/, but {len(photos):,} files of {len(classes):,} classes "
                f"({some(classes)}): add --val-share 0.2, which sets a fifth of them aside for "
                "validation, or --split half"
            )
        # The order within a split is that of the classes, then of the files.
        classed = [(each, name, x) for each, (x, name) in zip(split, photos, strict=True)]
        return kind, sorted(classed, key=lambda photo: photo[0])

    def _labelled(
        self, photos: list[Found], class_ids: list[str] | None, table: Found | None = None
    ) -> Pairs:
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

    def _inside(self) -> str:
        shown = []
        for name in self.tree.folders[:5]:
            inner = self.tree.below(name).folders
            shown.append(quoted(name) + (f" with folders {some(inner)}" if inner else ""))
        more = ", ..." if len(self.tree.folders) > 5 else ""
        beside = len(self.tree.loose)
        return f"folders: {', '.join(shown) or 'none'}{more}; files beside them: {beside:,}"


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
