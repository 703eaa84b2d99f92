"""The training loop (paper §5): one batch after another, and a look at the validation set.

    loader -> augment -> net.forward -> loss.forward
                         net.backward <- loss.backward        (these two lines: `step.py`)
                         optimizer.step

A run can end after any step and go on from there to the same bits: order, crops, colours and
dropout masks are functions of (seed, epoch, step), so that all a checkpoint has to keep is the
weights, the velocities, and the few numbers of `Progress`.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from tinyconv.data.augment import Augment
from tinyconv.data.loader import Loader
from tinyconv.diagnose import where_not_finite
from tinyconv.evaluate import Evaluation, evaluate, hits
from tinyconv.schedule import Schedule
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD
from tinyconv.step import TrainingStep


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer a number."""


class _Stopped(Exception):
    """Raised between two batches when the run is asked to end."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave; training figures are means over its batches, as the net learned."""

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
    """Share of the training time (0 to 1) in which a step waited for its photos."""
    first_loss: float
    """Loss of the first batch."""
    best: bool
    """No epoch before had a higher validation top-1."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for a line of JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:3d}   loss {self.train_loss:.4f}   top-1 {self.train_top1:6.1%}   "
            f"validation: loss {self.val_loss:.4f}   top-1 {self.val_top1:6.1%}   "
            f"top-5 {self.val_top5:6.1%}   lr {self.lr:g}   "
            f"{self.images_per_second:,.0f} images/s, {self.waited:.0%} waiting for data"
        )


@dataclass
class Progress:
    """How far a run has come: with weights, velocities and schedule all it takes to go on."""

    epoch: int = 1
    """The epoch that is going on, counted from 1."""
    batch: int = 0
    """Its batches that are done."""
    step: int = 0
    """Steps in all."""
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    first_loss: float = 0.0
    best_top1: float = -1.0
    best_epoch: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)


class Training:
    """A net, its data and its optimizer on the way through the epochs.

    net: initialized, on its device; augment is moved there. train_set, val_set: a PhotoSet or a
    store's StoredPhotos. schedule: of the learning rate `lr` (None: constant). bare_last_stage:
    after the schedule's last drop no colour noise, and the first layer stays as it is. seed: of
    the order and the dropout masks. graph: on a GPU, record the step once and replay it (the same
    bits as without). Attributes: `net`, `optimizer`, `progress`, `schedule`; `stopped`, what
    `should_stop` gave when it ended the run. Where several processes train one net, `batch_size`
    and all figures are those of the whole (`parallel/replicas.py`).

    ValueError for arguments out of range or weights that were never drawn. Sources: paper §5.
    """

    def __init__(
        self,
        net: Sequential,
        train_set: Any,
        val_set: Any,
        augment: Augment,
        *,
        epochs: int = 90,
        batch_size: int = 128,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Schedule | None = None,
        bare_last_stage: bool = False,
        seed: int = 0,
        graph: bool = True,
    ) -> None:
        _check(net, train_set, epochs, batch_size)
        self.net, self.train_set, self.val_set, self.augment = net, train_set, val_set, augment
        self.epochs, self.batch_size, self.lr, self.seed = epochs, batch_size, lr, seed
        self.schedule = schedule or Schedule()
        self.bare_last_stage = bare_last_stage
        self.progress = Progress()
        self.stopped = 0
        augment.to(net.device, net.dtype)
        net.set_seed(seed)
        net.layers[0].input_gradient = False
        self.loss = net.loss()
        self.optimizer = SGD(net.parameters(), lr, momentum, weight_decay)
        self.training_step = TrainingStep(net, self.loss, self.optimizer, graph)

    def run(
        self,
        *,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_step: Callable[[], None] | None = None,
        should_stop: Callable[[], Any] = bool,
        progress: bool | None = None,
    ) -> bool:
        """Train to the end of the last epoch; False if `should_stop` ended it before.

        on_epoch and on_step are called after every epoch and every step, when `progress` is true
        and whole; should_stop is asked after every step and every validation batch. progress:
        show a bar (None: if standard error is a terminal). TrainingError if the loss is not
        finite. Two runs with equal arguments on one machine give equal bits, however often they
        were stopped and went on.
        """
        with self._loader() as loader:
            images = min(self.batch_size, len(self.train_set))
            with tqdm(
                total=self.epochs * loader.batches_per_epoch * images,
                initial=self.progress.step * images,
                unit="img",
                disable=None if progress is None else not progress,
                file=sys.stderr,
                smoothing=0.05,
            ) as bar:
                try:
                    while self.progress.epoch <= self.epochs:
                        epoch = self._run_epoch(loader, bar, on_step, should_stop)
                        if on_epoch is not None:
                            with bar.external_write_mode(file=sys.stdout):
                                on_epoch(epoch)
                except _Stopped:
                    return False
        return True

    def _run_epoch(self, loader: Loader, bar: Any, on_step: Any, should_stop: Any) -> Epoch:
        now = self.progress
        if now.batch == 0:
            now.loss_sum, now.correct, now.seen = 0.0, 0, 0
        self.optimizer.lr = self.lr * self.schedule.scale(now.epoch)
        bare = self.bare_last_stage and self.schedule.last_stage(now.epoch)
        self.augment.colour_on = not bare
        if bare:
            self.optimizer.freeze(self.net.layers[0].parameters())

        def stop_if_asked() -> None:
            self.stopped = self._asked(should_stop())
            if self.stopped:
                raise _Stopped

        started, waited, seen_before = time.perf_counter(), loader.waited, now.seen
        for images, labels, ids in loader.epoch(now.epoch, first=now.batch):
            bar.update(self._step(images, labels, ids))
            bar.set_postfix(
                loss=f"{now.loss_sum / now.batch:.3f}",
                top1=f"{now.correct / now.seen:.0%}",
                refresh=False,
            )
            if on_step is not None:
                on_step()
            stop_if_asked()
        seconds, waited = time.perf_counter() - started, loader.waited - waited
        result = self._evaluate(stop_if_asked)
        return self._close_epoch(result, seconds, waited, now.seen - seen_before)

    def _step(self, images: Any, labels: Any, ids: Any) -> int:
        """One batch: forward, backward, update; returns its photos. The rest is bookkeeping."""
        now = self.progress
        x = self.augment.random(images, ids, now.epoch)
        self._compute(x, labels)
        value = self.loss.value()
        correct = hits(self.net.device.to_host(self.loss.probabilities), labels, 1)
        value, correct, count = self._totals(value, correct, len(labels))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in step {now.step + 1} (epoch {now.epoch}): "
                f"{self._where(x)}; start again with a learning rate of a third or less"
            )
        self._gather(len(labels) / count)
        self.optimizer.step()
        if now.step == 0:
            now.first_loss = value
        now.step, now.batch = now.step + 1, now.batch + 1
        now.loss_sum += value
        now.correct += correct
        now.seen += count
        return count

    # What is different where several processes train one net: `parallel/replicas.py`.

    def _loader(self) -> Loader:
        return Loader(self.train_set, self.batch_size, self.net.device, seed=self.seed)

    def _asked(self, stop: Any) -> Any:
        return stop

    def _totals(self, loss: float, correct: int, count: int) -> tuple[float, int, int]:
        """Mean loss, hits and photos of the whole batch, from those of this process."""
        return loss, correct, count

    def _where(self, x: Any) -> str:
        return where_not_finite(self.net, x, self.progress.step)

    def _compute(self, x: Any, labels: Any) -> None:
        """The loss and the gradients of this process's photos (of replicas: the loss alone)."""
        self.training_step.gradients(x, labels, self.progress.step)

    def _gather(self, share: float) -> None:
        """Make `optimizer.grads` those of the whole batch, `share` of which is this process's."""

    def _evaluate(self, on_batch: Callable[[], None]) -> Evaluation:
        return evaluate(self.net, self.val_set, self.augment, self.batch_size, on_batch=on_batch)

    def _close_epoch(self, result: Evaluation, seconds: float, waited: float, seen: int) -> Epoch:
        now = self.progress
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
            images_per_second=seen / seconds,
            seconds=seconds,
            waited=waited / seconds,
            first_loss=now.first_loss,
            best=best,
        )
        self.schedule.update(1 - result.top1)
        now.schedule = self.schedule.state
        now.epoch, now.batch = now.epoch + 1, 0
        return epoch


def train(
    net: Sequential,
    train_set: Any,
    val_set: Any,
    augment: Augment,
    *,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> list[Epoch]:
    """Train `net` in place by momentum SGD; returns what each epoch gave.

    settings: those of `Training` (epochs, batch_size, lr, momentum, weight_decay, schedule,
    bare_last_stage, seed, graph). on_epoch and progress: as in `Training.run`, which a run that
    is to be stopped and resumed calls itself. Sources: paper §5.
    """
    history: list[Epoch] = []

    def collect(epoch: Epoch) -> None:
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)

    training = Training(net, train_set, val_set, augment, **settings)
    training.run(on_epoch=collect, progress=progress)
    return history


def _check(net: Sequential, train_set: Any, epochs: int, batch_size: int) -> None:
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"train: epochs and batch_size must be at least 1, not {epochs} and {batch_size}"
        )
    if not len(train_set):
        raise ValueError("train: the training set has no photos")
    for parameter in net.parameters():
        if parameter.name.endswith("weight") and not parameter.value.any():
            raise ValueError(f"train: {parameter.name} is all zero; call initialize(net) first")
