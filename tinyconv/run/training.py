"""Training in one call, with the step that fits the device: what `tinyconv.train` is."""

from collections.abc import Callable
from typing import Any

from tinyconv.data.augment import Augment
from tinyconv.run.diagnose import losses_explained
from tinyconv.run.graph_step import GraphStep
from tinyconv.schedule import Schedule
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD
from tinyconv.train import Epoch, SingleStep, Training, TrainingData


def step_for(net: Sequential, optimizer: Any, graph: bool = True) -> SingleStep:
    """`GraphStep` for a GPU with kernels "fast", recorded if `graph`; else `SingleStep`."""
    if net.device.is_cuda and net.kernels == "fast":
        return GraphStep(net, optimizer, graph)
    return SingleStep(net, optimizer)


def train(
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
    on_step: Callable[[], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train `net` in place by momentum SGD; returns the figures of each epoch.

    net: initialized, on its device. train_set, val_set: a PhotoSet, in memory or of a store;
    augment: makes batches of them. graph: on a GPU, record the step once and replay it. The rest as
    in `Training`, which a run that is to be stopped and resumed calls itself. ValueError as there;
    TrainingError, with the layer, if the loss is not finite. Sources: paper §5.
    """
    history: list[Epoch] = []

    def collect(epoch: Epoch) -> None:
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)

    training = Training(
        net,
        TrainingData(train_set, val_set, augment, batch_size, seed),
        step_for(net, SGD(net.parameters(), lr, momentum, weight_decay), graph),
        epochs=epochs,
        schedule=schedule,
        bare_last_stage=bare_last_stage,
        seed=seed,
    )
    with losses_explained(training):
        training.run(on_step=on_step, on_epoch=collect)
    return history
