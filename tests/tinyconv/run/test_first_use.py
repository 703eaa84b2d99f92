"""The line that a first run writes: once, only while something is compiled, only for our loops."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numba

from tinyconv.run.first_use import LINE, compilation_announced

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from tinyconv.run.first_use import compilation_announced
from layers.activation import relu_forward_host, relu_backward_host
import numpy as np

with compilation_announced():
    x = np.zeros(3, np.float32)
    relu_forward_host(x, x)
    relu_backward_host(x, x, x)
relu_forward_host(np.zeros(3), np.zeros(3))
"""


def run(cache):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_one_line_with_an_empty_cache_and_none_with_a_full_one(tmp_path):
    assert run(tmp_path) == f"{LINE}\n"
    assert run(tmp_path) == ""


def our_loop(module):
    def loop(x):
        return x + 1

    loop.__module__ = module
    return numba.njit(loop)


def test_only_the_first_of_our_loops_is_announced():
    stream = io.StringIO()
    with compilation_announced(stream):
        our_loop("elsewhere.loops")(1)
        our_loop("layersandmore")(1)
        assert stream.getvalue() == ""
        our_loop("layers.some")(1)
        our_loop("tinyconv.other")(1)
    our_loop("layers.later")(1)
    assert stream.getvalue() == f"{LINE}\n"


def test_the_listener_leaves_when_the_work_fails():
    stream = io.StringIO()
    try:
        with compilation_announced(stream):
            raise KeyError
    except KeyError:
        pass
    our_loop("layers.after")(1)
    assert stream.getvalue() == ""
