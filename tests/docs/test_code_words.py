"""Docstrings, comments and messages of the code use the field's words, like the documents."""

import ast
import importlib.util
import io
import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

_spec = importlib.util.spec_from_file_location("words_to_avoid", HERE / "test_words.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
SAY = _module.SAY

FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("layers", "tinyconv", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def texts(source):
    """(first line, text) of each comment and each string literal of a file.

    Comments on successive lines are one text. The expressions of an f-string are left out.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [(t.start[0], t.string[1:]) for t in tokens if t.type == tokenize.COMMENT]
    first = 0
    for i, (one, other) in enumerate(pairwise([*comments, (-1, "")]), 1):
        if other[0] != one[0] + 1:
            yield comments[first][0], " ".join(text for _, text in comments[first:i])
            first = i
    inside = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            parts = (x.value if isinstance(x, ast.Constant) else " {} " for x in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(getattr(node, "value", None), str) and id(node) not in inside:
            yield node.lineno, node.value


def words_in(source):
    """ "line N: WORD; say ..." for each word to avoid; N is where its text begins."""
    return [
        f"line {line}: {match[0]}; say {say}"
        for line, text in sorted(texts(source))
        for word, say in SAY.items()
        for match in re.finditer(rf"\b(?:{word})\b", " ".join(text.split()), re.I)
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_file_uses_the_fields_words(name):
    found = words_in((ROOT / name).read_text(encoding="utf-8"))
    assert not found, f"{name}\n" + "\n".join(found)


def test_words_are_found_in_docstrings_comments_and_messages():
    source = (
        '"""A mended\n    file."""\n'
        "x = 1  # this is\n"
        "# dear; it goes\n"
        "# on\n\n"
        "# with the next\n"
        'absent = f"{absent} is" f" absent {x:3}"\n'
        "def stand_in(meeting): 'ABSENT'\n"
    )
    assert [found.partition(";")[0] for found in words_in(source)] == [
        *("line 1: mended", "line 3: dear", "line 3: goes on"),
        *("line 8: absent", "line 9: ABSENT"),
    ]
    assert words_in("x = 1\n") == []


def test_files_are_found():
    assert len(FILES) > 100
