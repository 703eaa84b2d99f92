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
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tinyconv.data.archives import list_members
from tinyconv.data.label_list import indices_to_ids, parse_labels, three
from tinyconv.data.listing import Found, Listed, SourceError, quoted
from tinyconv.data.trees import Tree, open_tree, sorted_tree

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
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")

_MAX_TEXT = 2**28
"""Bytes of a label file."""


class Labels(NamedTuple):
    """Class ids by file name (with or without its ending), names of classes if known, and notes."""

    path: Path
    classes: dict[str, str]
    class_names: dict[str, str]
    notes: list[str]

    def of(self, name: str) -> str | None:
        """The class id of a photo, or None."""
        last = PurePosixPath(name)
        return self.classes.get(last.name, self.classes.get(last.stem))


def train_tree(archive: Found, listed: Listed | None = None) -> Tree:
    """The training archive, which contains a tar per class, as a tree of class folders."""
    found = []
    for each in list_members(archive, listed):
        name = PurePosixPath(each.name)
        if WNID.fullmatch(name.stem) and name.suffix == ".tar" and each.size:
            folder = f"{archive.name}/{name.stem}"
            found.append(each._replace(name=f"{folder}/"))  # also if it is empty
            found += list_members(each._replace(name=folder), listed)
    if not found:
        raise SourceError(
            f"{quoted(archive.path)} contains no n########.tar: it is not the training archive of "
            "ILSVRC 2012"
        )
    return sorted_tree(found, f"{archive.name}/")


def read_labels(
    given: Path | None, near: list[Path], class_ids: list[str] | None = None, first: int = 0
) -> Labels:
    """The labels in the file `given`, or else in one that is in one of the folders `near`.

    class_ids: those of the training photos, sorted, for labels that are places in them; first: the
    place of the first, 0 or 1. SourceError says what is missing, or what is wrong with the file.
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
    if given.is_dir() or given.name.endswith(".gz"):
        return _from_devkit(given)
    return labels_in(_read_text(given), given, class_ids, first)


def labels_in(text: str, path: Path, class_ids: list[str] | None, first: int = 0) -> Labels:
    """The labels in a text, which is the content of `path`; see `read_labels`."""
    title, note = quoted(path), ""
    classes, columns = parse_labels(text, title)
    if class_ids is not None:
        classes, note = indices_to_ids(classes, class_ids, first, title)
    shown = f"labels: {title}{f', {columns}' if columns else ''}; {three(classes)}"
    return Labels(path, classes, {}, [shown, *([note] if note else [])])


def read_class_names(near: list[Path]) -> dict[str, str]:
    """Names by WordNet id from a list that is in one of the folders, if there is one."""
    places = [folder / name for folder in near for name in NAME_FILES]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return {}
    pairs = (line.split(None, 1) for line in _read_text(place).splitlines())
    return {
        pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2 and WNID.fullmatch(pair[0])
    }


def _from_devkit(path: Path) -> Labels:
    """One number a line, in the order of the photos; meta.mat says what the numbers mean."""
    files = {each.name.rpartition("/")[2]: each for each in open_tree(path).files}
    for wanted in (GROUND_TRUTH, META):
        if wanted not in files:
            raise SourceError(f"{quoted(path)} holds no {wanted}: it is not the devkit of 2012")
    wnids, words = _read_meta(path, files[META].read())
    classes = {}
    for number, line in enumerate(files[GROUND_TRUTH].read().split(), 1):
        wnid = wnids.get(int(line)) if line.isdigit() and len(line) < 10 else None
        if wnid is None:
            raise SourceError(
                f"{quoted(path)}: line {number} of the ground truth is {line[:20]!r}; expected a "
                f"number from 1 to {len(wnids)}"
            )
        classes[f"ILSVRC2012_val_{number:08}"] = wnid
    return Labels(path, classes, words, [f"labels: {quoted(path)}; {three(classes)}"])


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
