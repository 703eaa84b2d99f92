"""A folder for each run: its options, checkpoints, metrics, weights and pictures.

    run.json               the options of the run, written first
    metrics.jsonl          one line of JSON for each epoch
    checkpoint-000001200.h5   after step 1200; the last two are kept
    best.h5                the checkpoint with the highest validation top-1
    weights.h5, curves.png, conv1_filters.png   written at the end

At whatever moment a run is killed, the folder has at least one complete checkpoint for `--resume`
(or, before the first step, the options to begin again).
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layers import Conv2D
from tinyconv.run.checkpoint import (
    CheckpointError,
    DamagedError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from tinyconv.run.plots import plot_curves, plot_filters
from tinyconv.run.sealed import replace_file
from tinyconv.sequential import Sequential
from tinyconv.train import Epoch, Training

KEPT = 2
"""How many of the last checkpoints stay: the newest, and one in case it is damaged."""


class RunFolder:
    """The folder of a run.

    out: a folder that does not exist yet or is empty; None takes the next free runs/001,
    runs/002, ... It is made at once, so that an unwritable path fails before training; at the end
    of a `with` statement an empty folder is removed. FileExistsError if the folder is not empty,
    OSError if it cannot be made.
    """

    def __init__(self, out: str | Path | None = None) -> None:
        if out is None:
            self.path = _next_free(Path("runs"))
        else:
            self.path = Path(out)
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                hint = " (or resume it: --resume)" if (self.path / "run.json").exists() else ""
                raise FileExistsError(f"{out} is not empty; name another folder with --out{hint}")
        self.metrics = self.path / "metrics.jsonl"
        self._lock: int | None = None
        self._lock_folder()

    @classmethod
    def reopen(cls, path: str | Path) -> "RunFolder":
        """The folder of a run to resume.

        FileNotFoundError if it is no run's folder, BlockingIOError if another process is writing
        to it (where the system can tell).
        """
        folder = cls.__new__(cls)
        folder.path, folder._lock = Path(path), None
        folder.metrics = folder.path / "metrics.jsonl"
        if not (folder.path / "run.json").exists():
            raise FileNotFoundError(f"{path} is not the folder of a run: it has no run.json")
        folder._lock_folder()
        for left_behind in folder.path.glob(".*.part"):  # by a process that was killed
            left_behind.unlink()
        return folder

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if not any(self.path.iterdir()):
            self.path.rmdir()

    # --- options

    def write_options(self, options: dict[str, Any]) -> None:
        """Keep what the run was started with."""
        replace_file(self.path / "run.json", json.dumps(options, indent=1).encode() + b"\n")

    def read_options(self) -> dict[str, Any]:
        """What the run was started with; ValueError if the file is damaged."""
        try:
            options = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ValueError(f"{self.path / 'run.json'} is damaged: start again with another --out")
        return options

    def _lock_folder(self) -> None:
        """The lock lasts until `__exit__`, or until the process ends in whatever way."""
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            return
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is training into {self.path}") from None

    # --- while it trains

    def add(self, epoch: Epoch) -> None:
        """Append one line of JSON to metrics.jsonl, and flush it to disk."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def history(self, before: int) -> list[Epoch]:
        """The epochs of metrics.jsonl below `before`; later ones are removed from the file.

        A run is resumed from its last checkpoint: epochs that it had finished after that are
        trained, and written, again.
        """
        epochs = []
        if self.metrics.exists():
            for line in self.metrics.read_text().splitlines():
                try:
                    epoch = Epoch(**json.loads(line))
                except (TypeError, ValueError):  # the last line may be torn
                    break
                if epoch.epoch >= before:
                    break
                epochs.append(epoch)
        text = "".join(json.dumps(asdict(epoch)) + "\n" for epoch in epochs)
        replace_file(self.metrics, text.encode())
        return epochs

    def save(self, training: Training, settings: dict[str, Any], best: bool = False) -> None:
        """Write a checkpoint, if `best` also as best.h5; keep the last two."""
        path = self.path / f"checkpoint-{training.progress.step:09d}.h5"
        save_checkpoint(path, training, settings)
        if best:
            self._keep_as_best(path)
        for old in self.checkpoints()[KEPT:]:
            old.unlink()

    def _keep_as_best(self, path: Path) -> None:
        temporary = self.path / ".best.h5.part"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)  # a second name for the same bytes
        except OSError:  # not every file system has them
            shutil.copyfile(path, temporary)
        os.replace(temporary, self.path / "best.h5")

    def checkpoints(self) -> list[Path]:
        """All checkpoints, newest first."""
        return sorted(self.path.glob("checkpoint-*.h5"), reverse=True)

    def restore(self, training: Training, settings: dict[str, Any]) -> list[str]:
        """Load the newest readable checkpoint into `training`; returns what was wrong.

        One line for each checkpoint that is damaged and was skipped. CheckpointError if there
        are checkpoints and none can be read, or if they are of another network or data set.
        Without any checkpoint the run starts again.
        """
        passed_over: list[str] = []
        for path in self.checkpoints():
            try:
                load_checkpoint(path, training, settings)
                now = training.progress
                if now.batch == 0 and 0 < now.best_epoch == now.epoch - 1:
                    self._keep_as_best(path)  # a kill may have come between the two files
                return passed_over
            except DamagedError as error:
                passed_over.append(str(error))
        if passed_over:
            raise CheckpointError(f"no checkpoint can be read: {'; '.join(passed_over)}")
        return passed_over

    # --- at the end

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
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot make {path} ({reason}): name a folder with --out") from None
        return path
    raise FileExistsError(f"no free number in {parent}")
