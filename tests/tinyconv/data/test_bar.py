"""What runs where tqdm, greenlet or matplotlib is missing: everything but what needs it."""

import subprocess
import sys

import pytest
from marks import long

PROGRAM = """
import sys, pkgutil, importlib, numpy as np
from importlib.util import find_spec
sys.modules[{name!r}] = None
import layers, tinyconv
for package in (layers, tinyconv):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        without_onnx = found.name.endswith(".onnx_graph") and not find_spec("onnx")
        if not found.name.endswith("__main__") and not without_onnx:  # the extra `export`
            importlib.import_module(found.name)
from tinyconv.data.bar import tqdm
with tqdm(range(3), disable=True) as bar:
    assert list(bar) == [0, 1, 2]
    bar.update(2)
    bar.set_postfix(loss="1")
assert bar.disable
tqdm.write("a line", file=sys.stdout)
from tinyconv.run.plots import plot_filters
plot_filters(np.ones((2, 3, 3, 3), np.float32), "filters.png")
"""


@pytest.mark.parametrize("name", ["tqdm", long("greenlet"), long("matplotlib")])
def test_a_missing_package_costs_only_what_needs_it(name, tmp_path):
    command = [sys.executable, "-c", PROGRAM.format(name=name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a line\n"), done.stderr
    drawn = name != "matplotlib"
    assert (tmp_path / "filters.png").exists() == drawn
    assert ("no filters.png: matplotlib is not installed" in done.stderr) != drawn
