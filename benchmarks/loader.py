"""Photos from a store to shuffled batches, compared with PyTorch's DataLoader: images per second.

    python benchmarks/loader.py                       # 4,096 drawn rows of 256×256×3, 0.8 GB
    python benchmarks/loader.py --data photos.h5      # the training photos of a store

Nothing is computed with the batches. After the first round the file is in the system's page cache;
before, the disk is the limit. PyTorch reads the same rows of the same file in the two ways its
users do, by h5py and by a NumPy memory map, each with its default collation, in this process and in
workers that persist from round to round. All take turns, an epoch each, and medians are compared: a
machine that slows down slows all of them. Without PyTorch only ours is timed.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from machine import machine

from tinyconv.data.loader import Loader
from tinyconv.data.store import PhotoStore
from tinyconv.data.store_writer import StoreWriter

CLASSES = 10


def make_store(path, rows, size):
    """A store of random rows, one of them for validation."""
    rng = np.random.default_rng(0)
    with StoreWriter(
        path,
        size=size,
        rows={"train": rows, "val": 1},
        class_ids=[f"n{i:08}" for i in range(CLASSES)],
        class_names=[f"class {i}" for i in range(CLASSES)],
        settings={"source": "benchmarks/loader.py"},
    ) as writer:
        for first in range(0, rows, 64):
            count = min(64, rows - first)
            images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
            writer.write_rows("train", first, images)
        writer.write_rows("val", 0, images[:1])
        labels = np.arange(rows) % CLASSES
        writer.finish({"train": labels, "val": labels[:1]})


class StoreDataset:
    """What a PyTorch user writes to read an HDF5 file: opened where it is used."""

    def __init__(self, path, labels, mapped):
        self.path, self.labels, self.mapped = path, labels, mapped
        self.images = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        if self.images is None:
            file = h5py.File(self.path, "r")
            self.images = file["train/images"]
            if self.mapped:
                offset, shape = self.images.id.get_offset(), self.images.shape
                # "c", since PyTorch warns of arrays that cannot be written; nothing is written.
                self.images = np.memmap(self.path, np.uint8, "c", offset, shape)
                file.close()
        return self.images[i], self.labels[i]


def our_epoch(loader):
    """A function that runs through an epoch and returns the number of images."""
    epochs = iter(range(10**9))
    return lambda: sum(len(batch.images) for batch in loader.epoch(next(epochs)))


def torch_epochs(store, batch_size, worker_counts):
    """The same of each DataLoader, by name."""
    from torch.utils.data import DataLoader

    epochs = {}
    for mapped in (False, True):
        for workers in worker_counts:
            loader = DataLoader(
                StoreDataset(store.path, store.train.labels, mapped),
                batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            name = f"DataLoader, {'memory map' if mapped else 'h5py'}, {workers} workers"
            epochs[name] = lambda loader=loader: sum(len(images) for images, _ in loader)
    return epochs


def check(store):
    """PyTorch's data sets must give what `copy_rows` gives."""
    ids = np.linspace(0, len(store.train) - 1, 7).astype(int)
    ours = np.empty((7, store.size, store.size, 3), np.uint8)
    store.train.copy_rows(ids, ours)
    for mapped in (False, True):
        dataset = StoreDataset(store.path, store.train.labels, mapped)
        for i, image in zip(ids, ours, strict=True):
            np.testing.assert_array_equal(dataset[i][0], image)


def measure(store, options):
    """Images a second of every contestant, round by round."""
    rates, epochs = {}, {}
    with ExitStack() as stack:
        loader = Loader(store.train, options.batch_size, threads=options.threads)
        epochs[f"Loader, {loader.threads} threads"] = our_epoch(stack.enter_context(loader))
        if importlib.util.find_spec("torch"):
            epochs |= torch_epochs(store, options.batch_size, options.workers)
        else:
            print("PyTorch is not installed: timing ours alone", file=sys.stderr)
        for round_number in range(1 + options.rounds):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                count = epoch()
                rate = count / (time.perf_counter() - start)
                if round_number:  # the first is for warming up
                    rates.setdefault(name, []).append(rate)
    return rates


def report(rates, store, options):
    print(
        f"{len(store.train):,} images of {store.size}×{store.size}×3, batch {options.batch_size}, "
        f"shuffled, {options.rounds} rounds\n{machine('numpy', 'h5py', 'torch')}\n"
    )
    print("| | images/s | slowest to fastest | ours / theirs |\n|---|---:|---:|---:|")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = next(iter(medians.values()))
    theirs = [rate for name, rate in medians.items() if name.startswith("DataLoader")]
    for name, values in rates.items():
        print(
            f"| {name} | {medians[name]:,.0f} | {min(values):,.0f} to {max(values):,.0f} | "
            f"{ours / medians[name]:.1f} |"
        )
    if theirs:
        print(f"\nOurs is {ours / max(theirs):.1f} times as fast as the fastest DataLoader.")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a store; its training photos are read")
    parser.add_argument("--rows", type=int, default=4096, help="of the store made without --data")
    parser.add_argument("--size", type=int, default=256, help="of its images, in pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of our loader (default: its own)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of PyTorch's")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.data
        if path is None:
            path = Path(folder, "rows.h5")
            make_store(path, options.rows, options.size)
        with PhotoStore(path) as store:
            check(store)
            report(measure(store, options), store, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
