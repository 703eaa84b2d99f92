"""benchmarks/launch_cost.py: both ways are timed, and the kept one costs less."""

import re
import subprocess
import sys
from pathlib import Path

import launch_cost


def test_an_array_whose_view_is_kept_costs_less():
    done = subprocess.run(
        [sys.executable, launch_cost.__file__], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    dlpack, kept = (float(x) for x in re.findall(r"\| +([\d.]+) \|", done.stdout))
    assert 0 < kept < dlpack / 2  # 12 times here
    assert Path(launch_cost.__file__).name in launch_cost.__doc__
