"""Data parallelism: every rank has the whole net and a part of each batch.

    batch of N photos    = rows of rank 0, rows of rank 1, ...      disjoint, complete
    dL/dw                = Σ_r  n_r / N · dL_r/dw                   L_r: mean loss of its n_r rows

Every rank scales its dL/dlogits by n_r / N, walks back through the net, and the gradients are
summed over the ranks (`communicator.py`): then each makes the same update of the same weights. The
flat array of gradients fills from its end, where the large fully connected layers are; as soon as a
stretch of it is full its sum begins, while the convolutions are still at work.

What a photo goes through must not depend on the number of ranks. Crop, flip and colour are drawn
for the photo itself (`augment.py`), dropout masks for its row in the whole batch. So any number of
ranks trains the same net, but for the roundings of sums: those over a batch are now sums of sums.

In a run of one process nothing of this is used, and neither NCCL nor MPI is imported.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from layers import Device, Dropout
from tinyconv.evaluate import Evaluation, evaluate
from tinyconv.parallel.communicator import Communicator, RankLostError, part
from tinyconv.parallel.replicas_rows import LoaderOfRows, part_of
from tinyconv.sgd import BLOCK
from tinyconv.train import Progress, Training, TrainingError

BUCKET = 2**20
"""Gradients that are worth a sum of their own: 4 MiB in float32. Fewer wait for the next layer."""

CHECK_EVERY = 100
"""Steps after which the ranks compare their weights; before each validation they do it too."""


class ReplicaError(TrainingError):
    """The ranks no longer hold the same weights."""


class Replica:
    """A process's place in a data-parallel run.

    communicator: to the other ranks; device: the name of this one's. Attributes: `rank`, `size`;
    `first`, is this rank 0, which writes and prints; `begun`, have all ranks come as far as
    `Training.run`.
    """

    def __init__(self, communicator: Communicator, device: str = "cpu") -> None:
        self.communicator, self.device = communicator, device
        self.rank, self.size = communicator.rank, communicator.size
        self.first, self.begun = self.rank == 0, False

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.device})"

    def begin(self) -> None:
        """Wait for all ranks; RankLostError if one has failed on its way."""
        for rank, status in enumerate(self.communicator.exchange(np.zeros(1, np.int64))):
            if status[0]:
                raise RankLostError(rank, int(status[0]))
        self.begun = True

    def failed(self, status: int) -> tuple[int, int]:
        """Tell all ranks at `begin` that this one cannot go on.

        Returns the first rank that cannot and how many there are.
        """
        found = self.communicator.exchange(np.array([status], np.int64))[:, 0]
        return int(np.flatnonzero(found)[0]), int(np.count_nonzero(found))


class ReplicaTraining(Training):
    """`Training` by several processes, of which each calls this with equal arguments.

    replica: this process's place; check_every: steps between comparisons of weights; the rest as
    `Training`, batch_size being the whole batch. `run` begins with the weights and the progress of
    rank 0: only that one has to read a checkpoint. The net's dropout layers are told which rows of
    the batch are theirs. Steps are not recorded: the sums of the ranks come in between.

    ValueError for a batch that cannot be divided; ReplicaError, from `run`, if weights differ;
    RankLostError if another process has ended.
    """

    def __init__(
        self,
        *arguments: Any,
        replica: Replica,
        check_every: int = CHECK_EVERY,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.replica, self.check_every = replica, check_every
        self._ranks = replica.communicator
        size, photos = replica.size, len(self.train_set)
        if self.batch_size % size:
            near = self.batch_size // size * size or size
            raise ValueError(
                f"a batch of {self.batch_size} cannot be divided among {size} processes: use "
                f"--batch-size {near} or {near + size}"
            )
        if photos < size:
            raise ValueError(f"{photos} training photos cannot be divided among {size} processes")
        self._begins: dict[str, int] = {}  # where a layer's gradients begin in the flat array
        begin = 0
        for parameter in self.optimizer.parameters:
            self._begins.setdefault(parameter.name.rpartition(".")[0], begin)
            begin += -(-parameter.value.size // BLOCK) * BLOCK
        first_row = part(min(self.batch_size, photos), replica.rank, size).start
        for layer in self.net.layers:
            if isinstance(layer, Dropout):
                layer.first_row = first_row

    def run(self, *, progress: bool | None = None, **callbacks: Any) -> bool:
        """As `Training.run`; only rank 0 shows a bar, and all ranks stop after the same step."""
        self.replica.begin()
        self._ranks.attach(self.optimizer.grads)
        for flat in (self.optimizer.values, self.optimizer.velocities):
            data = Device.to_host(flat).tobytes() if self.replica.first else b""
            received = np.frombuffer(self._ranks.broadcast(data), flat.dtype)
            flat[...] = self.net.device.array(received)
        now = json.dumps(asdict(self.progress)).encode()
        self.progress = Progress(**json.loads(self._ranks.broadcast(now)))
        if self.progress.schedule:
            self.schedule.state = self.progress.schedule
        return super().run(progress=progress if self.replica.first else False, **callbacks)

    def compare(self, when: str) -> None:
        """Compare the ranks' weights by a checksum; ReplicaError names those that differ."""
        bits = self.optimizer.values.view(np.uint32)
        sums = self._ranks.exchange(np.array(int(bits.sum(dtype=np.uint64)), np.uint64))
        if (sums == sums[0]).all():
            return
        values, counts = np.unique(sums, return_counts=True)
        usual = values[counts.argmax()] if counts.max() > 1 else sums[0]
        names = self._ranks.texts(str(self.replica))
        odd = " and ".join(name for name, own in zip(names, sums, strict=True) if own != usual)
        raise ReplicaError(
            f"{when} {odd} held other weights than the rest, as a faulty device makes them; "
            "resume without it from the last checkpoint"
        )

    # --- the steps of `Training`

    def _loader(self) -> LoaderOfRows:
        rows = (self.batch_size, self.net.device, self.replica.rank, self.replica.size)
        return LoaderOfRows(self.train_set, *rows, self.seed)

    def _asked(self, stop: Any) -> int:
        return int(self._ranks.exchange(np.array(int(stop or 0))).max())

    def _step(self, images: Any, labels: Any, ids: Any) -> int:
        count = super()._step(images, labels, ids)
        if self.progress.step % self.check_every == 0:
            self.compare(f"after step {self.progress.step}")
        return count

    def _totals(self, loss: float, correct: int, count: int) -> tuple[float, int, int]:
        self._finite = math.isfinite(loss)
        rows = self._ranks.exchange(np.array([loss * count, correct, count], np.float64))
        loss, right, photos = rows.sum(axis=0).tolist()
        return loss / photos, int(right), int(photos)

    def _where(self, x: Any) -> str:
        texts = self._ranks.texts("" if self._finite else f"{self.replica}: {super()._where(x)}")
        return next(text for text in texts if text)

    def _compute(self, x: Any, labels: Any) -> None:
        self.net.set_step(self.progress.step)
        self.loss.forward(self.net.forward(x, train=True), labels)

    def _gather(self, share: float) -> None:
        dy, end = self.loss.backward(), self.optimizer.grads.size
        dy *= dy.dtype.type(share)
        for step in reversed(self.net.steps):
            dy = step.backward(dy)
            begin = self._begins.get(step.name.partition("+")[0])  # "fc6+relu6+drop6"
            if begin is not None and (begin == 0 or end - begin >= BUCKET):
                self._ranks.start(slice(begin, end))
                end = begin
        self._ranks.finish()

    def _evaluate(self, on_batch: Callable[[], None]) -> Evaluation:
        self.compare("before validation")
        photos, size = len(self.val_set), self.replica.size
        mine = part_of(self.val_set, part(photos, self.replica.rank, size))
        rows = self.batch_size // size
        result = Evaluation(0.0, 0.0, 0.0)
        if len(mine):
            result = evaluate(self.net, mine, self.augment, rows, on_batch=on_batch)
        longest = -(-photos // size)
        for _ in range(-(-longest // rows) - -(-len(mine) // rows)):
            on_batch()  # as often as on every rank
        hits = [round(share * len(mine)) for share in (result.top1, result.top5)]
        sums = self._ranks.exchange(np.array([result.loss * len(mine), *hits])).sum(axis=0)
        return Evaluation(*(sums / photos).tolist())
