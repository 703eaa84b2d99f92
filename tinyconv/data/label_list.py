"""Reads lists of labels: text or CSV with a file name and a label in each row.

    cat/1.jpg 0                          separated by spaces (or tabs, commas, semicolons)
    "two words.jpg","golden retriever"   in quotes
    id,breed,age                         a header, which names the columns in use
    ImageId,PredictionString             of Kaggle's ILSVRC: a label and boxes

A list that can be understood in several ways is refused, with the columns that were found.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from tinyconv.data.listing import SourceError, quoted

NAME_COLUMNS = (
    *("filename", "file", "imagename", "imagefile", "imagepath", "filepath", "path", "image"),
    *("imageid", "img", "photo", "name", "id"),
)
"""Headers of the column with the file names, in lower case without "_" and spaces; the first that
is there counts."""

LABEL_COLUMNS = (
    *("label", "labels", "class", "classname", "classid", "category", "species", "breed"),
    *("target", "wnid", "synset", "predictionstring"),
)

_ENDING = re.compile(r".*\.[A-Za-z]{3,4}")


def parse_labels(text: str, title: str) -> tuple[dict[str, str], str]:
    """Labels by file name without its folders, and the columns in words (or "").

    title: of the list, begins the SourceError for a list that cannot be understood.
    """
    first = text.lstrip().partition("\n")[0]
    delimiter = next((each for each in "\t;," if each in first), " ")
    labels: dict[str, str] = {}
    columns, choice, boxes = "", None, False
    width = 0
    for number, row in _rows(text, title, delimiter):
        if not width:
            width, header = len(row), [re.sub(r"[\W_]", "", field).lower() for field in row]
            known = header[0] in NAME_COLUMNS or set(header) & set(LABEL_COLUMNS)
            if known and (delimiter != " " or width == 2):
                choice = _choose(row, header, title)
                columns = f"columns {quoted(row[choice[0]])} and {quoted(row[choice[1]])}"
                boxes = header[choice[1]] == "predictionstring"
                continue
        if delimiter == " ":
            row = _name_and_rest(row)
        elif len(row) != width:
            raise SourceError(
                f"{title}, line {number}: {len(row)} columns, and {width} in the first line"
            )
        if len(row) < 2 or (choice is None and len(row) > 2):
            advice = "; keep two columns, or add a header such as filename,label"
            raise SourceError(
                f"{title}, line {number}: expected a file name and a label, not "
                f"{', '.join(map(quoted, row))[:80]}{advice if len(row) > 2 else ''}"
            )
        place, of_label = choice or (0, 1)
        name, label = PurePosixPath(row[place].strip()).name, row[of_label].strip()
        label = label.split()[0] if boxes and label else label
        if not name or not label:
            raise SourceError(f"{title}, line {number}: the name or the label is empty")
        if labels.setdefault(name, label) != label:
            raise SourceError(
                f"{title}, line {number}: {quoted(name)} is {quoted(label)} here and "
                f"{quoted(labels[name])} further up"
            )
    if not labels:
        raise SourceError(f"{title} has no labels; expected lines of 'file-name label'")
    return labels, columns


def _rows(text: str, title: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise SourceError(f"{title}, line {reader.line_num}: {error}") from error


def _choose(row: list[str], header: list[str], title: str) -> tuple[int, int]:
    """The places of the columns with names and labels."""
    names = [header.index(each) for each in NAME_COLUMNS if each in header]
    labels = [place for place, each in enumerate(header) if each in LABEL_COLUMNS]
    if len(row) == 2 and names:  # the other one, whatever its name
        return names[0], 1 - names[0]
    if not names or len(labels) != 1:
        raise SourceError(
            f"{title} has the columns {', '.join(map(quoted, row[:8]))}"
            f"{', ...' if len(row) > 8 else ''}: expected one with file names and one with labels "
            "(a column for each class cannot be read); keep these two as filename,label"
        )
    return names[0], labels[0]


def _name_and_rest(row: list[str]) -> list[str]:
    """Fields between spaces as a name and a label, each of which may contain spaces."""
    row = [field for field in row if field]
    ends = [place for place, field in enumerate(row[:-1]) if _ENDING.fullmatch(field)]
    cut = ends[-1] + 1 if ends else len(row) - 1
    return [" ".join(row[:cut]), " ".join(row[cut:])] if len(row) > 1 else row


def indices_to_ids(
    labels: Mapping[str, str], class_ids: list[str], first: int, title: str
) -> tuple[dict[str, str], str]:
    """Class ids for labels that are indices into them; other labels are class ids already.

    first: the number of the first class, 0 or 1. Returns a note as well, or "".
    """
    values = set(labels.values())
    if not all(each.isdecimal() and len(each) < 10 for each in values) or (
        values <= set(class_ids) and not first
    ):
        return dict(labels), ""
    low, high = min(map(int, values)), max(map(int, values))
    last, note = len(class_ids) - 1 + first, ""
    advice = "if 1 is the first of the sorted class ids, give --labels-from 1"
    if not first and low:
        note = f"note: no label of {title} is 0: {advice}"
    if low < first or high > last:
        raise SourceError(
            f"{title}: labels run from {low} to {high}; expected {first} to {last}, places in the "
            f"{len(class_ids)} sorted class ids"
            + (f"; {advice}" if note and high == last + 1 else "")
        )
    return {name: class_ids[int(label) - first] for name, label in labels.items()}, note


def three(labels: Mapping[str, str]) -> str:
    """The first three pairs, in words."""
    pairs = list(labels.items())[:3]
    return ", ".join(f"{quoted(name)} is {quoted(label)}" for name, label in pairs)
