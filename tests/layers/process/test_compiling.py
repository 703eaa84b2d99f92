"""Numba's cache and the line about it: loops compile and compute where nothing can be cached."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from marks import long

from layers.process.compiling import IN_MEMORY, LINE

ROOT = Path(__file__).resolve().parents[3]
ONE_LOOP = """
import numpy as np
from layers import ReLU
x = np.array([[1, -2]], np.float32)
assert ReLU().forward(x).tolist() == [[1, 0]]
"""
TWO_LOOPS = f"{ONE_LOOP}\nfrom layers import Tanh\nTanh().forward(x)\n"


def run(program, cache, source=ROOT):
    """Standard error of a program that Python runs with this folder as Numba's."""
    environment = {**os.environ, "PYTHONPATH": str(source), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_one_line_with_an_empty_cache_and_none_with_a_full_one(tmp_path):
    assert run(TWO_LOOPS, tmp_path) == [LINE]
    assert run(TWO_LOOPS, tmp_path) == []


@pytest.mark.full
def test_an_installation_where_nothing_can_be_written(tmp_path, monkeypatch):
    """Files in place of all folders that Numba tries: permissions would not bind root."""
    occupied = tmp_path / "file"
    occupied.touch()
    for package in "layers", "tinyconv":
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=skip)
        for folder in [tmp_path / package, *(tmp_path / package).rglob("*/")]:
            if folder.is_dir():
                (folder / "__pycache__").touch()
    for name in "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA":
        monkeypatch.setenv(name, str(occupied))
    program = (
        f"import tinyconv\n{TWO_LOOPS}\nassert tinyconv.__file__.startswith({str(tmp_path)!r})"
    )
    assert run(program, occupied / "numba", tmp_path) == [IN_MEMORY]


def spoil(cache, how):
    for index in cache.rglob("*.nbi"):
        index.unlink()
        index.mkdir() if how == "unreadable" else index.write_bytes(b"")


@pytest.mark.parametrize("how, error", [long("unreadable", "IsADirectory"), ("damaged", "EOF")])
def test_a_cache_that_cannot_be_read_is_not_used(tmp_path, how, error):
    run(ONE_LOOP, tmp_path)
    spoil(tmp_path, how)
    not_used, compiling = run(ONE_LOOP, tmp_path)
    assert compiling == LINE
    assert str(tmp_path) in not_used and f"is not used: {error}Error" in not_used


@pytest.mark.full
def test_a_full_disk_does_not_end_the_program(tmp_path):
    pytest.importorskip("resource")  # a limit on the size of files: writing fails as on a full disk
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    limited = TWO_LOOPS.replace("from layers import Tanh\n", f"from layers import Tanh\n{limit}")
    assert limit in limited
    compiling, not_used = run(limited, tmp_path)
    assert compiling == LINE and "is not used: OSError" in not_used


def test_only_our_loops_are_announced(tmp_path):
    program = "import layers, numba\nnumba.njit(lambda x: x + 1)(1)\n"
    assert run(program, tmp_path) == []
