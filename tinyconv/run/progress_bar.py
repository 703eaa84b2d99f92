"""The progress of a training run: a bar on a terminal, elsewhere a line a minute."""

import sys
import time

from tinyconv.data.bar import tqdm
from tinyconv.train import Training

EVERY = 60.0
"""Seconds between two lines where there is no terminal (nohup, batch systems)."""


class ProgressBar:
    """Shows how far `training` is: call `on_step` after each step. A context manager.

    shown: None for a bar if standard error is a terminal, else lines on standard output, the first
    after the first step; False for neither.
    """

    def __init__(self, training: Training, shown: bool | None = None) -> None:
        data, now = training.data, training.progress
        self._training = training
        self._images = min(data.batch_size, len(data.train))
        steps = training.epochs * max(1, len(data.train) // data.batch_size)
        self._steps, self._begun = steps, now.step
        self._started, self._printed = time.monotonic(), -EVERY
        self._bar = tqdm(
            total=steps * self._images,
            initial=now.step * self._images,
            unit="img",
            disable=None if shown is None else not shown,
            file=sys.stderr,
            smoothing=0.05,
        )
        self._lines = shown is None and self._bar.disable

    def on_step(self) -> None:
        """One step more."""
        self._bar.update(self._images)
        now = self._training.progress
        if self._lines:
            self._print_line(now.step)
            return
        self._bar.set_postfix(
            loss=f"{self._training.train_loss():.3f}",
            top1=f"{now.correct / max(1, now.seen):.0%}",
            refresh=False,
        )

    def _print_line(self, step: int) -> None:
        seconds = time.monotonic() - self._started
        if seconds - self._printed < EVERY or not self._training.progress.seen:
            return  # of a GPU's first step the loss is not known yet
        self._printed = seconds
        done = step - self._begun
        line = f"step {step:,} of {self._steps:,}   loss {self._training.train_loss():.4f}"
        if done > 1:
            left = seconds / done * (self._steps - step)
            line += f"   {done * self._images / seconds:,.0f} images/s   {left / 60:,.0f} min left"
        print(line, flush=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
