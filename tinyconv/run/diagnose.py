"""Why training fails: the layer of the first NaN, and the usual causes of a loss that stays.

A NaN or an infinity spreads: one in a filter, and a step later every loss and every weight is NaN.
The loss tells that it happened, not where. The layer is found by one more forward pass from the
weights before that step, with the same photos and the same dropout masks.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from layers import Device
from tinyconv.data.augment import Augment
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD
from tinyconv.train import LossError, Training, TrainingError

INFINITE = 0x7F80
"""The bits of a bfloat16's exponent: all set in infinities and NaN, and in nothing else."""

LEARNED = 0.05
"""A loss below which a batch counts as memorized: the right class gets 95 % on average."""

ADVICE = "start again with a learning rate of a third or less"


def origin_of(training: Training, error: LossError) -> str:
    """Where the loss of `error` became infinite or NaN, in one line; replays that step."""
    with training.data.loader(training.net.device) as loader:
        images, _, ids = next(loader.epoch(error.epoch, first=error.batch))
        x = training.data.augment.random(images, ids, error.epoch)
        return where_not_finite(training.net, x, error.step - 1)


@contextmanager
def losses_explained(training: Training, replica: Any = None) -> Iterator[None]:
    """Turns a LossError within it into a TrainingError with its origin, and what to do.

    replica: this process's place among several, which all get here with the same error; the origin
    is that of the first whose own loss is not finite.
    """
    try:
        yield
    except LossError as error:
        if replica is None:
            origin = origin_of(training, error)
        else:
            finite = math.isfinite(training.step.own_loss) and not error.validation
            own = "" if finite else f"{replica}: {origin_of(training, error)}"
            origin = next(text for text in replica.exchange(own) if text)
        raise TrainingError(f"{error}: {origin}; {ADVICE}") from None


def where_not_finite(net: Sequential, x: Any, step: int) -> str:
    """Which layer first holds or gives a number that is not finite, in one line.

    net: with the weights before `step` (counted from 0), whose input is x. Weights come first: if
    they are not finite, the update before did it.
    """

    def finite(array: Any) -> bool:
        array = Device.to_host(array)  # in two columns: of both devices
        if array.dtype == np.uint16:  # bfloat16
            return bool((array & INFINITE != INFINITE).all())
        return bool(np.isfinite(array).all())

    for parameter in net.parameters():
        if not finite(parameter.value):
            when = f"in the update of step {step}" if step else "before the first step"
            return f"{parameter.name} has values that are not finite; they came {when}"
    if not finite(x):
        return "the input of the net is not finite"
    net.set_step(step)
    for name, y in net.outputs(x):
        if not finite(y):
            return f"the output of {name} is the first that is not finite"
    return "every layer's output is finite: the loss itself overflowed"


def first_loss_note(first_loss: float, num_classes: int) -> str:
    """One line that compares the first loss with ln(classes), where guessing starts."""
    guess = math.log(num_classes)
    note = f"first loss {first_loss:.3f}; guessing gives ln {num_classes} = {guess:.3f}"
    if first_loss > 3 * guess:
        note += ": far above; are the inputs or the first weights too large?"
    return note


CAUSES = (
    "first weights too small or too large for this size of net: try --recipe robust",
    "a learning rate too high or too low: try a third of it, then three times as much",
    "labels that do not belong to their photos: look at a few, and at --overfit-one-batch",
    "photos not shuffled: this loader shuffles; a data set sorted by class does not learn",
    "no mean subtracted, or photos on another scale than 0 to 255: look at the input of conv1",
)


def stuck_note(train_losses: list[float], num_classes: int) -> str:
    """What to look at if two epochs have not brought the loss below ln(classes), else nothing.

    train_losses: the mean training loss of each epoch so far. Five lines, the usual causes.
    """
    guess = math.log(num_classes)
    if len(train_losses) < 2 or train_losses[-1] < 0.98 * guess:
        return ""
    causes = "\n".join(f"  {place}. {cause}" for place, cause in enumerate(CAUSES, start=1))
    return (
        f"the loss is still near ln {num_classes} = {guess:.3f}: the net is guessing. "
        f"The usual causes:\n{causes}"
    )


def overfit_one_batch(
    net: Sequential,
    photos: Any,
    augment: Augment,
    batch_size: int = 64,
    lr: float = 0.01,
    steps: int = 200,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train on one batch again and again; returns the losses.

    A net that cannot memorize one batch cannot learn anything: the quickest test of a new layer,
    data set or learning rate. The batch is photos from all over the set, in centre crops and
    without dropout, so that nothing but the net decides. net and augment on one device; photos: a
    PhotoSet, in memory or of a store. It ends when the loss falls below LEARNED, is not finite, or
    after `steps`; report(step, loss) is called after each.
    """
    count = min(batch_size, len(photos))
    ids = np.linspace(0, len(photos) - 1, count).astype(np.int64)
    images = np.empty((count, *augment.mean.shape), np.uint8)
    photos.copy_rows(ids, images)
    x, labels = augment.centre(images), photos.labels[ids]
    loss, optimizer = net.loss(), SGD(net.parameters(), lr)
    losses: list[float] = []
    for step in range(1, steps + 1):
        losses.append(loss.forward(net.forward(x, train=False), labels))
        if report is not None:
            report(step, losses[-1])
        if losses[-1] < LEARNED or not math.isfinite(losses[-1]):
            break
        net.backward(loss.backward())
        optimizer.step()
    return losses


def overfit(
    net: Sequential, photos: Any, augment: Augment, batch_size: int = 64, lr: float = 0.01
) -> int:
    """`overfit_one_batch`, printed; exit status 0 if the batch was memorized, else 1."""

    def report(step: int, loss: float) -> None:
        if step == 1 or step % 20 == 0:
            print(f"step {step:4d}   loss {loss:.4f}", flush=True)

    augment.to(net.device, net.dtype)
    losses = overfit_one_batch(net, photos, augment, batch_size, lr, report=report)
    memorized = losses[-1] < LEARNED
    print(
        f"one batch is {'memorized' if memorized else 'NOT memorized'} after {len(losses)} steps: "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    return 0 if memorized else 1
