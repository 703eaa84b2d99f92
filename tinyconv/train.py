"""The training loop (paper §5): one batch after another, and a look at the validation set.

    images -> augment -> net.forward -> loss.compute
                         net.backward <- loss.backward
                         optimizer.update                   (`tinyconv/step.py`)
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from layers import SoftmaxCrossEntropy
from tinyconv.data.augment import Augment
from tinyconv.data.loader import batches_per_epoch, shuffled_batches
from tinyconv.data.photos import PhotoSet
from tinyconv.evaluate import evaluate, hits
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD
from tinyconv.step import TrainingStep


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer a number."""


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
    first_loss: float
    """Loss of the first batch."""

    def as_dict(self) -> dict[str, float]:
        """The fields by name, for a line of JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:3d}   loss {self.train_loss:.4f}   top-1 {self.train_top1:6.1%}   "
            f"validation: loss {self.val_loss:.4f}   top-1 {self.val_top1:6.1%}   "
            f"top-5 {self.val_top5:6.1%}   lr {self.lr:g}   {self.images_per_second:,.0f} images/s"
        )


def train(
    net: Sequential,
    train_set: PhotoSet,
    val_set: PhotoSet,
    augment: Augment,
    *,
    epochs: int = 90,
    batch_size: int = 128,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    lr_drops: Sequence[int] = (),
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool | None = None,
) -> list[Epoch]:
    """Train `net` in place by momentum SGD; returns what each epoch gave.

    net: initialized, on its device; augment is moved there. lr_drops: epochs (counted from 1)
    before which the learning rate is divided by 10; the paper did so three times. seed: of the
    order and the dropout masks. on_epoch: called after every epoch. progress: show a bar (None:
    if standard error is a terminal). Two runs with equal arguments on one machine give equal bits.

    ValueError for arguments out of range or weights that were never drawn; TrainingError if the
    loss is not finite. Sources: paper §5.
    """
    _check(net, train_set, epochs, batch_size)
    augment.to(net.device, net.dtype)
    net.set_seed(seed)
    net.layers[0].input_gradient = False
    loss = SoftmaxCrossEntropy()
    loss.to(net.device, net.dtype)
    optimizer = SGD(net.parameters(), lr, momentum, weight_decay)
    training_step = TrainingStep(net, loss, optimizer)

    steps = batches_per_epoch(len(train_set), batch_size)
    bar = tqdm(
        total=epochs * steps * min(batch_size, len(train_set)),
        unit="img",
        disable=None if progress is None else not progress,
        file=sys.stderr,
        smoothing=0.05,
    )
    history: list[Epoch] = []
    step = 0
    with bar:
        for epoch in range(1, epochs + 1):
            optimizer.lr = lr * 0.1 ** sum(epoch >= drop for drop in lr_drops)
            losses, correct, seen, started = [], 0, 0, time.perf_counter()
            for images, labels, ids in shuffled_batches(train_set, batch_size, seed, epoch):
                training_step.run(augment.random(images, ids, epoch), labels, step)
                losses.append(loss.value())
                if not math.isfinite(losses[-1]):
                    raise TrainingError(
                        f"the loss became {losses[-1]} in step {step + 1} (epoch {epoch}); "
                        "start again with a learning rate of a third or less"
                    )
                step += 1
                correct += hits(net.device.to_host(loss.probabilities), labels, 1)
                seen += len(labels)
                bar.update(len(labels))
                bar.set_postfix(
                    loss=f"{losses[-1]:.3f}", top1=f"{correct / seen:.0%}", refresh=False
                )
            seconds = time.perf_counter() - started
            result = evaluate(net, val_set, augment, batch_size)
            history.append(
                Epoch(
                    epoch=epoch,
                    lr=optimizer.lr,
                    train_loss=float(np.mean(losses)),
                    train_top1=correct / seen,
                    val_loss=result.loss,
                    val_top1=result.top1,
                    val_top5=result.top5,
                    images_per_second=seen / seconds,
                    seconds=seconds,
                    first_loss=losses[0],
                )
            )
            if on_epoch is not None:
                with bar.external_write_mode(file=sys.stdout):
                    on_epoch(history[-1])
    return history


def _check(net: Sequential, train_set: PhotoSet, epochs: int, batch_size: int) -> None:
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"train: epochs and batch_size must be at least 1, not {epochs} and {batch_size}"
        )
    if not len(train_set):
        raise ValueError("train: the training set has no photos")
    for parameter in net.parameters():
        if parameter.name.endswith("weight") and not parameter.value.any():
            raise ValueError(f"train: {parameter.name} is all zero; call initialize(net) first")


def first_loss_note(first_loss: float, num_classes: int) -> str:
    """One line that compares the first loss with ln(classes), where guessing starts."""
    guess = math.log(num_classes)
    note = f"first loss {first_loss:.3f}; guessing gives ln {num_classes} = {guess:.3f}"
    if first_loss > 3 * guess:
        note += ": far above; are the inputs or the first weights too large?"
    return note


def stuck_note(history: Sequence[Epoch], num_classes: int) -> str:
    """A hint if two epochs have not moved the loss below ln(classes), else an empty string."""
    guess = math.log(num_classes)
    if len(history) < 2 or history[-1].train_loss < 0.98 * guess:
        return ""
    return (
        f"the loss has not left ln {num_classes} = {guess:.3f}: the net is still guessing. The "
        "usual causes: initial weights too small for this size (try --recipe robust), a learning "
        "rate too high or too low, labels that do not belong to their photos"
    )
