"""Batches of photos, read ahead of need, in an order that the seed alone decides.

A few threads read the next batches during a training step, so that the loop seldom waits. Threads
are enough: nothing has to be decoded (`store.py`), bytes are copied, and Python's lock is released
meanwhile.

The batches are in a ring of buffers:

    k − 1    returned last          the consumer may still use it
    k        returned now
    k + 1 .. k + ahead              being read

so a batch is valid until the next but one is requested. Copy what has to last longer. On a GPU the
buffers are pinned memory, and a ring of three device arrays follows them, filled by copies that run
while the GPU computes (`Uploads` in `layers/fast/streams.py`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from layers import Device
from layers.fast.streams import Uploads, pinned
from tinyconv.data.photos import PhotoSet
from tinyconv.data.random_arrays import permutation

ORDER = 2**32 - 4
"""Stream of the generator for the order of an epoch (see `augment.py`)."""

UPLOADED = 3
"""Device arrays: batches k − 1 and k, and one being copied."""


class LoaderError(RuntimeError):
    """The loader is closed, or has begun another iteration."""


class Batch(NamedTuple):
    """A batch; valid until the next but one is requested.

    images: uint8 (n, S, S, 3) on the loader's device; labels: int64 (n,) and ids: int64 (n,), the
    photos' places in the set, both NumPy arrays.
    """

    images: Any
    labels: np.ndarray
    ids: np.ndarray


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in `count` images; the rest of an epoch, less than a batch, is left out."""
    return max(1, count // batch_size)


def part(count: int, rank: int, size: int) -> slice:
    """The rank's part of `count` things: together complete, disjoint, of almost equal length."""
    return slice(rank * count // size, (rank + 1) * count // size)


class Loader:
    """Batches of a photo set on a device, read ahead by threads.

    photos: a `PhotoSet`; device: where the images go; seed: of the order; ahead:
    batches that are read while one is in use; threads: that read them (None: one per core, at most
    4 and at most `ahead`); rank, ranks: of the batches of an epoch take this `part` of the rows.
    Takes the memory of ahead + 2 batches. ValueError for arguments out of range.

    One iteration at a time: a new one ends the one before. The threads end with the iteration, also
    if it is left early, and at `close`. An error in a thread is raised by the consumer's `next`, in
    place of the batch. A context manager.
    """

    def __init__(
        self,
        photos: PhotoSet,
        batch_size: int,
        device: Device | str = "cpu",
        *,
        seed: int = 0,
        ahead: int = 3,
        threads: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if threads is None:
            threads = min(4, os.cpu_count() or 1, max(1, ahead))
        if min(batch_size, ahead, threads) < 1:
            raise ValueError(
                "Loader: batch_size, ahead and threads must be at least 1, not "
                f"{batch_size}, {ahead} and {threads}"
            )
        if not len(photos):
            raise ValueError("Loader: the set has no photos")
        self.photos, self.batch_size, self.seed = photos, batch_size, seed
        self.ahead, self.threads, self.device = ahead, threads, Device(device)
        self.batches_per_epoch = batches_per_epoch(len(photos), batch_size)
        self.waited = 0.0
        """Seconds in all that the consumer has waited for a batch."""
        whole = min(batch_size, len(photos))
        self._rows_of_batch = part(whole, rank, ranks)
        rows = self._rows_of_batch.stop - self._rows_of_batch.start
        shape = (rows, photos.size, photos.size, 3)
        self._buffers = [pinned(self.device, shape, np.uint8) for _ in range(ahead + 2)]
        self._uploads: Uploads | None = None
        if self.device.is_cuda and not self.device.is_simulated:
            self._uploads = Uploads(self.device, UPLOADED, shape, np.uint8)
        self._handed_out = 0  # batches since the beginning: which buffers come next
        self._pool: ThreadPoolExecutor | None = None  # of the iteration under way
        self._closed = False

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in a random order, from batch `first` on.

        Every epoch has an order of its own, each image at most once; the images left out at its
        end (less than a batch) are others each time. A set smaller than a batch is one batch. A
        run that is resumed within an epoch gets the batches that it would have had.
        """
        if not 0 <= first <= self.batches_per_epoch:
            raise ValueError(
                f"Loader: an epoch has {self.batches_per_epoch} batches; cannot begin at {first}"
            )
        order = permutation(len(self.photos), self.seed, ORDER, epoch)
        size, rows = self.batch_size, self._rows_of_batch
        batches = range(first, self.batches_per_epoch)
        return self._batches([order[i * size : (i + 1) * size][rows] for i in batches])

    def ordered(self) -> Iterator[Batch]:
        """All photos in their order; the last batch may be smaller."""
        order = np.arange(len(self.photos))
        size = self.batch_size
        return self._batches([order[i : i + size] for i in range(0, len(order), size)])

    def close(self) -> None:
        """End the threads and free the buffers; a running iteration cannot continue."""
        self._closed = True
        self._stop()
        self._buffers, self._uploads = [], None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        """One batch for each array of ids; refuses at once, and not at the first `next`."""
        self._check_open()
        return self._iterate(parts)

    def _check_open(self) -> None:
        if self._closed:
            raise LoaderError("this loader is closed; make a new one")

    def _iterate(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        self._check_open()
        asked = time.perf_counter()
        self._stop()
        self._pool = pool = ThreadPoolExecutor(self.threads, "loader")
        start, uploads = self._handed_out, self._uploads
        tasks: deque[Future[None]] = deque()  # of batch i and those after it
        submitted = uploading = 0
        try:
            for i, ids in enumerate(parts):
                self._check_current(pool)
                while submitted < min(i + 1 + self.ahead, len(parts)):
                    if uploads is not None:  # of the batch whose buffer this was, long ago
                        uploads.wait((start + submitted - len(self._buffers)) % UPLOADED)
                    rows = self._rows(start + submitted, parts[submitted])
                    tasks.append(pool.submit(self.photos.copy_rows, parts[submitted], rows))
                    submitted += 1
                with suppress(CancelledError):  # by `close` or a new iteration
                    tasks[0].result()
                self._check_current(pool)
                images = self._rows(start + i, ids)
                if uploads is not None:
                    if uploading == i:
                        self._upload(start + i, ids)
                        uploading += 1
                    if uploading == i + 1 < submitted and _is_read(tasks[1]):
                        self._upload(start + uploading, parts[uploading])
                        uploading += 1
                    images = uploads.take((start + i) % UPLOADED, len(ids))
                tasks.popleft()
                self._handed_out += 1
                labels = self.photos.labels[ids]
                self.waited += time.perf_counter() - asked
                yield Batch(images, labels, ids)
                asked = time.perf_counter()
        finally:
            if self._pool is pool:
                self._stop()

    def _rows(self, number: int, ids: np.ndarray) -> np.ndarray:
        """The part of a buffer that batch `number`, counted over all iterations, is read into."""
        return self._buffers[number % len(self._buffers)][: len(ids)]

    def _upload(self, number: int, ids: np.ndarray) -> None:
        assert self._uploads is not None
        self._uploads.begin(number % UPLOADED, self._rows(number, ids))

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        if self._uploads is not None:  # the buffers they copy from may be gone in a moment
            self._uploads.synchronize()

    def _check_current(self, pool: ThreadPoolExecutor) -> None:
        if self._pool is not pool:
            raise LoaderError("the loader was closed, or has begun another iteration")


def _is_read(task: Future[None]) -> bool:
    return task.done() and task.exception() is None
