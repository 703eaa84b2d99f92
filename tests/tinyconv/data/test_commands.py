"""Commands that programs print begin as the user has begun."""

import shlex
import sys
from pathlib import Path

import pytest

from tinyconv.data import commands


@pytest.mark.parametrize(
    ("started", "train", "plan"),
    [
        ("/opt/bin/tinyconv", "tinyconv train", "tinyconv plan"),
        ("/x/tinyconv/__main__.py", "PY -m tinyconv train", "PY -m tinyconv plan"),
        ("a b/train_alexnet.py", "PY 'a b/train_alexnet.py'", "PY -m tinyconv plan"),
        ("-c", "PY examples/train_alexnet.py", "PY -m tinyconv plan"),
    ],
)
def test_as_the_program_was_started(started, train, plan, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setattr(commands, "interpreter", lambda: "PY")
    assert (commands.train(), commands.tool("plan")) == (train, plan)


@pytest.mark.skipif(sys.platform == "win32", reason="names of POSIX")
def test_the_interpreter_that_runs(tmp_path, monkeypatch):
    python = tmp_path / "a b" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(python.parent))
    assert commands.interpreter() == "python"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commands.interpreter() == shlex.quote(str(python))
    monkeypatch.chdir(tmp_path)
    assert commands.interpreter() == "'a b/python'"
    assert Path(shlex.split(commands.interpreter())[0]).exists()
