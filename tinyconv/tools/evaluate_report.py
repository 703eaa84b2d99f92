"""The results of an evaluation as text tables and as JSON values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyconv.data.listing import printable
from tinyconv.evaluate import Tally
from tinyconv.tools.ensemble import Row

TITLES = {"centre": "centre crop", "ten": "ten views"}

PAPER = (
    ("1 CNN, ILSVRC-2010 test", {"centre": (39.0, 18.3), "ten": (37.5, 17.0)}),
    ("1 CNN, ILSVRC-2012", {"ten": (40.7, 18.2)}),
    ("5 CNNs, ILSVRC-2012", {"ten": (38.1, 16.4)}),
    ("1 CNN*, ILSVRC-2012", {"ten": (39.0, 16.6)}),
    ("7 CNNs*, ILSVRC-2012", {"ten": (36.7, 15.4)}),
)
"""Top-1 and top-5 errors in percent (paper §6, tables 1 and 2). *: pre-trained on a larger
ImageNet."""


@dataclass(frozen=True)
class ClassScore:
    """The accuracy on one class (0 to 1, None without photos), and its most frequent confusion.

    mistaken_for: the wrong label predicted most often (the lowest of equals), or None; mistakes:
    how often.
    """

    label: int
    photos: int
    top1: float | None
    top5: float | None
    mistaken_for: int | None
    mistakes: int


def class_scores(tally: Tally, classes: int) -> list[ClassScore]:
    """A score for each class, the worst first; classes without photos last."""
    labels, predicted, in_top5 = tally.photos()
    scores = []
    for label in range(classes):
        of_class = labels == label
        photos, given = int(of_class.sum()), predicted[of_class]
        wrong = np.bincount(given[(given != label) & (given >= 0)], minlength=classes)
        most = int(wrong.argmax())
        scores.append(
            ClassScore(
                label,
                photos,
                int((given == label).sum()) / photos if photos else None,
                int(in_top5[of_class].sum()) / photos if photos else None,
                most if wrong[most] else None,
                int(wrong[most]),
            )
        )
    return sorted(scores, key=lambda s: (s.top1 is None, s.top1 or 0.0, s.top5 or 0.0))


def together(members: int) -> str:
    """The name of the row of several nets."""
    return f"average of {members}"


def accuracy_table(rows: Sequence[Row], members: int, paper: bool = False) -> str:
    """A line for each net and for their average: top-1, top-5 and loss, by views.

    paper: add the results of the paper.
    """
    views = list(dict.fromkeys(row.views for row in rows))
    header = [""]
    for each in views:
        header += [f"{TITLES[each]}: top-1", "top-5", "loss"]
    lines = [header]
    for start in range(0, len(rows), len(views)):
        line = [rows[start].name or together(members)]
        for row in rows[start : start + len(views)]:
            found = row.tally.evaluation()
            line += [f"{found.top1:.1%}", f"{found.top5:.1%}", f"{found.loss:.4f}"]
        lines.append(line)
    if paper:
        for title, errors in PAPER:
            if set(errors) & set(views):
                line = [f"paper: {title}"]
                for each in views:
                    shares = [f"{1 - error / 100:.1%}" for error in errors.get(each, ())]
                    line += [*(shares or ["", ""]), ""]
                lines.append(line)
    table = _aligned(lines)
    if paper:
        table += "\nThe paper lists errors: 100 % minus these. *: pre-trained on a larger ImageNet."
    return table


def class_table(scores: Sequence[ClassScore], names: Sequence[str]) -> str:
    """Class, photos, top-1, top-5, and the most frequent wrong prediction."""
    lines = [["class", "photos", "top-1", "top-5", "most often taken for"]]
    for score in scores:
        shares = ["" if each is None else f"{each:.1%}" for each in (score.top1, score.top5)]
        mistake = ""
        if score.mistaken_for is not None:
            mistake = f"{printable(names[score.mistaken_for])} ({score.mistakes})"
        lines.append([printable(names[score.label]), f"{score.photos:,}", *shares, mistake])
    return _aligned(lines, text=(0, 4))


def _aligned(lines: list[list[str]], text: tuple[int, ...] = (0,)) -> str:
    """Columns of equal width: those in `text` are left-aligned, the others right-aligned."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# --- JSON


def number(value: float) -> float | None:
    """`value`, or None for infinities and NaN, which JSON lacks."""
    return value if math.isfinite(value) else None


def results_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A JSON object for each row; "model" is null for the average of all."""
    found: list[dict[str, Any]] = []
    for row in rows:
        scores = {key: number(value) for key, value in asdict(row.tally.evaluation()).items()}
        found.append({"model": row.name or None, "views": row.views, **scores})
    return found


def classes_json(
    scores: Sequence[ClassScore], ids: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """A JSON object for each class, with its id and its name; the worst first."""
    return [
        asdict(score)
        | {
            "id": ids[score.label],
            "name": names[score.label],
            "mistaken_for": None if score.mistaken_for is None else names[score.mistaken_for],
        }
        for score in scores
    ]
