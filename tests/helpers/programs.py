"""Programs in processes of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**more):
    """For a process that imports tinyconv, the examples and the helpers, without the simulator."""
    paths = [ROOT, ROOT / "examples", ROOT / "tests" / "helpers"]
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | more


def run_program(*command, before=(), cwd=None, timeout=60, **more):
    """(exit status, standard output, standard error) of Python with these arguments.

    before: what precedes Python in the command; more: environment variables.
    """
    done = subprocess.run(
        [*before, sys.executable, *map(str, command)],
        env=environment(**more),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def example(name):
    """A program of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
