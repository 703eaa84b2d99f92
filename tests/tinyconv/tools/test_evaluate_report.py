"""Tables and JSON of what an evaluation found."""

import json

import numpy as np
import pytest

from tinyconv.evaluate import Tally
from tinyconv.tools.ensemble import Row
from tinyconv.tools.evaluate_report import (
    PAPER,
    ClassScore,
    accuracy_table,
    class_scores,
    class_table,
    classes_json,
    results_json,
)

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def tally_of(answers, labels, classes=7):
    """A net that is sure of its answers; of the others the first ones come next."""
    logs = np.full((len(answers), classes), np.log(0.1 / (classes - 1)))
    logs[np.arange(len(answers)), answers] = np.log(0.9)
    tally = Tally()
    tally.add(logs, np.array(labels))
    return tally


@pytest.fixture
def tally():
    labels = [0, 0, 0, 1, 1, 1, 1, 2, 6, 6]
    answers = [0, 0, 2, 3, 3, 2, 1, 2, 4, 3]
    return tally_of(answers, labels)


def test_classes_come_worst_first_with_what_they_are_taken_for(tally):
    scores = class_scores(tally, 7)
    assert scores[:4] == [
        ClassScore(6, 2, 0.0, 0.0, 3, 1),  # once each for dog and eel: the first of the two
        ClassScore(1, 4, 0.25, 1.0, 3, 2),
        ClassScore(0, 3, pytest.approx(2 / 3), 1.0, 2, 1),
        ClassScore(2, 1, 1.0, 1.0, None, 0),
    ]
    assert [(score.label, score.photos, score.top1) for score in scores[4:]] == [
        (3, 0, None),
        (4, 0, None),
        (5, 0, None),
    ]


def test_the_table_of_classes(tally):
    lines = class_table(class_scores(tally, 7), NAMES).splitlines()
    assert " ".join(lines[0].split()) == "class photos top-1 top-5 most often taken for"
    assert lines[1].split() == ["gnu", "2", "0.0%", "0.0%", "dog", "(1)"]
    assert lines[2].split() == ["bee", "4", "25.0%", "100.0%", "dog", "(2)"]
    assert lines[4].split() == ["cat", "1", "100.0%", "100.0%"]
    assert lines[5].split() == ["dog", "0"]


def test_answers_that_are_no_numbers_are_no_mistakes_for_anything():
    tally = Tally()
    tally.add(np.full((3, 7), np.nan), np.array([0, 0, 1]))
    scores = class_scores(tally, 7)
    assert scores[0] == ClassScore(0, 2, 0.0, 0.0, None, 0)


def rows():
    made = []
    for name, answers in (("a", [0, 1, 2]), ("runs/b", [0, 0, 0]), ("", [0, 1, 0])):
        for views in ("centre", "ten"):
            made.append(Row(name, views, tally_of(answers, [0, 1, 3])))
    return made


def test_the_table_of_nets():
    header, *lines = accuracy_table(rows(), 2).splitlines()
    assert header.split("  ")[-1].strip() == "loss" and "ten views: top-1" in header
    assert [line.split()[0] for line in lines] == ["a", "runs/b", "average"]
    assert lines[0].split()[1:3] == ["66.7%", "100.0%"]
    assert lines[2].startswith("average of 2")
    assert lines[1].split()[1] == "33.3%" and len({len(line) for line in [header, *lines]}) == 1


def test_one_net_given_twice_has_two_lines():
    twice = [row for row in rows() if row.name == "a"] * 2
    assert len(accuracy_table(twice, 2).splitlines()) == 3


def test_the_papers_results_stand_beside_as_accuracies():
    text = accuracy_table(rows(), 2, paper=True)
    lines = {line[7:33].strip(): line for line in text.splitlines() if line.startswith("paper:")}
    assert len(lines) == len(PAPER) == 5
    assert lines["1 CNN, ILSVRC-2012"].split()[-2:] == ["59.3%", "81.8%"]
    assert lines["5 CNNs, ILSVRC-2012"].split()[-2:] == ["61.9%", "83.6%"]
    assert lines["1 CNN, ILSVRC-2010 test"].split()[-4:] == ["61.0%", "81.7%", "62.5%", "83.0%"]
    assert "paper" not in accuracy_table(rows(), 2)
    centre = accuracy_table([row for row in rows() if row.views == "centre"], 2, paper=True)
    assert centre.count("paper:") == 1  # the only one without ten views


def test_json_is_json_whatever_was_found(tally):
    bad = Tally()
    bad.add(np.full((3, 7), np.nan), np.array([0, 0, 1]))
    found = results_json([*rows(), Row("nan", "ten", bad)])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found[0]["model"] == "a" and found[4]["model"] is None
    assert found[0]["top1"] == pytest.approx(2 / 3) and found[-1]["loss"] is None
    classes = classes_json(class_scores(tally, 7), [f"n{i}" for i in range(7)], NAMES)
    assert json.loads(json.dumps(classes)) == classes
    assert (classes[0]["id"], classes[0]["name"]) == ("n6", "gnu")
    assert classes[0]["mistaken_for"] == "dog" and classes[-1]["mistaken_for"] is None
