"""What the compiler made of every kernel, for all tests that ask: compiled once in a test run.

The simulator has no compiler, so `compile_kernels.py` does it in a process of its own, which takes
ten seconds for those of the book. The processes among which pytest-xdist divides the tests share
no memory, but a folder: the first that asks has it filled, and another that asks meanwhile waits.
It is a new folder in every run, so nothing in it can be older than the sources.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

try:
    import fcntl
except ImportError:  # no locks of this kind: each process has a folder of its own
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("compile_kernels.py")


class Compiled:
    """`rows` of rows.json, the path of `ptxas`, and the PTX."""

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / "rows.json").read_text())
        self.rows: list[dict[str, Any]] = content["rows"]
        self.ptxas: str | None = content["ptxas"]
        self._folder = folder

    def row(self, name: str, dtype: str, architecture: tuple[int, int]) -> dict[str, Any]:
        """What became of one kernel for one dtype and architecture."""
        wanted = name, dtype, list(architecture)
        (found,) = (r for r in self.rows if (r["kernel"], r["dtype"], r["architecture"]) == wanted)
        return found

    def ptx(self, name: str, dtype: str, architecture: tuple[int, int]) -> str:
        """Its PTX; AssertionError if it did not compile."""
        found = self.row(name, dtype, architecture)
        assert "ptx" in found, found["error"]
        return (self._folder / found["ptx"]).read_text()


def compiled(factory: pytest.TempPathFactory, full: bool) -> Compiled:
    """Those of the book for sm_90, or (full) all of them for every architecture.

    Compiled by whoever asks first.
    """
    base = factory.getbasetemp()
    if fcntl and "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which the processes have in common
    folder = base / "kernels"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "rows.json").exists():
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            environment.pop("NUMBA_ENABLE_CUDASIM", None)
            command = [sys.executable, str(SCRIPT), str(folder), *([] if full else ["book"])]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return Compiled(folder)
