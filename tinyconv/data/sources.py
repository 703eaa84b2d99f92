"""Lists the photos of a source: a folder or an archive, in any of these layouts.

    {train,val}/<class>/...                     in a folder, or in an uncompressed tar
    train/<class>/..., val/*, and labels        val without folders, as ILSVRC 2012 has it
    ILSVRC2012_img_{train,val}.tar, and labels  its official archives (`ilsvrc.py`)
    <class>/...                                 and a share that is set aside for validation
    any photos, and labels for them             likewise
    cifar-10-binary.tar.gz                      or its folder (`cifar10.py`)

`validation/`, `valid/` or `test/` with class folders serves as val if there is no `val/`. All this
may be in one folder. Classes are sorted by name, and so are the photos of a class: equal photos
give equal listings, whatever the file system.
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
from tinyconv.data.trees import Tree, open_tree

SHARE = 2**32 - 6
"""Stream of the generator that draws the validation photos (see `augment.py`)."""

OTHER_NAMES = ("validation", "valid", "test")
"""Folders with class folders that serve as val if there is none."""

_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")


def list_source(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    val_share: float | None = None,
    seed: int = 0,
    listed: Listed | None = None,
) -> Listing:
    """List the photos of a source and their classes.

    labels: a file with labels for photos without class folders; None: searched beside them.
    val_share: between 0 and 1, for a source without validation photos; seed: of their choice.
    listed is called from time to time with the number of further files. SourceError, one line that
    says what was found and what is expected.
    """
    path = Path(os.path.abspath(source))
    if not path.exists():
        raise SourceError(f"no such file or folder: {quoted(source)}")
    if val_share is not None and not 0 < val_share < 1:
        raise SourceError(f"--val-share must be between 0 and 1, such as 0.2, not {val_share}")
    try:
        listing = list_cifar10(path)
        if listing is None:
            label_file = None if labels is None else Path(labels)
            listing = _Source(path, label_file, val_share, seed, listed).listing()
        elif labels or val_share:
            raise SourceError(f"{quoted(source)} is CIFAR-10: leave out --labels and --val-share")
    except OSError as error:
        where = quoted(error.filename or source)
        raise SourceError(f"cannot read {where}: {error.strerror or error}") from error
    if len(listing.class_ids) < 2:
        raise SourceError(
            f"only one class in {quoted(source)} ({some(listing.class_ids)}): a classifier needs "
            "at least two"
        )
    return listing


@dataclass
class _Source:
    """A source, its options, and what its listing shall say."""

    path: Path
    labels: Path | None
    val_share: float | None
    seed: int
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
        folders = self.tree.folders
        train = "train" if "train" in folders else archives.get(TRAIN_ARCHIVE)
        val = "val" if "val" in folders else archives.get(VAL_ARCHIVE)
        for name in OTHER_NAMES:
            val = val or (name if self.tree.below(name).folders else None)
        if train and val:
            kind, classed = self._both(train, val)
        elif train or "val" in folders or VAL_ARCHIVE in archives:
            missing = "val" if train else "train"
            raise SourceError(
                f"{quoted(self.path)} has no folder {missing!r} ({self._inside()}): rename the one "
                "that takes its place, or prepare one folder of classes with --val-share 0.2"
            )
        else:
            kind, classed = self._share()
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
        if not train:
            listing.choices = {"val_share": self.val_share, "seed": self.seed}
        return listing

    def _both(self, train: str | Found, val: str | Found) -> tuple[str, list]:
        """The source has training and validation photos; returns its kind and the photos."""
        if self.val_share is not None:
            raise SourceError(f"{quoted(self.path)} has its own val: leave out --val-share")
        if isinstance(train, str):
            classes = self.tree.below(train).classes()
            if not classes:
                raise SourceError(
                    f"{quoted(self.path)}: train has no class folders; make one for each class"
                )
        else:
            classes = ilsvrc.train_classes(train, self.listed)
        self._check_not_empty("train", classes)
        classed = [("train", name, each) for name in sorted(classes) for each in classes[name]]
        if isinstance(val, str) and (val_classes := self.tree.below(val).classes()):
            kind = "train/ and val/"
            if self.labels:
                raise SourceError(f"{quoted(self.path)}: val has class folders: leave out --labels")
            for one, other, there, here in (
                ("train", val, classes, val_classes),
                (val, "train", val_classes, classes),
            ):
                if missing := sorted(set(here) - set(there)):
                    raise SourceError(
                        f"{quoted(self.path)}: {one} lacks the class {some(missing)} of {other}; "
                        "both need a folder for every class"
                    )
            classed += [("val", name, each) for name in val_classes for each in val_classes[name]]
        else:
            kind = "train, and val with labels in a file"
            flat = self.tree.below(val).files if isinstance(val, str) else ilsvrc.photos(val)
            for each, name in self._labelled(flat, sorted(classes)):
                if name not in classes:
                    raise SourceError(
                        f"{quoted(self.path)}: the labels say that {quoted(each.name)} is of the "
                        f"class {name!r}, which is not in 'train'"
                    )
                classed.append(("val", name, each))
        if classed[-1][0] != "val":
            raise SourceError(f"{quoted(self.path)}: val is empty: put photos there")
        return kind, classed

    def _share(self) -> tuple[str, list]:
        """A share of the photos becomes the validation set; returns the kind and the photos."""
        if self.labels:
            kind, classed = "photos with labels", self._labelled(self.tree.files, None)
        else:
            kind, classes = "<class>/", self.tree.classes()
            if not classes:
                raise SourceError(
                    f"{quoted(self.path)}: {self._inside()}; {EXPECTED}, or photos with --labels "
                    "FILE"
                )
            self._check_not_empty("", classes)
            classed = [(each, name) for name, files in classes.items() for each in files]
        ids = {name for _, name in classed}
        if self.val_share is None:
            raise SourceError(
                f"{quoted(self.path)} has no train/ and val/, but {len(classed):,} files of "
                f"{len(ids):,} classes ({some(sorted(ids))}): prepare it with --val-share 0.2, "
                "which sets a fifth of them aside for validation"
            )
        count = round(self.val_share * len(classed))
        if not 0 < count < len(classed):
            raise SourceError(
                f"--val-share {self.val_share} of {len(classed):,} photos is {count:,}: it leaves "
                f"none to {'train' if count else 'validate'} with"
            )
        drawn = set(permutation(len(classed), self.seed, SHARE, 0)[:count].tolist())
        photos = [
            ("val" if place in drawn else "train", name, each)
            for place, (each, name) in enumerate(classed)
        ]
        # The order within a split is that of the classes, then of the files.
        return kind, sorted(photos, key=lambda photo: photo[0])

    def _labelled(
        self, photos: list[Found], class_ids: list[str] | None
    ) -> list[tuple[Found, str]]:
        """Photos without class folders, each with its class id."""
        labels = ilsvrc.read_labels(self.labels, self.near, class_ids)
        self.names = labels.class_names
        file = os.path.abspath(labels.path)  # may be among the photos
        photos = [each for each in photos if each.path != file or each.offset]
        if without := [each.name for each in photos if labels.of(each.name) is None]:
            raise SourceError(f"{quoted(labels.path)} has no label for {some(without)}")
        self.notes.append(f"labels: {quoted(labels.path)}")
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
        folders = ", ".join(map(quoted, self.tree.folders[:5])) or "none"
        return f"its folders: {folders}; files beside them: {len(self.tree.loose):,}"


def _only_folder(tree: Tree) -> str | None:
    """The folder to look into instead of this tree, if there is one."""
    for depth, name in enumerate(_KAGGLE):
        if name in tree.folders and tree.prefix == "".join(f"{x}/" for x in _KAGGLE[:depth]):
            return name
    if tree.prefix or len(tree.folders) != 1 or tree.folders[0] in ("train", "val", *OTHER_NAMES):
        return None
    inside = tree.below(tree.folders[0]).folders
    return tree.folders[0] if "train" in inside or not tree.loose else None


def _text(name: str) -> str:
    """A name that can be stored as UTF-8, whatever bytes the file system has in it."""
    return name.encode("utf-8", "backslashreplace").decode()
