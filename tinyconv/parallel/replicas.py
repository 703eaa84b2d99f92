"""Data parallelism: every rank has the whole net and a part of each batch.

    batch of N photos    = rows of rank 0, rows of rank 1, ...      disjoint, complete
    dL/dw                = Σ_r  n_r / N · dL_r/dw                   L_r: mean loss of its n_r rows

Every rank scales its dL/dlogits by n_r / N, runs its backward pass, and the gradients are summed
over the ranks (all-reduce, `communicator.py`): then each makes the same update of the same weights.
The flat array of gradients fills from its end, where the large fully connected layers are; the sum
of a stretch of it begins as soon as it is complete, while the convolutions are still computed.

Augmentation and dropout must not depend on the number of ranks: crop, flip and colour are drawn for
the photo (`augment.py`), dropout masks for its row in the whole batch. So any number of ranks
trains the same net, except for rounding: sums over a batch are now sums of sums.

A run of one process uses none of this and imports neither NCCL nor MPI.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from layers import Device, Dropout
from tinyconv.data.loader import part
from tinyconv.data.photos import PhotoSet
from tinyconv.evaluate import Evaluation, count_hits, evaluate
from tinyconv.parallel.communicator import Replica
from tinyconv.sequential import Sequential
from tinyconv.sgd import BLOCK
from tinyconv.train import SingleStep, Training, TrainingData, TrainingError

BUCKET = 2**20
"""Fewest gradients to sum at once, 4 MiB in float32; smaller layers wait for the next one."""

CHECK_EVERY = 100
"""Steps between comparisons of the ranks' weights, which come before each validation too."""


class ReplicaError(TrainingError):
    """The ranks no longer hold the same weights."""


class ReplicaStep(SingleStep):
    """A step by several processes, each on its rows of the batch; loss and hits of the whole batch.

    replica: this process's place; check_every: steps between comparisons of weights. The sums of
    gradients over the ranks begin during the backward pass. Steps are not recorded. Call
    `begin_together` before the first one.

    ReplicaError, from `forward_backward` and `evaluate`, if weights differ; RankLostError if
    another process has ended.
    """

    def __init__(
        self, net: Sequential, optimizer: Any, replica: Replica, check_every: int = CHECK_EVERY
    ) -> None:
        super().__init__(net, optimizer)
        self.replica, self.check_every = replica, check_every
        self._begins: dict[str, int] = {}  # where a layer's gradients begin in the flat array
        begin = 0
        for parameter in optimizer.parameters:
            self._begins.setdefault(parameter.name.rpartition(".")[0], begin)
            begin += -(-parameter.value.size // BLOCK) * BLOCK
        self.own_loss, self.rows = 0.0, 0

    def forward_backward(self, x: Any, labels: Any, step: int) -> tuple[float, int, int]:
        """As `SingleStep.forward_backward`, for this rank's rows; results of the whole batch."""
        if step and step % self.check_every == 0:
            self.compare(f"after step {step}")
        self.net.set_step(step)
        logits, count = self.net.forward(x, train=True), len(labels)
        self.loss.load_labels(labels, logits.shape)
        self.loss.compute(logits)
        if hasattr(self.loss, "pending"):  # on a GPU, which continues with backward
            loss, hits = self.loss.pending()
        else:
            loss, hits = self.loss.value(), count_hits(self.loss.probabilities, labels, 1)
        self._backward(count / self.rows)
        self.own_loss = float(loss)
        total, hits, rows = self.replica.sum(self.own_loss * count, float(hits), count)
        return total / rows, int(hits), int(rows)

    def _backward(self, share: float) -> None:
        """`net.backward` of this share of the batch; sums over the ranks begin meanwhile."""
        dy, end = self.loss.backward(), self.optimizer.grads.size
        dy *= dy.dtype.type(share)
        for step in reversed(self.net.steps):
            dy = step.backward(dy)
            begin = self._begins.get(step.name.partition("+")[0])  # "fc6+relu6+drop6"
            if begin is not None and (begin == 0 or end - begin >= BUCKET):
                self.replica.sums.start(self.optimizer.grads[begin:end])
                end = begin
        self.replica.sums.finish()

    def compare(self, when: str) -> None:
        """Compare the ranks' weights by a checksum; ReplicaError names those that differ."""
        checksum = int(self.optimizer.values.view(np.uint32).sum(dtype=np.uint64))
        found = self.replica.exchange((checksum, str(self.replica)))
        checksums = [each for each, _ in found]
        usual = max(checksums, key=checksums.count)  # of two that differ, that of rank 0
        odd = " and ".join(name for each, name in found if each != usual)
        if odd:
            raise ReplicaError(
                f"{when} {odd} held other weights than the rest, as a faulty device makes them; "
                "resume without it from the last checkpoint"
            )

    def evaluate(self, data: TrainingData, on_batch: Callable[[], None]) -> Evaluation:
        """As `SingleStep.evaluate`: each rank evaluates its part of the photos."""
        self.compare("before validation")
        val, ranks, rows = data.val, self.replica.size, data.batch_size // self.replica.size
        own = part(len(val), self.replica.rank, ranks)
        photos = PhotoSet(val.images[own], val.labels[own], val.class_names)
        result = Evaluation(0.0, 0.0, 0.0)
        if len(photos):
            result = evaluate(self.net, photos, data.augment, rows, on_batch=on_batch)
        longest = -(-len(val) // ranks)
        for _ in range(-(-longest // rows) - -(-len(photos) // rows)):
            on_batch()  # as often as on every rank
        hits = [round(share * len(photos)) for share in (result.top1, result.top5)]
        sums = self.replica.sum(result.loss * len(photos), *hits)
        return Evaluation(*(each / len(val) for each in sums))


def begin_together(training: Training) -> None:
    """Give all ranks the weights and the progress of rank 0, which may have read a checkpoint.

    The net's dropout layers are told which rows of the batch are theirs.
    training: by a `ReplicaStep`, with equal arguments on every rank, before its `run`.
    RankLostError if a rank has failed on its way.
    """
    step: Any = training.step
    replica, optimizer = step.replica, training.optimizer
    step.rows = min(training.data.batch_size, len(training.data.train))
    first_row = part(step.rows, replica.rank, replica.size).start
    for layer in training.net.layers:
        if isinstance(layer, Dropout):
            layer.first_row = first_row
    training.progress = replica.broadcast(training.progress)
    replica.begun = True  # from now on ranks fail one by one
    for flat in (optimizer.values, optimizer.velocities):
        own = Device.to_host(flat) if replica.first else None
        flat[...] = training.net.device.array(replica.broadcast(own))
    if training.progress.schedule:
        training.schedule.state = training.progress.schedule
