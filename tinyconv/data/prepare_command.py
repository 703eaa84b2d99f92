"""Decode photos once, into one HDF5 file for training.

    python -m tinyconv prepare photos photos.h5                  {train,val}/<class>/, or a .tar
    python -m tinyconv prepare imagenet imagenet.h5              ILSVRC 2012, packed or unpacked
    python -m tinyconv prepare cifar-10-binary.tar.gz cifar.h5 --image-size 64
    python -m tinyconv prepare flowers flowers.h5 --val-share 0.2      <class>/ alone
    python -m tinyconv prepare fall2009 fall2009.h5 --split half       half of each class to test
    python -m tinyconv prepare photos test.h5 --only-val               to evaluate with
    python -m tinyconv prepare --check photos.h5                       compare with its checksums

ILSVRC 2012: a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit or
LOC_val_solution.csv; nothing has to be unpacked.

It can be interrupted at any time; the same command resumes. Photos that cannot be read are left
out and named in OUT.skipped.txt.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from functools import partial

from tinyconv.data import commands
from tinyconv.data.bar import tqdm
from tinyconv.data.listing import Skipped, SourceError, printable
from tinyconv.data.photos import SPLITS, square_for
from tinyconv.data.prepare import prepare, skipped_file
from tinyconv.data.sources import Options
from tinyconv.data.store import PhotoStore

SMALLEST = 64
"""Side in pixels of the smallest crop that AlexNet can be trained on."""

_SHOWN = 10


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, .tar, or cifar-10-binary.tar.gz")
    add("out", metavar="OUT.h5", nargs="?", help="the file to make")
    add("--check", action="store_true", help="is SOURCE, a prepared file, as it was made?")
    side = parser.add_mutually_exclusive_group().add_argument
    side("--size", type=int, help="side of the squares in pixels (default 256; CIFAR-10: 32)")
    side("--image-size", type=int, metavar="CROP", help="of training; the squares are 8/7 of it")
    add("--labels", metavar="FILE", help="for photos without class folders: devkit, CSV, or text")
    add("--labels-from", type=int, choices=(0, 1), default=0,
        help="the number of the first class, where labels are numbers (default 0)")  # fmt: skip
    add("--val-share", type=float, metavar="SHARE", help="set this share aside, such as 0.2")
    add("--split", choices=("half",), help="half: set half of the photos of each class aside")
    add("--seed", type=int, default=0, help="decides which photos are set aside (default 0)")
    add("--workers", type=int, help="threads that decode (default: one per core)")
    add("--only-val", action="store_true", help="no training photos: a file to evaluate with")
    add("--strict", action="store_true", help="stop at the first photo that cannot be read")
    add("--force", action="store_true", help="replace OUT.h5 if it exists")


def main(options: argparse.Namespace) -> int:
    """Prepare and print the result.

    Returns 0; 2 if it cannot be done; 130 after Ctrl-C.
    """
    if options.check:
        with PhotoStore(options.source) as store:
            store.verify()
        print(f"{options.source}: all photos are as they were written")
        return 0
    if options.out is None:
        raise ValueError(f"no file to make is named: {options.source} OUT.h5")
    began = time.perf_counter()
    wait = 0 if sys.stderr.isatty() else 30  # in a log file, a bar every half minute
    try:
        skipped, resumed = prepare(
            options.source,
            options.out,
            Options(
                labels=options.labels,
                labels_from=options.labels_from,
                val_share=options.val_share,
                halves=options.split == "half",
                seed=options.seed,
                splits=("val",) if options.only_val else SPLITS,
            ),
            size=square_for(options.image_size) if options.image_size else options.size,
            workers=options.workers,
            strict=options.strict,
            force=options.force,
            report=partial(print, flush=True),
            progress=partial(tqdm, leave=False, smoothing=0.1, mininterval=wait or 0.1, delay=wait),
        )
        _summary(options, skipped, resumed, time.perf_counter() - began)
        return 0
    except SourceError as error:
        print(f"tinyconv prepare: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130


def _summary(
    options: argparse.Namespace, skipped: list[Skipped], resumed: int, seconds: float
) -> None:
    for each in skipped[:_SHOWN]:
        print(f"skipped {each}")
    if skipped:
        print(f"skipped {len(skipped):,} files; all are named in {skipped_file(options.out)}")
    with PhotoStore(options.out) as store:
        train, val, size, ids = len(store.train), len(store.val), store.size, store.class_ids
        bare = [ids[label] for label in sorted(set(range(len(ids))) - set(store.train.labels))]
    if bare and train:
        names = ", ".join(map(printable, bare[:5])) + (", ..." if len(bare) > 5 else "")
        print(f"note: {len(bare):,} classes have no training photo: {names}")
    rate = (train + val + len(skipped) - resumed) / seconds
    earlier = f" ({resumed:,} were done before)" if resumed else ""
    following = f"{commands.train()} --data {shlex.quote(options.out)}"
    if not train:
        following = f"{commands.evaluate()} RUN --data {shlex.quote(options.out)}"
    if train and size < square_for(SMALLEST):
        print(
            f"note: {size}×{size} is too small for AlexNet: prepare larger squares"
            + (", or train with --model cifar10-11pct" if size >= 24 else "")
        )
        source, out = shlex.quote(options.source), shlex.quote(options.out)
        following = f"{commands.tool('prepare')} {source} {out} --image-size {SMALLEST} --force"
    print(
        f"{options.out}: {train:,} training and {val:,} validation photos of {len(ids):,} classes, "
        f"{size}×{size}, {os.path.getsize(options.out) / 1e9:,.2f} GB\n"
        f"{seconds:,.1f} s, {rate:,.0f} photos/s{earlier}\n"
        f"next: {following}"
    )
