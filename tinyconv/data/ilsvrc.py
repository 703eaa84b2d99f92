"""ILSVRC 2012 as it is published: tars in a tar, and labels in a file of their own (paper §2).

    ILSVRC2012_img_train.tar          1000 archives n########.tar, one per class
    ILSVRC2012_img_val.tar            50,000 photos ILSVRC2012_val_########.JPEG
    ILSVRC2012_devkit_t12.tar.gz      a number from 1 to 1000 for each of these, and meta.mat, the
                                      table from numbers to classes

Classes are identified by WordNet ids, n########, and sorted by them, as is usual. The numbers of
the devkit are another order and need its table. Others publish the labels as LOC_val_solution.csv
(Kaggle) or as lines of "file-name label" (val.txt of Caffe).
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinyconv.data.archives import list_nested, read_gzipped, unpacked_members
from tinyconv.data.listing import Found, Listed, SourceError, quoted

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
WNID = re.compile(r"n[0-9]{8}")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
# Searched in this order; the first two need no SciPy.
LABEL_FILES = (
    "LOC_val_solution.csv",
    "val.txt",
    "ILSVRC2012_devkit_t12.tar.gz",
    "ILSVRC2012_devkit_t12",
)
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")

# A file name, which may contain spaces, and a class id or an index; or a class id and boxes.
_COLUMNS = re.compile(r'\s*"?(.+?)"?[,\s]+"?([^\s"]+)"?\s*')
_CSV = re.compile(r"([^,]+),\s*([^\s,]+).*")

_MAX_TEXT = 2**28
"""Bytes of a label file, or of the unpacked devkit."""


class Labels(NamedTuple):
    """Class ids by file name (with or without its ending), and names of classes if known."""

    path: Path
    classes: dict[str, str]
    class_names: dict[str, str]

    def of(self, name: str) -> str | None:
        """The class id of a photo, or None."""
        last = PurePosixPath(name)
        return self.classes.get(last.name, self.classes.get(last.stem))


def train_classes(archive: Found, listed: Listed | None = None) -> dict[str, list[Found]]:
    """The photos of each class in the training archive, which contains a tar per class."""
    classes = {}
    for each in list_nested(archive, listed):
        name = PurePosixPath(each.name)
        if WNID.fullmatch(name.stem) and name.suffix == ".tar" and each.size:
            classes[name.stem] = photos(each, listed)
    if not classes:
        raise SourceError(
            f"{quoted(archive.path)} contains no n########.tar: it is not the training archive of "
            "ILSVRC 2012"
        )
    return classes


def photos(archive: Found, listed: Listed | None = None) -> list[Found]:
    """The photos of an archive that has no folders."""
    files = [each for each in list_nested(archive, listed) if not each.name.endswith("/")]
    return sorted(files, key=lambda each: each.name)


def read_labels(given: Path | None, near: list[Path], class_ids: list[str] | None = None) -> Labels:
    """The labels in the file `given`, or else in one that is in one of the folders `near`.

    class_ids: those of the training photos, sorted, for labels that are indices into them.
    SourceError says what is missing, or what is wrong with the file.
    """
    if given is None:
        places = [folder / name for folder in near for name in LABEL_FILES]
        given = next((place for place in places if place.exists()), None)
        if given is None:
            raise SourceError(
                "labels are needed for photos without class folders: put "
                f"ILSVRC2012_devkit_t12.tar.gz or LOC_val_solution.csv into {quoted(near[0])}, or "
                "give --labels FILE (devkit, CSV, or lines of 'name label')"
            )
    elif not given.exists():
        raise SourceError(f"no such file: {quoted(given)}")
    if given.is_dir():
        files = {name: given / "data" / name for name in (GROUND_TRUTH, META)}
        return _from_devkit(given, {name: path.read_bytes() for name, path in files.items()})
    if given.name.endswith(".gz"):
        return _from_devkit(given, unpacked_members(given, read_gzipped(given, _MAX_TEXT)))
    lines, form = _read_text(given).splitlines(), _COLUMNS
    if lines and lines[0].startswith("ImageId,"):
        lines[0], form = "", _CSV
    classes: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        fields = form.fullmatch(line)
        if not fields and line.strip():
            raise SourceError(
                f"{quoted(given)}, line {number}: expected 'file-name label', not "
                f"{line.strip()!r:.60}"
            )
        if not fields:
            continue
        name, label = PurePosixPath(fields[1]).name, fields[2]
        if classes.setdefault(name, label) != label:
            raise SourceError(
                f"{quoted(given)}, line {number}: {quoted(name)} is {label!r} here and "
                f"{classes[name]!r} further up"
            )
    if not classes:
        raise SourceError(f"{quoted(given)} holds no labels; expected lines of 'file-name label'")
    return Labels(given, _indices_to_ids(given, classes, class_ids), {})


def read_class_names(near: list[Path]) -> dict[str, str]:
    """Names by WordNet id from a list that is in one of the folders, if there is one."""
    places = [folder / name for folder in near for name in NAME_FILES]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return {}
    pairs = (line.strip().partition(" ") for line in _read_text(place).splitlines())
    return {wnid: words.strip() for wnid, _, words in pairs if WNID.fullmatch(wnid) and words}


def _indices_to_ids(
    path: Path, classes: dict[str, str], class_ids: list[str] | None
) -> dict[str, str]:
    """Labels that are numbers are indices into the sorted class ids, unless they are class ids."""
    labels = set(classes.values())
    numbers = all(label.isdecimal() for label in labels)
    if class_ids is None or not numbers or labels <= set(class_ids):
        return classes
    smallest, largest = min(map(int, labels)), max(map(int, labels))
    if largest >= len(class_ids):
        raise SourceError(
            f"{quoted(path)}: labels run from {smallest} to {largest}; expected 0 to "
            f"{len(class_ids) - 1}, indices into the {len(class_ids)} sorted class ids"
        )
    return {name: class_ids[int(label)] for name, label in classes.items()}


def _from_devkit(path: Path, files: Mapping[str, bytes]) -> Labels:
    """One number a line, in the order of the photos; meta.mat says what the numbers mean."""
    for wanted in (GROUND_TRUTH, META):
        if wanted not in files:
            raise SourceError(f"{quoted(path)} holds no {wanted}: it is not the devkit of 2012")
    wnids, words = _read_meta(path, files[META])
    classes = {}
    for number, line in enumerate(files[GROUND_TRUTH].split(), 1):
        wnid = wnids.get(int(line)) if line.isdigit() and len(line) < 10 else None
        if wnid is None:
            raise SourceError(
                f"{quoted(path)}: line {number} of the ground truth is {line[:20]!r}; expected a "
                f"number from 1 to {len(wnids)}"
            )
        classes[f"ILSVRC2012_val_{number:08}"] = wnid
    return Labels(path, classes, words)


# In a process of its own: SciPy can crash on a damaged file.
_READ_META = """
import io, json, sys
from numpy import atleast_1d
from scipy.io import loadmat
file = io.BytesIO(sys.stdin.buffer.read())
rows = atleast_1d(loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"])
leaves = [row for row in rows if int(row["num_children"]) == 0]
print(json.dumps([(int(r["ILSVRC2012_ID"]), str(r["WNID"]), str(r["words"])) for r in leaves]))
"""


def _read_meta(path: Path, content: bytes) -> tuple[dict[int, str], dict[str, str]]:
    """ILSVRC2012_ID to WordNet id, and names by WordNet id, of the classes without subclasses."""
    if not importlib.util.find_spec("scipy"):
        raise SourceError(
            f"{quoted(path)}: to read meta.mat, pip install scipy; or give LOC_val_solution.csv "
            "with --labels"
        )
    command = [sys.executable, "-c", _READ_META]
    child = subprocess.run(command, input=content, capture_output=True)
    rows = json.loads(child.stdout) if child.returncode == 0 else []
    wnids = {number: wnid for number, wnid, _ in rows}
    if not rows or not all(map(WNID.fullmatch, wnids.values())) or len(set(wnids)) < len(rows):
        raise SourceError(f"{quoted(path)}: its meta.mat is damaged, or of another data set")
    return wnids, {wnid: words for _, wnid, words in rows}


def _read_text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT:
        raise SourceError(f"{quoted(path)} is too large for a list of labels")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{quoted(path)} is not text in UTF-8") from error
