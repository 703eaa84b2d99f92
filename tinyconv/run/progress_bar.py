"""The progress bar of a training run: images, loss and accuracy, on standard error."""

import sys
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from tinyconv.train import Training


class ProgressBar:
    """Shows how far `training` is: call `on_step` after each step. A context manager.

    shown: None for "if standard error is a terminal".
    """

    def __init__(self, training: Training, shown: bool | None = None) -> None:
        data, now = training.data, training.progress
        self._training = training
        self._images = min(data.batch_size, len(data.train))
        steps = training.epochs * max(1, len(data.train) // data.batch_size)
        self._bar = tqdm(
            total=steps * self._images,
            initial=now.step * self._images,
            unit="img",
            disable=None if shown is None else not shown,
            file=sys.stderr,
            smoothing=0.05,
        )

    def on_step(self) -> None:
        """One step more."""
        self._bar.update(self._images)
        now = self._training.progress
        self._bar.set_postfix(
            loss=f"{self._training.train_loss():.3f}",
            top1=f"{now.correct / max(1, now.seen):.0%}",
            refresh=False,
        )

    @contextmanager
    def hidden(self) -> Any:
        """While something is printed to standard output."""
        with self._bar.external_write_mode(file=sys.stdout):
            yield

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
