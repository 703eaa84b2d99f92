"""A child that is forked after its parent has computed: an error, where OpenMP would end it."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from layers import ReLU
from layers.process import forks

FORK = """
import os, sys
import numpy as np
from layers import ReLU
x = np.ones((1, 4), np.float32)
relu = ReLU()
if {before}:
    relu.forward(x)
if os.fork() == 0:
    relu.forward(x)
    print("computed", flush=True)
    os._exit(0)
_, status = os.wait()
relu.forward(x)
print(os.waitstatus_to_exitcode(status))
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def forked(before):
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(before=before)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.split(), done.stderr


def test_before_the_first_computation_parent_and_child_compute():
    assert forked(before=False) == (["computed", "0"], "")


def test_afterwards_the_child_gets_an_error_that_names_spawn():
    ReLU().forward(np.ones((1, 4), np.float32))
    if numba.threading_layer() != "omp":
        pytest.skip("Numba's loops survive a fork here")
    printed, said = forked(before=True)
    assert printed == ["1"]
    assert said.splitlines()[-1] == f"layers.device.DeviceError: {forks.MESSAGE}"
    assert "'spawn'" in forks.MESSAGE


def test_a_gpu_in_use_does_not_survive_either(monkeypatch):
    monkeypatch.setattr(forks.device, "_cupy", object())
    assert forks.has_computed()
