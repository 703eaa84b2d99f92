"""The first part of docs/tour.md can be read in an afternoon."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def afternoon():
    """The files of the numbered list in the section "The afternoon", in order."""
    (section,) = re.findall(r"^## The afternoon$(.*?)^## ", TOUR, re.S | re.M)
    items = re.findall(r"^(\d+)\. `([\w/]+\.py)`", section, re.M)
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    return [path for _, path in items]


def test_it_is_short(afternoon):
    lines = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in afternoon)
    most = re.search(r"at most (\d+)\s+files\s+and\s+([\d,]+)\s+lines", TOUR)
    assert (most[1], most[2]) == ("22", "3,000")
    assert 0 < len(afternoon) <= 22
    assert lines <= 3000, "move a file to the wings, or make one shorter"


def test_it_has_every_layer_of_the_book_and_the_training_loop(afternoon):
    book = {f"layers/{path.name}" for path in (ROOT / "layers").glob("*.py")}
    assert book - {"layers/__init__.py"} <= set(afternoon)
    assert afternoon[-1] == "tinyconv/train.py"


def test_each_file_is_visited_once(afternoon):
    assert len(set(afternoon)) == len(afternoon)
    wings = TOUR[TOUR.index("\n## The wings\n") :]
    assert not [path for path in afternoon if f"`{path}`" in wings]
