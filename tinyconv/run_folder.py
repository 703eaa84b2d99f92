"""A folder for each run: weights, metrics and pictures, made before training begins."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layers import Conv2D
from tinyconv.checkpoint import save_weights
from tinyconv.plots import plot_curves, plot_filters
from tinyconv.sequential import Sequential
from tinyconv.train import Epoch


class RunFolder:
    """Where a run writes: weights.h5, metrics.jsonl, curves.png, conv1_filters.png.

    out: a folder that does not exist yet or is empty; None takes the next free runs/001,
    runs/002, ... Made at once, so that a place that cannot be written fails before training;
    used in a `with` statement, a folder into which nothing was written is taken away again.
    FileExistsError if the folder holds something, OSError if it cannot be made.
    """

    def __init__(self, out: str | Path | None = None) -> None:
        if out is None:
            self.path = _next_free(Path("runs"))
        else:
            self.path = Path(out)
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise FileExistsError(f"{out} is not empty; name another folder with --out")
        self.metrics = self.path / "metrics.jsonl"
        self.metrics.touch()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.metrics.stat().st_size and len(list(self.path.iterdir())) == 1:
            self.metrics.unlink()
            self.path.rmdir()

    def add(self, epoch: Epoch) -> None:
        """Append one line of JSON to metrics.jsonl, on disk as soon as it is known."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(epoch.as_dict()) + "\n")

    def finish(
        self, net: Sequential, mean_image: Any, settings: dict[str, Any], history: Sequence[Epoch]
    ) -> None:
        """Write the weights, the curves and the filters of the first layer."""
        save_weights(self.path / "weights.h5", net, mean_image, settings)
        if history:
            plot_curves(history, self.path / "curves.png")
        first = net.layers[0]
        if isinstance(first, Conv2D) and first.in_channels == 3:
            plot_filters(
                net.device.to_host(first.weight.value), self.path / f"{first.name}_filters.png"
            )


def _next_free(parent: Path) -> Path:
    """Make and return the first of parent/001, parent/002, ... that is not there."""
    for number in range(1, 1_000_000):
        path = parent / f"{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise
            continue
        return path
    raise FileExistsError(f"no free number in {parent}")
