"""For the tests of the simulator: skips the module that imports it where the simulator is off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from layers import simulator

if not config.ENABLE_CUDASIM:
    pytest.skip("the simulator is off: set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)
IN_FORCE = simulator.install()
if not simulator.installed:
    pytest.skip(IN_FORCE, allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


def line_of(kernel, text):
    """The number of the line with `text` in the source of `kernel`."""
    code = kernel.py_func.__code__
    lines = Path(code.co_filename).read_text().splitlines()
    return next(n for n in range(code.co_firstlineno, len(lines)) if text in lines[n - 1])


def refusal(kernel, blocks, threads, *args):
    """What the simulator says to a launch that must fail."""
    with pytest.raises(simulator.SimulatorError) as caught:
        kernel[blocks, threads](*args)
    return str(caught.value)


def run_script(script, *, typed=""):
    """The output of a Python script in a process of its own, given `typed` at its prompts."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONBREAKPOINT", None)
    done = subprocess.run(
        [sys.executable, str(script)],
        input=typed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
