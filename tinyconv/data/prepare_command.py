"""Decode photos once, into one HDF5 file that is made for training.

    python -m tinyconv prepare photos photos.h5                  {train,val}/<class>/, or a .tar
    python -m tinyconv prepare imagenet imagenet.h5              ILSVRC 2012, packed or unpacked
    python -m tinyconv prepare cifar-10-binary.tar.gz cifar.h5
    python -m tinyconv prepare flowers flowers.h5 --val-share 0.2      <class>/ alone

ILSVRC 2012: a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit or
LOC_val_solution.csv; nothing has to be unpacked.

It can be interrupted at any time; the same command goes on where it was. Photos that cannot be
read are left out and named in OUT.skipped.txt.
"""

from __future__ import annotations

import argparse
import io
import shlex
import signal
import sys
import time
from functools import partial
from typing import Any

from tqdm import tqdm

from tinyconv.data.listing import PrepareError
from tinyconv.data.prepare import prepare
from tinyconv.data.prepare_work import Prepared

SECONDS_BETWEEN_LINES = 30
"""How often progress is shown where there is no terminal."""

_SHOWN = 10


def options(parser: argparse.ArgumentParser) -> None:
    """Give the command's arguments to its parser."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, .tar, or cifar-10-binary.tar.gz")
    add("out", metavar="OUT.h5", help="the file to make")
    add("--size", type=int, help="side of the squares in pixels (default 256; CIFAR-10: 32)")
    add("--labels", metavar="FILE", help="for photos without class folders: devkit, CSV, or text")
    add("--val-share", type=float, metavar="SHARE", help="set this share aside, such as 0.2")
    add("--seed", type=int, default=0, help="decides which photos are set aside (default 0)")
    add("--workers", type=int, help="processes that decode (default: one per core; 0: none)")
    add("--strict", action="store_true", help="stop at the first photo that cannot be read")
    add("--force", action="store_true", help="replace OUT.h5 if it exists")


def main(options: argparse.Namespace) -> int:
    """Prepare and say how it went.

    Returns 0; 2 if it cannot be done; 130 after Ctrl-C and 143 after SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    began = time.perf_counter()
    try:
        result = prepare(
            options.source,
            options.out,
            size=options.size,
            workers=options.workers,
            labels=options.labels,
            val_share=options.val_share,
            seed=options.seed,
            strict=options.strict,
            force=options.force,
            report=partial(print, flush=True),
            progress=_progress,
        )
        _summary(result, options.out, time.perf_counter() - began)
        return 0
    except PrepareError as error:
        print(f"python -m tinyconv prepare: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Terminated) as end:
        how, status = ("ended", 143) if isinstance(end, _Terminated) else ("interrupted", 130)
        print(f"{how}: the same command goes on where it was", file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    """SIGTERM, as an exception that only `main` catches."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _summary(result: Prepared, out: str, seconds: float) -> None:
    for each in result.skipped[:_SHOWN]:
        print(f"skipped {each}")
    if result.skipped:
        print(f"skipped {len(result.skipped):,} files; all are named in {result.skipped_file}")
    if result.bare:
        names = ", ".join(result.bare[:5]) + (", ..." if len(result.bare) > 5 else "")
        print(f"note: {len(result.bare):,} classes have no training photo: {names}")
    total = sum(result.counts.values())
    rate = (total + len(result.skipped) - result.resumed) / seconds
    earlier = f" ({result.resumed:,} were done before)" if result.resumed else ""
    print(
        f"{out}: {result.counts['train']:,} training and {result.counts['val']:,} validation "
        f"photos of {result.classes:,} classes, {result.size}×{result.size}, "
        f"{result.nbytes / 1e9:,.2f} GB\n"
        f"{seconds:,.1f} s, {rate:,.0f} photos/s{earlier}\n"
        f"next: python examples/train_alexnet.py --data {shlex.quote(out)}"
    )


def _progress(iterable: Any = None, **settings: Any) -> tqdm:
    """A bar on a terminal; elsewhere, such as in a log file, a line now and then."""
    if sys.stderr.isatty():
        return tqdm(iterable, smoothing=0.1, leave=False, **settings)
    return tqdm(
        iterable,
        file=_Lines(),
        mininterval=SECONDS_BETWEEN_LINES,
        delay=SECONDS_BETWEEN_LINES,
        ascii=True,
        ncols=0,
        smoothing=0.1,
        **settings,
    )


class _Lines(io.TextIOBase):
    """Writes what is meant to overwrite a line as a line of its own."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
