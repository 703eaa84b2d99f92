"""What a run prints at its end: what to look at, and what to try next."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tinyconv.data import commands
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
    install = f"    {commands.interpreter()} -m pip install -e '.[simulator]'"
    return [
        "to try next:",
        "  can the net memorize a single batch? The first test of any change to a net:",
        f"    {commands.train()} --overfit-one-batch",
        "  which file computes which layer on this machine:",
        f"    {commands.tool('plan')}",
        "  how a kernel works, step by step, in a browser (it writes max_pool.html):",
        *([] if find_spec("greenlet") else [install]),
        f"    {commands.tool('draw-kernel')} max_pool",
        "  your own photos, in photos/train/<class>/ and photos/val/<class>/: add --data photos",
    ]
