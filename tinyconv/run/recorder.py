"""What a run writes down while it trains: checkpoints, metrics, and a line for each epoch."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layers import Device
from tinyconv.data.bar import tqdm
from tinyconv.parallel.columns import Columns
from tinyconv.run.closing import look_lines, next_lines
from tinyconv.run.diagnose import first_loss_note, stuck_note
from tinyconv.run.options import resume_command
from tinyconv.run.plots import plot_column_filters, plot_curves
from tinyconv.run.run_folder import RunFolder
from tinyconv.train import Epoch, Training

LONG = 30.0
"""Seconds of an epoch after which curves.png is drawn; at the end of a run it always is."""


class Recorder:
    """Keeps `training` on disk: give its `on_step` and `on_epoch` to `Training.run`.

    folder: None for a rank that writes and prints nothing. settings: what every checkpoint holds
    and a resumed run has to agree with. options: of the program; a checkpoint is written after
    every epoch, and within one every `checkpoint_minutes`, or every `checkpoint_steps` steps if
    given. `history` is the list of epochs so far, those before a resumption included.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        training: Training,
        settings: dict[str, Any],
        options: argparse.Namespace,
    ) -> None:
        minutes, steps = options.checkpoint_minutes, options.checkpoint_steps
        if not minutes > 0 or (steps is not None and steps < 1):
            raise ValueError(
                f"checkpoints: minutes and steps between them must be positive, not {minutes} and "
                f"{steps}"
            )
        self.folder, self.training, self.settings = folder, training, settings
        self.options, self.minutes, self.steps = options, minutes, steps
        self.history: list[Epoch] = []
        self._saved_at = time.monotonic()
        self.prints = None if folder else False
        """For `ProgressBar`: a bar if there is a terminal, or none."""

    def begin(self) -> None:
        """Write the first checkpoint, or resume from the newest readable one.

        CheckpointError if none can be read or they are of another network, data set or choice of
        settings.
        """
        if self.folder is None:
            return
        if not self.options.resume:
            data = self.options.data and str(Path(self.options.data).absolute())
            self.folder.write_options(vars(self.options) | {"data": data})
            self.save()  # so that there is one whatever happens
            return
        for damage in self.folder.restore(self.training, self.settings):
            print(f"skipped a checkpoint: {damage}", file=sys.stderr)
        now = self.training.progress
        self.history = self.folder.history(before=now.epoch)
        print(f"resuming after step {now.step} (epoch {now.epoch})")

    def save(self, best: bool = False) -> None:
        """Write a checkpoint now."""
        assert self.folder is not None
        self.folder.save(self.training, self.settings, best)
        self._saved_at = time.monotonic()

    def on_step(self) -> None:
        """Write a checkpoint if it is time for one."""
        if self.folder is None:
            return
        if self.steps is not None:
            due = self.training.progress.step % self.steps == 0
        else:
            due = time.monotonic() - self._saved_at >= 60 * self.minutes
        if due:
            self.save()

    def on_epoch(self, epoch: Epoch) -> None:
        """Metrics first, then the checkpoint: what it holds has been written down."""
        if self.folder is None:
            return
        self.history.append(epoch)
        self.folder.add(epoch)
        self.save(epoch.best)
        if epoch.seconds > LONG:
            plot_curves(self.history, self.folder.path / "curves.png")
        classes = len(self.settings["class_names"])
        lines = [str(epoch), stuck_note([each.train_loss for each in self.history], classes)]
        if len(self.history) == 1:
            lines.insert(0, first_loss_note(epoch.first_loss, classes))
        tqdm.write("\n".join(filter(None, lines)), file=sys.stdout)  # above a progress bar
        sys.stdout.flush()

    def finish(self, done: bool) -> None:
        """At the end weights and pictures; if the run was stopped, a checkpoint."""
        if self.folder is None:
            return
        now, net = self.training.progress, self.training.net
        if not done:
            self.save()
            print(
                f"stopped after step {now.step} (epoch {now.epoch}); resume with: "
                f"{resume_command(self.options, self.folder.path)}"
            )
            return
        self.folder.finish(net, self.training.data.augment.mean, self.settings, self.history)
        first: Any = net["conv1"]
        filters = Device.to_host(first.weight.value)
        if isinstance(net, Columns):
            plot_column_filters(filters, self.folder.path / "conv1_filters.png")
        if self.history:
            last = self.history[-1]
            print(f"validation top-1 {last.val_top1:.1%}, top-5 {last.val_top5:.1%}")
        print(f"weights, metrics, curves and filters are in {self.folder.path}")
        advice = [] if self.options.data else next_lines()
        print("\n".join(["", *look_lines(self.folder.path, filters), *advice]))


def in_turn(*functions: Callable[[], None]) -> Callable[[], None]:
    """One function that calls all of them."""

    def call() -> None:
        for function in functions:
            function()

    return call
