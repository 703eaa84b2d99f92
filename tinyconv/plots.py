"""Pictures of a run: how loss and accuracy went, and the first filters (paper, figure 3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tinyconv.train import Epoch


def plot_curves(history: Sequence[Epoch], path: str | Path) -> None:
    """Loss and top-1 accuracy of training and validation, epoch by epoch, as a PNG."""
    epochs = [e.epoch for e in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
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


def plot_filters(weight: np.ndarray, path: str | Path) -> None:
    """Filters (K, R, S, 3) as coloured squares, as a PNG: conv1, the paper's figure 3.

    Each filter is stretched by itself: grey is 0, and its largest weight is full colour.
    """
    count = weight.shape[0]
    columns = min(count, 16)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.6 * columns, 0.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"conv1: {count} filters of {weight.shape[1]}×{weight.shape[2]}", fontsize=9)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < count:
            largest = float(np.abs(weight[i]).max()) or 1.0
            axes.imshow(np.clip(0.5 + 0.5 * weight[i] / largest, 0, 1), interpolation="nearest")
    figure.savefig(path, dpi=120, metadata={"Software": None})
