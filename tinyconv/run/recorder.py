"""What a run writes down while it trains: checkpoints, metrics, and a line for each epoch."""

import time
from typing import Any

from tinyconv.diagnose import first_loss_note, stuck_note
from tinyconv.run.run_folder import RunFolder
from tinyconv.train import Epoch, Training


class Recorder:
    """Keeps `training` on disk: give its `on_step` and `on_epoch` to `Training.run`.

    settings: what every checkpoint holds and a resumed run has to agree with. A checkpoint is
    written after every epoch, and within one every `minutes`, or every `steps` steps if given.
    `history` is the list of epochs so far, those before a resumption included.
    """

    def __init__(
        self,
        folder: RunFolder,
        training: Training,
        settings: dict[str, Any],
        minutes: float = 10,
        steps: int | None = None,
    ) -> None:
        if minutes <= 0 or (steps is not None and steps < 1):
            raise ValueError(
                f"checkpoints: minutes and steps between them must be positive, not {minutes} and "
                f"{steps}"
            )
        self.folder, self.training, self.settings = folder, training, settings
        self.minutes, self.steps = minutes, steps
        self.history: list[Epoch] = []
        self._saved_at = time.monotonic()

    def start(self) -> None:
        """Write the first checkpoint, so that there is one whatever happens."""
        self.save()

    def resume(self) -> list[str]:
        """Put `training` where the newest readable checkpoint left it.

        Returns a line for each damaged checkpoint that was passed over. CheckpointError if none
        can be read or they are of another network, data set or choice of settings.
        """
        passed_over = self.folder.restore(self.training, self.settings)
        self.history = self.folder.history(before=self.training.progress.epoch)
        return passed_over

    def save(self, best: bool = False) -> None:
        """Write a checkpoint now."""
        self.folder.save(self.training, self.settings, best)
        self._saved_at = time.monotonic()

    def on_step(self) -> None:
        """Write a checkpoint if it is time for one."""
        if self.steps is not None:
            due = self.training.progress.step % self.steps == 0
        else:
            due = time.monotonic() - self._saved_at >= 60 * self.minutes
        if due:
            self.save()

    def on_epoch(self, epoch: Epoch) -> None:
        """Metrics first, then the checkpoint: what it holds has been written down."""
        first = not self.history
        self.history.append(epoch)
        self.folder.add(epoch)
        self.save(epoch.best)
        classes = len(self.settings["class_names"])
        if first:
            print(first_loss_note(epoch.first_loss, classes))
        print(epoch, flush=True)
        if note := stuck_note([each.train_loss for each in self.history], classes):
            print(note)
