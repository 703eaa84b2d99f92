"""ILSVRC 2012 as it is published: tars in a tar, and labels in a file of their own (paper §2).

    ILSVRC2012_img_train.tar          1000 archives n########.tar, one a class
    ILSVRC2012_img_val.tar            50,000 photos ILSVRC2012_val_########.JPEG
    ILSVRC2012_devkit_t12.tar.gz      for each of them a number from 1 to 1000, and a table of
                                      what the numbers mean

A class is known by its WordNet id, n########. The order of the classes is the sorted order of
these ids, as everybody trains with; the numbers of the devkit are another order, so they are
useless without its table, meta.mat. Others publish the labels as LOC_val_solution.csv, or as lines
of "file-name label".
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from tinyconv.data.archives import list_members, list_nested, read_gzipped
from tinyconv.data.listing import Found, Listed, SourceError, quoted

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
WNID = re.compile(r"n[0-9]{8}")

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Where labels are looked for, in this order; the first two need no SciPy to be read.
LABEL_FILES = (
    "LOC_val_solution.csv",
    "val.txt",
    "ILSVRC2012_devkit_t12.tar.gz",
    "ILSVRC2012_devkit_t12",
    f"data/{GROUND_TRUTH}",
    GROUND_TRUTH,
)
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")

_MAX_TEXT = 2**28  # bytes of a label file, or of the unpacked devkit
_NEEDED = "labels are needed for photos without class folders"


class Labels(NamedTuple):
    """Classes by file name (with or without its ending), and names of classes where known."""

    path: Path
    classes: dict[str, str]
    class_names: dict[str, str]

    def of(self, name: str) -> str | None:
        """The class id of a photo, or None."""
        last = PurePosixPath(name)
        return self.classes.get(last.name, self.classes.get(last.stem))


def train_classes(archive: Found, listed: Listed | None = None) -> dict[str, list[Found]]:
    """The photos of each class in the training archive, which holds a tar for each class."""
    inner = list_nested(archive, listed)
    classes = {}
    for each in sorted(inner, key=lambda each: each.name):
        name = PurePosixPath(each.name)
        if WNID.fullmatch(name.stem) and name.suffix == ".tar" and each.size:
            members = list_nested(each, listed)
            classes[name.stem] = sorted(members, key=lambda member: member.name)
    if not classes:
        raise SourceError(
            f"{quoted(archive.path)} holds no n########.tar: it is not the training archive of "
            "ILSVRC 2012"
        )
    return classes


def val_photos(archive: Found, listed: Listed | None = None) -> list[Found]:
    """The photos of the validation archive, which lie in it without folders."""
    return sorted(list_nested(archive, listed), key=lambda each: each.name)


def read_labels(given: Path | None, near: list[Path], class_ids: list[str] | None = None) -> Labels:
    """The labels in the file `given`, or else in one that lies in one of the folders `near`.

    class_ids: those of the training photos, sorted, for labels that are indices into them.
    SourceError says what is missing, or what is wrong with the file.
    """
    if given is None:
        places = [folder / name for folder in near for name in LABEL_FILES]
        given = next((place for place in places if place.exists()), None)
        if given is None:
            raise SourceError(
                f"{_NEEDED}: put ILSVRC2012_devkit_t12.tar.gz or LOC_val_solution.csv into "
                f"{quoted(near[0])}, or give --labels FILE (devkit, CSV, or lines of 'name label')"
            )
    elif not given.exists():
        raise SourceError(f"no such file: {quoted(given)}")
    if given.is_dir() or given.name == GROUND_TRUTH:
        folder = given.parent if given.is_file() else given
        folder = folder / "data" if (folder / "data").is_dir() else folder
        return _devkit(given, _bytes(folder / GROUND_TRUTH), _bytes(folder / "meta.mat"))
    if given.name.endswith(".gz"):
        return _packed_devkit(given)
    lines = _text(given).splitlines()
    if lines and lines[0].startswith("ImageId,"):
        return Labels(given, _from_csv(given, lines), {})
    rows = [line for line in lines if line.strip()]
    if rows and all(line.strip().isdecimal() for line in rows):
        # The ground truth under another name.
        return _devkit(given, _bytes(given), _bytes(given.parent / "meta.mat"))
    return Labels(given, _from_columns(given, rows, class_ids), {})


def read_class_names(near: list[Path]) -> dict[str, str]:
    """Names by WordNet id from a list that lies in one of the folders, if there is one."""
    places = [folder / name for folder in near for name in NAME_FILES]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return {}
    pairs = (line.strip().partition(" ") for line in _text(place).splitlines())
    return {wnid: words.strip() for wnid, _, words in pairs if WNID.fullmatch(wnid) and words}


# --- the forms in which labels are published


def _from_csv(path: Path, lines: list[str]) -> dict[str, str]:
    """ImageId,PredictionString: the first word of the latter is the class, then come boxes."""
    classes: dict[str, str] = {}
    for number, row in enumerate(csv.reader(lines[1:]), 2):
        if not row:
            continue
        words = row[1].split() if len(row) > 1 else []
        if not words:
            raise SourceError(f"{quoted(path)}, line {number}: expected ImageId,n######## ...")
        _add(classes, row[0], words[0], path, number)
    return classes


def _from_columns(path: Path, rows: list[str], class_ids: list[str] | None) -> dict[str, str]:
    """Lines of "file-name label"; label is a class id, or its place in the sorted ids from 0."""
    classes: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        fields = re.fullmatch(r"\s*(.+?)[,\s]+(\S+)\s*", row)
        if not fields:
            raise SourceError(
                f"{quoted(path)}, line {number}: expected 'file-name label', not "
                f"{row.strip()!r:.60}"
            )
        _add(classes, PurePosixPath(fields[1].strip('"')).name, fields[2].strip('"'), path, number)
    if not classes:
        raise SourceError(f"{quoted(path)} holds no labels; expected lines of 'file-name label'")
    labels = set(classes.values())
    if not all(label.isdecimal() for label in labels) or labels <= set(class_ids or ()):
        return classes
    if class_ids is None:
        width = max(map(len, labels))
        return {name: label.zfill(width) for name, label in classes.items()}
    largest = max(map(int, labels))
    if largest >= len(class_ids):
        raise SourceError(
            f"{quoted(path)}: labels run from {min(map(int, labels))} to {largest}; expected 0 to "
            f"{len(class_ids) - 1}, places among the {len(class_ids)} sorted class ids"
        )
    return {name: class_ids[int(label)] for name, label in classes.items()}


def _add(classes: dict[str, str], name: str, label: str, path: Path, number: int) -> None:
    if classes.setdefault(name, label) != label:
        raise SourceError(
            f"{quoted(path)}, line {number}: {quoted(name)} is {label!r} here and "
            f"{classes[name]!r} further up"
        )


def _packed_devkit(path: Path) -> Labels:
    unpacked = read_gzipped(path, _MAX_TEXT)
    size = len(unpacked.getvalue())
    members = list_members(unpacked, Found("", str(path), 0, size, 0))
    content: dict[str, bytes] = {}
    for wanted in (GROUND_TRUTH, "meta.mat"):
        member = next((m for m in members if PurePosixPath(m.name).name == wanted), None)
        if member is None or member.trouble:
            raise SourceError(f"{quoted(path)} holds no {wanted}: it is not the devkit of 2012")
        content[wanted] = unpacked.getvalue()[member.offset : member.offset + member.size]
    return _devkit(path, content[GROUND_TRUTH], content["meta.mat"])


def _devkit(path: Path, ground_truth: bytes, meta: bytes) -> Labels:
    """One number a line, in the order of the photos; what the numbers mean is in meta.mat."""
    wnids, words = _read_meta(path, meta)
    classes = {}
    for number, line in enumerate(ground_truth.split(), 1):
        wnid = wnids.get(int(line)) if line.isdigit() and len(line) < 10 else None
        if wnid is None:
            raise SourceError(
                f"{quoted(path)}: line {number} of the ground truth is {line[:20]!r}; expected a "
                f"number from 1 to {len(wnids)}"
            )
        classes[f"ILSVRC2012_val_{number:08}"] = wnid
    return Labels(path, classes, words)


def _read_meta(path: Path, content: bytes) -> tuple[dict[int, str], dict[str, str]]:
    """ILSVRC2012_ID to WordNet id, and the words for each; leaves only, not what is above them."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise SourceError(
            f"{quoted(path)}: to read meta.mat, pip install scipy; or give LOC_val_solution.csv "
            "with --labels"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        rows = [row for row in np.atleast_1d(synsets["synsets"]) if int(row["num_children"]) == 0]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        words = {str(row["WNID"]): str(row["words"]) for row in rows}
    except Exception as error:  # bad bytes make SciPy raise nearly anything
        raise SourceError(f"{quoted(path)}: its meta.mat cannot be read ({error})") from error
    if not wnids or not all(map(WNID.fullmatch, wnids.values())) or len(words) < len(rows):
        raise SourceError(f"{quoted(path)}: its meta.mat is not the table of ILSVRC 2012")
    return wnids, words


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise SourceError(f"{quoted(path)} is too large for a list of labels")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {quoted(path)}: {error.strerror}") from error


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{quoted(path)} is not text in UTF-8") from error


def shortfall(counts: Mapping[str, int], class_ids: tuple[str, ...]) -> list[str]:
    """Lines that say how many photos are missing, if the classes are those of ILSVRC 2012."""
    if len(class_ids) != 1000 or not all(map(WNID.fullmatch, class_ids)):
        return []
    whole = {"train": 1_281_167, "val": 50_000}
    return [
        f"note: ILSVRC 2012 has {whole[split]:,} photos in {split}, here are {count:,}"
        for split, count in counts.items()
        if count != whole[split]
    ]
