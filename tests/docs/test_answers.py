"""The five stories of docs/answers.md: a fault is planted, and the tools say what it shows."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
STORIES = re.findall(
    r"^<!-- in (\S+), after (.+?): (\".+?\") becomes (\".+?\") -->\n```\n(.*?)^```$",
    TEXT,
    re.S | re.M,
)


def test_there_are_five():
    assert len(STORIES) == TEXT.count("<!-- in ") == 5


@pytest.mark.full
@pytest.mark.parametrize("story", STORIES, ids=range(1, 6))
def test_the_tools_say_what_stands_there(story, tmp_path):
    file, after, old, new, block = story
    for package in ("layers", "tinyconv"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    text = (tmp_path / file).read_text(encoding="utf-8")
    begin = text.index(after)
    changed = text[begin:].replace(ast.literal_eval(old), ast.literal_eval(new), 1)
    assert changed != text[begin:]
    (tmp_path / file).write_text(text[:begin] + changed, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    printed: list[str] = []
    for line in block.splitlines():
        if line.startswith("python "):
            done = subprocess.run(
                [sys.executable, *line.split()[1:]],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            printed = done.stdout.splitlines()
        else:
            assert any(line.strip() == said.strip() for said in printed), done.stdout + done.stderr


def test_every_question_of_the_tour_has_an_answer():
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    exercises = re.findall(r"^(\d)\. \*\*(.+?)\.\*\*", tour, re.M)
    assert len(exercises) == 6
    for number, title in exercises:
        assert f"<summary>{number}. " in TEXT, title
    assert TEXT.count("<details>") == TEXT.count("</details>") == 15
