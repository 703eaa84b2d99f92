"""Pictures of a run: how loss and accuracy went, and the first filters (paper, figure 3)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyconv.run.filters import colourfulness, low_frequencies, low_frequencies_of_noise
from tinyconv.train import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(**options: Any) -> Figure:
    # Matplotlib takes nearly as long to import as all the rest, and a picture is drawn at the end
    # of a run, by one of its processes: nobody else waits for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def _drawn(draw: Callable[..., None]) -> Callable[..., None]:
    """The same; without matplotlib one line on standard error instead, as a run must not fail."""

    @wraps(draw)
    def drawn(what: Any, path: str | Path) -> None:
        try:
            draw(what, path)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("matplotlib"):
                raise
            print(f"no {path}: matplotlib is not installed", file=sys.stderr)

    return drawn


@_drawn
def plot_curves(history: Sequence[Epoch], path: str | Path) -> None:
    """Loss and top-1 accuracy of training and validation, epoch by epoch, as a PNG."""
    epochs = [e.epoch for e in history]
    figure = _figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [e.train_loss for e in history], ".-", label="training")
    left.plot(epochs, [e.val_loss for e in history], ".-", label="validation")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    right.plot(epochs, [100 * e.train_top1 for e in history], ".-", label="training")
    right.plot(epochs, [100 * e.val_top1 for e in history], ".-", label="validation")
    right.set(xlabel="epoch", ylabel="top-1 accuracy, %", ylim=(0, 102))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


@_drawn
def plot_filters(weight: np.ndarray, path: str | Path) -> None:
    """Filters (K, R, S, 3) as coloured squares, as a PNG: conv1, the paper's figure 3.

    Each filter is stretched by itself: grey is 0, and its largest weight is full colour. The title
    has the mean of their `low_frequencies`.
    """
    count, height, width = weight.shape[:3]
    share, noise = low_frequencies(weight).mean(), low_frequencies_of_noise(height, width)
    columns = min(count, 16)
    rows = -(-count // columns)
    figure = _figure(figsize=(max(0.6 * columns, 4.8), 0.6 * rows + 0.4), layout="constrained")
    figure.suptitle(
        f"conv1: {count} filters of {height}×{width}, {share:.0%} low frequencies "
        f"(white noise: {noise:.0%})",
        fontsize=9,
    )
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < count:
            largest = float(np.abs(weight[i]).max()) or 1.0
            axes.imshow(np.clip(0.5 + 0.5 * weight[i] / largest, 0, 1), interpolation="nearest")
    figure.savefig(path, dpi=120, metadata={"Software": None})


@_drawn
def plot_column_filters(weight: np.ndarray, path: str | Path) -> None:
    """conv1's filters (K, R, S, 3), those of column 0 above those of column 1, as a PNG.

    Under each filter stands its `colourfulness` in percent, and over each column its mean. In the
    paper one column became colour-agnostic and the other colour-specific, in every run (figure 3,
    §6.1). Filters are stretched as in `plot_filters`.
    """
    share = colourfulness(weight)
    middle = weight.shape[0] - weight.shape[0] // 2
    across = min(middle, 16)
    figure = _figure(figsize=(max(0.6 * across, 4), 0.78 * 2 * -(-middle // across) + 0.9))
    halves: Any = figure.subfigures(2, 1)
    for column, part in enumerate((slice(0, middle), slice(middle, None))):
        filters, shares = weight[part], share[part]
        halves[column].suptitle(
            f"column {column}: {len(filters)} filters, colourfulness "
            f"{shares.mean():.0%} on average",
            fontsize=9,
        )
        places = halves[column].subplots(-(-middle // across), across, squeeze=False)
        halves[column].subplots_adjust(0.01, 0.02, 0.99, 0.82, wspace=0.08, hspace=0.45)
        for i, axes in enumerate(places.flat):
            axes.set_axis_off()
            if i < len(filters):
                largest = float(np.abs(filters[i]).max()) or 1.0
                squares = np.clip(0.5 + 0.5 * filters[i] / largest, 0, 1)
                axes.imshow(squares, interpolation="nearest")
                axes.set_title(f"{shares[i]:.0%}", fontsize=6, pad=1.5)
    figure.savefig(path, dpi=120, metadata={"Software": None})
