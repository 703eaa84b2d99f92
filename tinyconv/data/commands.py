"""Commands as a user has to type them: what the programs print works where it is printed."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def tool(command: str) -> str:
    """`tinyconv COMMAND`, in the way in which this program was started."""
    if Path(sys.argv[0]).name == "tinyconv":
        return f"tinyconv {command}"
    return f"{interpreter()} -m tinyconv {command}"


def train() -> str:
    """The training program, up to its options."""
    return _example("train", "train_alexnet.py")


def evaluate() -> str:
    """The program that evaluates nets, up to its options."""
    return _example("evaluate", "evaluate.py")


def _example(command: str, script: str) -> str:
    name = Path(sys.argv[0]).name
    if name in ("tinyconv", "__main__.py"):
        return tool(command)
    path = sys.argv[0] if name == script else f"examples/{script}"
    return f"{interpreter()} {shlex.quote(path)}"


def interpreter() -> str:
    """The Python that runs this: "python" if a shell finds it by that name, or a quoted path."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    path, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
