"""The last lines of a run: pictures, a number, and commands that work as printed."""

import configparser
import importlib.util
import subprocess

import numpy as np
import pytest
from programs import ROOT, environment

from tinyconv.run import closing
from tinyconv.run.closing import look_lines, next_lines


def commands():
    return [line.strip() for line in next_lines() if line.startswith("    ")]


def test_the_pictures_and_the_number_of_the_second(tmp_path):
    text = "\n".join(look_lines(tmp_path / "run", np.ones((2, 11, 11, 3), np.float32)))
    for name in ("curves.png", "conv1_filters.png"):
        assert str(tmp_path / "run" / name) in text
    assert "100% of a filter is in low frequencies, of white noise 37%" in text
    # Of 4×4 frequencies five are low: 0, and 1/4 up, down, left and right.
    assert "of white noise 31%" in look_lines("run", np.zeros((1, 4, 4, 3)))[-1]


@pytest.mark.full
def test_every_command_works_as_printed(tmp_path):
    """In a folder with the same programs, so that nothing is written into this one."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert len(commands()) == 3
    for command in commands():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "max_pool.html").stat().st_size > 10_000


def test_without_greenlet_its_installation_comes_first(monkeypatch):
    before = commands()
    monkeypatch.setattr(closing, "find_spec", lambda name: None)
    *others, install, last = commands()
    assert [*others, last] == before and "draw-kernel" in last
    assert install.endswith(" -m pip install -e '.[simulator]'")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "greenlet" in setup["options.extras_require"]["simulator"]
    assert importlib.util.find_spec("greenlet")  # which the first list relies on
