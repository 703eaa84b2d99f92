"""The training loop (paper §5): one batch after another, and the validation set after each epoch.

    x = augment.random(images, ids, epoch)                               `data/augment.py`
    loss, hits, count = step.forward_backward(x, labels, number)
        logits = net.forward(x)
        loss.forward(logits, labels)
        net.backward(loss.backward())
    optimizer.step(loss)                                                 `sgd.py`

`Training` has the loop, `SingleStep` the lines within. Another step object takes the place of
`SingleStep` where a step is recorded on a GPU (`run/graph_step.py`) or made by several processes
(`parallel/replicas.py`). Progress bar, checkpoints and signals are callbacks of the caller.

A run can end after any step and be resumed to the same bits: order, crops, colours and dropout
masks are functions of (seed, epoch, step), so a checkpoint holds the weights, the velocities, and
the few numbers of `Progress`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinyconv.data.loader import Loader
from tinyconv.data.training_data import TrainingData
from tinyconv.evaluate import Evaluation, count_hits, evaluate
from tinyconv.schedule import Schedule
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD


class TrainingError(RuntimeError):
    """Training cannot continue."""


class LossError(TrainingError):
    """The loss is not finite. Attributes: `epoch` and `step` (from 1), `batch` (from 0).

    If it is that of the validation set (`validation`), `step` is the one that would come next.
    """

    def __init__(
        self, loss: float, epoch: int, batch: int, step: int, validation: bool = False
    ) -> None:
        what = "the validation loss" if validation else "the loss"
        where = f"after epoch {epoch}" if validation else f"in step {step} (epoch {epoch})"
        super().__init__(f"{what} became {loss} {where}")
        self.epoch, self.batch, self.step, self.validation = epoch, batch, step, validation


class _Stopped(Exception):
    """Raised between two batches when `should_stop` ends the run."""


@dataclass(frozen=True)
class Epoch:
    """The figures of an epoch; those of training are means over its batches, as the net learned."""

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_top5: float
    images_per_second: float
    seconds: float
    waited: float
    """Part of the training time (0 to 1) in which a step waited for its photos."""
    first_loss: float
    """Loss of the run's first batch."""
    best: bool
    """No epoch before had a higher validation top-1."""
    step: int = 0
    """Steps of the run so far."""
    val_seconds: float = 0.0
    ended: str = ""
    """Local date and time, ISO 8601."""

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:3d}   loss {self.train_loss:.4f}   top-1 {self.train_top1:6.1%}   "
            f"validation: loss {self.val_loss:.4f}   top-1 {self.val_top1:6.1%}   "
            f"top-5 {self.val_top5:6.1%}   lr {self.lr:g}   "
            f"{self.images_per_second:,.0f} images/s, {self.waited:.0%} waiting for data"
        )


@dataclass
class Progress:
    """How far a run has come: with the weights and velocities, all that a checkpoint holds."""

    epoch: int = 1
    """The current epoch, counted from 1."""
    batch: int = 0
    """Batches of it that are done."""
    step: int = 0
    """Steps in all."""
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    first_loss: float = 0.0
    best_top1: float = -1.0
    best_epoch: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)


class SingleStep:
    """Forward and backward on one device, in the order in which they are written here.

    net: on its device (also in two columns); optimizer: of its parameters, there.
    """

    def __init__(self, net: Sequential, optimizer: Any) -> None:
        self.net, self.optimizer = net, optimizer
        self.loss: Any = net.loss()

    def forward_backward(self, x: Any, labels: Any, step: int) -> tuple[Any, Any, int]:
        """The gradients for x (N, ...) on the device and labels (N,), into `optimizer.grads`.

        step, from 0, selects the dropout masks. Returns the mean loss, how many rows have their
        label as the likeliest class, and N; loss and hits are numbers, or will be by float().
        ValueError for a batch that does not fit the net.
        """
        self.net.set_step(step)
        logits = self.net.forward(x, train=True)
        loss = self.loss.forward(logits, labels)
        self.net.backward(self.loss.backward())
        probabilities = self.net.device.to_host(self.loss.probabilities)
        return loss, count_hits(probabilities, labels, 1), len(labels)

    def evaluate(self, data: TrainingData, on_batch: Callable[[], None]) -> Evaluation:
        """Loss and accuracy of the validation set; on_batch is called after each batch."""
        return evaluate(self.net, data.val, data.augment, data.batch_size, on_batch=on_batch)


class Training:
    """A net, its data and its optimizer on the way through the epochs.

    net: initialized, on its device; data: its augment is moved there. step: a step object (None:
    `SingleStep` with `SGD` at the paper's settings); the schedule scales its optimizer's first
    learning rate (None: constant). bare_last_stage: after the schedule's last drop no colour noise,
    and the first layer is frozen. seed: of the dropout masks. Attributes: `net`, `data`,
    `optimizer`, `progress`, `schedule`. With several processes all figures are those of the whole.

    ValueError for arguments out of range or weights that were never drawn. Sources: paper §5.
    """

    def __init__(
        self,
        net: Sequential,
        data: TrainingData,
        step: Any = None,
        *,
        epochs: int = 90,
        schedule: Schedule | None = None,
        bare_last_stage: bool = False,
        seed: int = 0,
    ) -> None:
        _check(net, data, epochs)
        self.net, self.data, self.epochs, self.seed = net, data, epochs, seed
        self.step: Any = step or SingleStep(net, SGD(net.parameters()))
        self.optimizer, self.lr = self.step.optimizer, self.step.optimizer.lr
        self.schedule = schedule or Schedule()
        self.bare_last_stage = bare_last_stage
        self.progress = Progress()
        self._pending: list[tuple[Any, ...]] = []
        data.augment.to(net.device, net.dtype, net.steps[0])
        net.set_seed(seed)
        net.layers[0].input_gradient = False

    def run(
        self,
        *,
        on_step: Callable[[], None] | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        should_stop: Callable[[], Any] = bool,
    ) -> bool:
        """Train to the end of the last epoch; False if `should_stop` ended it before.

        on_step and on_epoch are called after each step and each epoch; should_stop after each step
        and each validation batch. LossError if a loss is not finite; the weights are those before
        that step. Two runs with equal arguments on one machine give equal bits, however often they
        were stopped and resumed.
        """

        def stop_if_asked() -> None:
            if should_stop():
                self.settle()
                raise _Stopped

        with self.data.loader(self.net.device) as loader:
            try:
                while self.progress.epoch <= self.epochs:
                    self._begin_epoch()
                    times = self._train_epoch(loader, on_step, stop_if_asked)
                    started = time.perf_counter()
                    result = self.step.evaluate(self.data, stop_if_asked)
                    epoch = self._close_epoch(result, *times, time.perf_counter() - started)
                    if on_epoch is not None:
                        on_epoch(epoch)
            except _Stopped:
                return False
        return True

    def _train_epoch(
        self, loader: Loader, on_step: Any, stop_if_asked: Callable[[], None]
    ) -> tuple[float, float, int]:
        """All batches of the epoch that are not done; seconds, those waited for data, images."""
        now, augment = self.progress, self.data.augment
        started, waited, seen = time.perf_counter(), loader.waited, now.seen
        for images, labels, ids in loader.epoch(now.epoch, first=now.batch):
            x = augment.random(images, ids, now.epoch)
            loss, hits, count = self.step.forward_backward(x, labels, now.step)
            self.optimizer.step(loss)  # if it is not finite, nothing changes
            self._note(loss, hits, count)
            if on_step is not None:
                on_step()
            stop_if_asked()
        self.settle()
        return time.perf_counter() - started, loader.waited - waited, now.seen - seen

    # --- bookkeeping

    def _note(self, loss: Any, hits: Any, count: int) -> None:
        """Count the step as done. Figures on a GPU are read one step later: it need not wait."""
        now = self.progress
        self._pending.append((loss, hits, count, now.epoch, now.batch, now.step))
        now.step, now.batch = now.step + 1, now.batch + 1
        if isinstance(loss, float):
            self.settle()
        elif len(self._pending) > 1:
            self._read_figures()

    def settle(self) -> None:
        """Read the figures of the last step into `progress`, as a checkpoint needs them."""
        while self._pending:
            self._read_figures()

    def _read_figures(self) -> None:
        now = self.progress
        loss, hits, count, epoch, batch, step = self._pending.pop(0)
        loss = float(loss)
        if not math.isfinite(loss):
            raise LossError(loss, epoch, batch, step + 1)
        if step == 0:
            now.first_loss = loss
        now.loss_sum += loss
        now.correct += int(float(hits))
        now.seen += count

    def train_loss(self) -> float:
        """Mean loss of the epoch's batches so far, but for one that is still to be read."""
        return self.progress.loss_sum / max(1, self.progress.batch - len(self._pending))

    def _begin_epoch(self) -> None:
        now = self.progress
        if now.batch == 0:
            now.loss_sum, now.correct, now.seen = 0.0, 0, 0
        self.optimizer.lr = self.lr * self.schedule.scale(now.epoch)
        bare = self.bare_last_stage and self.schedule.last_stage(now.epoch)
        self.data.augment.colour_on = not bare
        if bare:
            self.optimizer.freeze(self.net.layers[0].parameters())

    def _close_epoch(
        self, result: Evaluation, seconds: float, waited: float, images: int, val_seconds: float
    ) -> Epoch:
        now = self.progress
        if not math.isfinite(result.loss):
            raise LossError(result.loss, now.epoch, 0, now.step + 1, validation=True)
        best = result.top1 > now.best_top1
        if best:
            now.best_top1, now.best_epoch = result.top1, now.epoch
        epoch = Epoch(
            epoch=now.epoch,
            lr=self.optimizer.lr,
            train_loss=now.loss_sum / now.batch,
            train_top1=now.correct / now.seen,
            val_loss=result.loss,
            val_top1=result.top1,
            val_top5=result.top5,
            images_per_second=images / seconds,
            seconds=seconds,
            waited=waited / seconds,
            first_loss=now.first_loss,
            best=best,
            step=now.step,
            val_seconds=val_seconds,
            ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )
        self.schedule.update(1 - result.top1)
        now.schedule = self.schedule.state
        now.epoch, now.batch = now.epoch + 1, 0
        return epoch


def _check(net: Sequential, data: TrainingData, epochs: int) -> None:
    if epochs < 1 or data.batch_size < 1:
        raise ValueError(
            f"train: epochs and batch_size must be at least 1, not {epochs} and {data.batch_size}"
        )
    if not len(data.train):
        raise ValueError("train: the training set has no photos")
    for parameter in net.parameters():
        if parameter.name.endswith("weight") and not parameter.value.any():
            raise ValueError(f"train: {parameter.name} is all zero; call initialize(net) first")
