"""What can be prepared, and what is in it: from a folder or an archive to a list of photos.

    {train,val}/<class>/...                     in a folder, or in an uncompressed tar
    train/<class>/..., val/*, and labels        val without folders, as ILSVRC 2012 has it
    ILSVRC2012_img_{train,val}.tar, and labels  its archives as they come (`ilsvrc.py`)
    <class>/..., or n########_*                 and a share that is set aside for validation
    any photos, and labels for them             the same
    cifar-10-binary.tar.gz                      or its folder (`cifar10.py`)

There may be one folder above all this. The classes are in sorted order, and so are the photos of a
class, whatever the file system: the same photos give the same listing.
"""

from __future__ import annotations

import os
from pathlib import Path

from tinyconv.data import ilsvrc
from tinyconv.data.cifar10 import list_cifar10
from tinyconv.data.ilsvrc import TRAIN_ARCHIVE, VAL_ARCHIVE, WNID
from tinyconv.data.listing import EXPECTED, Found, Listed, Listing, Photo, SourceError, quoted, some
from tinyconv.data.random_arrays import permutation
from tinyconv.data.trees import FolderTree, Tree, open_tree

SHARE = 2**32 - 6
"""Stream of the generator for what is set aside for validation (see `augment.py`)."""

_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_OTHER_SPLITS = {"test", "validation", "valid"}


def list_source(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    val_share: float | None = None,
    seed: int = 0,
    listed: Listed | None = None,
) -> Listing:
    """List the photos of a source and their classes.

    labels: a file with labels for photos without class folders; else it is looked for beside
    them. val_share: between 0 and 1, for a source that does not say which photos are to validate
    with; seed decides which. listed is told now and then how many more files were seen. Raises
    SourceError, one line that says what was found and what is expected.
    """
    path = Path(os.path.abspath(source))
    if not path.exists():
        raise SourceError(f"no such file or folder: {quoted(source)}")
    if val_share is not None and not 0 < val_share < 1:
        raise SourceError(f"--val-share must lie between 0 and 1, such as 0.2, not {val_share}")
    label_file = None if labels is None else Path(labels)
    try:
        listing = list_cifar10(path)
        if listing is None:
            listing = _List(path, label_file, val_share, seed, listed).listing()
        elif label_file or val_share:
            raise SourceError(f"{quoted(source)} is CIFAR-10: leave out --labels and --val-share")
    except OSError as error:
        where = quoted(error.filename or source)
        raise SourceError(f"cannot read {where}: {error.strerror}") from error
    if len(listing.class_ids) < 2:
        raise SourceError(
            f"{quoted(source)} has photos of one class ({listing.class_ids[0]!r}): a classifier "
            "needs at least two"
        )
    return listing


class _List:
    """The steps from a source to its listing."""

    def __init__(
        self,
        path: Path,
        labels: Path | None,
        val_share: float | None,
        seed: int,
        listed: Listed | None,
    ) -> None:
        self.path, self.labels, self.listed = path, labels, listed
        self.val_share, self.seed = val_share, seed
        self.tree, self.notes = open_tree(path, listed)
        # Labels and names lie beside the photos or beside the archive.
        self.near = [path, path.parent] if path.is_dir() else [path.parent]
        while inner := _only_folder(self.tree):
            if isinstance(self.tree, FolderTree):
                self.near.insert(0, path.joinpath(self.tree.prefix, inner))
            self.tree = self.tree.below(inner)

    def listing(self) -> Listing:
        folders = self.tree.folders()
        archives = {each.name.rpartition("/")[2]: each for each in self.tree.loose()}
        train = "train" if "train" in folders else archives.get(TRAIN_ARCHIVE)
        val = "val" if "val" in folders else archives.get(VAL_ARCHIVE)
        if train and val:
            return self._with_both(train, val)
        if train or val or (folders and set(folders) <= _OTHER_SPLITS):
            lacking = "val" if train else "train"
            raise SourceError(
                f"{quoted(self.path)} has no {lacking!r} ({self._inside()}): rename the folder "
                f"that takes its place, or give one folder of classes with --val-share 0.2"
            )
        return self._set_aside()

    # --- train and val are told apart by the source

    def _with_both(self, train: str | Found, val: str | Found) -> Listing:
        if self.val_share is not None:
            raise SourceError(f"{quoted(self.path)} has its own val: leave out --val-share")
        classes = self._train_classes(train)
        ids = sorted(classes)
        label_of = {name: label for label, name in enumerate(ids)}
        photos = [Photo("train", label_of[name], each) for name in ids for each in classes[name]]
        names: dict[str, str] = {}
        flat = self._flat_val(val)
        if flat is None:
            if self.labels:
                raise SourceError(f"{quoted(self.path)}: val has class folders: leave out --labels")
            val_classes = _class_folders(self.tree.below("val"))
            self._check_val_classes(ids, sorted(val_classes))
            photos += [
                Photo("val", label_of[name], each) for name in ids for each in val_classes[name]
            ]
        else:
            labels = ilsvrc.read_labels(self.labels, self.near, ids)
            names = labels.class_names
            for each, name in self._labelled(flat, labels):
                if name not in label_of:
                    raise SourceError(
                        f"{quoted(labels.path)}: {quoted(each.name)} is of the class {name!r}, "
                        "which 'train' has not"
                    )
                photos.append(Photo("val", label_of[name], each))
        if not any(photo.split == "val" for photo in photos):
            raise SourceError(f"{quoted(self.path)}: val is empty: put photos there")
        kind = "train/ and val/"
        if isinstance(train, Found) or isinstance(val, Found) or flat is not None:
            kind = "train, and val with labels in a file"
        listing = self._made(kind, ids, photos, names)
        listing.notes += ilsvrc.shortfall(listing.counts(), listing.class_ids)
        return listing

    def _train_classes(self, train: str | Found) -> dict[str, list[Found]]:
        if isinstance(train, Found):
            return ilsvrc.train_classes(train, self.listed)
        tree = self.tree.below(train)
        classes = _class_folders(tree)
        if not classes:
            raise SourceError(
                f"{quoted(self.path)}: train has no class folders; make one for each class"
            )
        self._check_not_empty("train", classes)
        return classes

    def _flat_val(self, val: str | Found) -> list[Found] | None:
        """The photos of a val without class folders, or None if it has some."""
        if isinstance(val, Found):
            return ilsvrc.val_photos(val, self.listed)
        tree = self.tree.below(val)
        return None if tree.folders() else tree.files()

    def _check_val_classes(self, train: list[str], val: list[str]) -> None:
        if unknown := sorted(set(val) - set(train)):
            raise SourceError(
                f"{quoted(self.path)}: val has the class {some(unknown)} that 'train' has not"
            )
        if missing := sorted(set(train) - set(val)):
            raise SourceError(
                f"{quoted(self.path)}: val lacks the class {some(missing)} of 'train'; it needs a "
                "folder for every class"
            )

    def _check_not_empty(self, above: str, classes: dict[str, list[Found]]) -> None:
        if empty := [name for name, photos in classes.items() if not photos]:
            raise SourceError(
                f"{quoted(self.path)}: {above} has nothing of the class {some(empty)}: put photos "
                "there or remove the class"
            )

    def _labelled(self, photos: list[Found], labels: ilsvrc.Labels) -> list[tuple[Found, str]]:
        file = os.path.abspath(labels.path)  # may lie among the photos
        photos = [each for each in photos if each.path != file or each.offset]
        if without := [each.name for each in photos if labels.of(each.name) is None]:
            raise SourceError(f"{quoted(labels.path)} has no label for {some(without)}")
        self.notes.append(f"labels: {quoted(labels.path)}")
        if len(labels.classes) > len(photos):
            self.notes.append(
                f"note: {len(labels.classes):,} labels, and {len(photos):,} photos for them"
            )
        return [(each, labels.of(each.name) or "") for each in photos]

    # --- a share becomes val

    def _set_aside(self) -> Listing:
        """The source does not say what is to validate with: the generator draws it."""
        folders, loose, names = self.tree.folders(), self.tree.loose(), {}
        if self.labels:
            labels = ilsvrc.read_labels(self.labels, self.near)
            files, names, kind = self.tree.files(), labels.class_names, "photos with labels"
            classed = self._labelled(files, labels)
        elif folders:
            classes = _class_folders(self.tree)
            self._check_not_empty("it", classes)
            kind = "<class>/"
            classed = [(each, name) for name in folders for each in classes[name]]
        else:
            kind = "n########_*"
            classed = [(each, each.name.rpartition("/")[2][:9]) for each in loose]
            unnamed = [each.name for each, name in classed if not WNID.fullmatch(name)]
            if len(unnamed) == len(loose):
                raise SourceError(self._nothing_known(archives=loose))
            if unnamed:
                self.notes.append(f"left out, no n######## in the name: {some(unnamed)}")
            classed = [(each, name) for each, name in classed if WNID.fullmatch(name)]
        ids = sorted({name for _, name in classed})
        if self.val_share is None:
            raise SourceError(
                f"{quoted(self.path)} has no train/ and val/, but {len(classed):,} files of "
                f"{len(ids):,} classes ({some(ids)}): give --val-share 0.2 to validate with a "
                "fifth of them"
            )
        count = round(self.val_share * len(classed))
        if not 0 < count < len(classed):
            raise SourceError(
                f"--val-share {self.val_share} of {len(classed):,} photos is {count:,}: it leaves "
                f"none to {'train' if count else 'validate'} with"
            )
        drawn = set(permutation(len(classed), self.seed, SHARE, 0)[:count].tolist())
        label_of = {name: label for label, name in enumerate(ids)}
        photos = [
            Photo("val" if place in drawn else "train", label_of[name], each)
            for place, (each, name) in enumerate(classed)
        ]
        photos.sort(key=lambda photo: photo.split)
        listing = self._made(kind, ids, photos, names)
        listing.choices = {"val_share": self.val_share, "seed": self.seed}
        return listing

    def _nothing_known(self, archives: list[Found]) -> str:
        if len(archives) > 1 and all(each.name.endswith(".tar") for each in archives):
            return (
                f"{quoted(self.path)} is an archive of archives: give the folder that holds "
                f"{TRAIN_ARCHIVE} and {VAL_ARCHIVE}"
            )
        return f"{quoted(self.path)}: {self._inside()}; {EXPECTED}, or photos with --labels FILE"

    # --- words

    def _made(
        self, kind: str, ids: list[str], photos: list[Photo], names: dict[str, str]
    ) -> Listing:
        names = ilsvrc.read_class_names(self.near) | names
        readable = tuple(_text(name) for name in ids)
        words = tuple(_text(names.get(name, name)) for name in ids)
        notes = list(self.notes)
        return Listing(kind, _text(self.path.name), readable, words, photos, notes=notes)

    def _inside(self) -> str:
        folders = ", ".join(map(quoted, self.tree.folders()[:5])) or "none"
        return f"its folders: {folders}; files beside them: {len(self.tree.loose()):,}"


def _only_folder(tree: Tree) -> str | None:
    """The one folder above all the rest, to be looked into instead, if there is one."""
    folders = tree.folders()
    if _KAGGLE[0] in folders and not {"train", "val"} & set(folders):
        return _KAGGLE[0]
    if tree.prefix.strip("/") == _KAGGLE[0] and _KAGGLE[1] in folders:
        return _KAGGLE[1]
    if tree.prefix.strip("/") == "/".join(_KAGGLE[:2]) and _KAGGLE[2] in folders:
        return _KAGGLE[2]
    if tree.prefix or len(folders) != 1 or folders[0] in ("train", "val"):
        return None
    inside = set(tree.below(folders[0]).folders())
    return folders[0] if {"train", "val"} <= inside or not tree.loose() else None


def _class_folders(tree: Tree) -> dict[str, list[Found]]:
    return {name: tree.below(name).files() for name in tree.folders()}


def _text(name: str) -> str:
    """A name that can be stored as UTF-8, whatever bytes the file system has in it."""
    return name.encode("utf-8", "backslashreplace").decode()
