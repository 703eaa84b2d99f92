"""What a run prints at its end: what to look at, and what to try next."""

import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tinyconv.run.filters import low_frequencies, low_frequencies_of_noise


def look_lines(folder: str | Path, conv1: np.ndarray) -> list[str]:
    """The two pictures in a run's folder, and a number for the second.

    conv1: the trained filters (K, R, S, 3), on the host.
    """
    share, noise = low_frequencies(conv1).mean(), low_frequencies_of_noise(*conv1.shape[1:3])
    folder = Path(folder)
    return [
        "to look at:",
        f"  {folder / 'curves.png'}: loss and accuracy, epoch by epoch",
        f"  {folder / 'conv1_filters.png'}: the first filters, each by itself (paper, figure 3):",
        f"    {share:.0%} of a filter is in low frequencies, of white noise {noise:.0%}",
    ]


def next_lines() -> list[str]:
    """Commands of a few seconds each, to be run where the program was, and a hint at own photos.

    Commands are indented by four spaces. They start with "python" if a shell finds this very
    interpreter by that name, else with its path. The laboratory's are preceded by the installation
    of the simulator if it is missing.
    """
    python = _interpreter()
    install = [] if find_spec("greenlet") else [f"    {python} -m pip install -e '.[simulator]'"]
    return [
        "to try next:",
        "  can the net memorize a single batch? The first test of any change to a net:",
        f"    {train_command()} --overfit-one-batch --lr 0.005",
        "  which file computes which layer on this machine:",
        f"    {python} -m tinyconv plan",
        "  how a kernel works, step by step, in a browser (it writes max_pool.html):",
        *install,
        f"    {python} -m tinyconv draw-kernel max_pool",
        "  your own photos, in photos/train/<class>/ and photos/val/<class>/: add --data photos",
    ]


def train_command() -> str:
    """What to type for the program that runs, up to its options."""
    name = Path(sys.argv[0]).name
    if name == "tinyconv":
        return "tinyconv train"
    if name == "__main__.py":
        return f"{_interpreter()} -m tinyconv train"
    script = sys.argv[0] if name == "train_alexnet.py" else "examples/train_alexnet.py"
    return f"{_interpreter()} {shlex.quote(script)}"


def _interpreter() -> str:
    """What to type for the Python that runs this: "python", or a quoted path."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    path, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
