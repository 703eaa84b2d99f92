"""What surrounds a training run on the command line: its ranks, device, folder, photos, errors.

Bad input is one line and exit status 2, a failed training one line and 1; nothing is half-written.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from layers import Device, DeviceError
from layers.fast.plan import simple_note
from layers.fast.precision import described
from tinyconv.data.bar import tqdm
from tinyconv.data.open_data import Data, open_data
from tinyconv.data.store_writer import FULL
from tinyconv.parallel.columns import two_devices
from tinyconv.parallel.communicator import Replica
from tinyconv.parallel.launch import join, spawn, under_mpi
from tinyconv.run.models import MODELS
from tinyconv.run.options import complete, make_schedule, resumed
from tinyconv.run.run_folder import RunFolder
from tinyconv.train import TrainingError

WHOLE = 0.75
"""Side of a crop, relative to that of the photo, below which a note says so; the paper's: 7/8."""

Work = Callable[..., int]
"""work(options) or work(options, replica) -> exit status."""


def run(work: Work, options: argparse.Namespace, given: dict[str, Any], program: str) -> int:
    """Call `work` here, or in each of the processes that --parallel replicas asks for.

    options, given: from `options.parse`; program: begins each error message. Returns the exit
    status.
    """
    failure = partial(explain, program)  # processes of replicas get it, too
    try:
        if under_mpi():
            return join(work, lambda: settled(options, given), failure, program)
        options = settled(options, given)
        if options.parallel == "replicas" and "," in options.device:
            return spawn(work, options, failure, program)
        return work(options)
    except (Exception, KeyboardInterrupt) as error:
        found = failure(error)
        if found is None:
            raise
        print(found[1], file=sys.stderr)
        return found[0]


def settled(options: argparse.Namespace, given: dict[str, Any]) -> argparse.Namespace:
    """The options, with those of the run that is resumed. ValueError if they contradict."""
    if options.resume:
        with RunFolder.reopen(options.resume) as folder:
            resumed(options, given, folder)
    if options.parallel == "none" and (under_mpi() or len(options.device.split(",")) > 1):
        raise ValueError("for several devices or processes add --parallel replicas (or columns)")
    if options.parallel == "columns" and under_mpi():
        raise ValueError("--parallel columns is one process: start it without mpiexec")
    if options.parallel == "columns" and (options.freeze or options.lr_multiplier):
        raise ValueError("--freeze and --lr-multiplier do not run with --parallel columns")
    if options.overfit_one_batch and options.parallel != "none":
        raise ValueError("--overfit-one-batch runs on one device: leave --parallel out")
    return options


def open_device(options: argparse.Namespace, replica: Replica | None = None) -> Device:
    """The device of this process; prints it, and fills in the options that depend on it."""
    if options.parallel == "columns":
        device, second = two_devices(options.device)
        print(f"devices: column 0 on {device}; column 1 on {second}")
    else:
        device = Device(replica.device if replica else options.device).use()
        print(f"device: {device}")
    complete(options, device)
    print(f"precision: {described(options.precision, device)}")
    if options.kernels == "simple":
        print(f"kernels: {simple_note(device)}")
    make_schedule(options)
    return device


def open_folder(options: argparse.Namespace, replica: Replica | None = None) -> Any:
    """The run's folder, new or resumed, in a `with` statement; None where nothing is written."""
    if options.overfit_one_batch or (replica and not replica.first):
        return contextlib.nullcontext()
    return RunFolder.reopen(options.resume) if options.resume else RunFolder(options.out)


def load_photos(options: argparse.Namespace, device: Device) -> Data:
    """The photos of --data; prints what they are, and fills in --image-size."""

    def progress(photos: Any, total: int) -> Any:
        return tqdm(photos, total=total, desc="decoding", unit="photo", disable=None)

    prepared = options.data is not None and Path(options.data).is_file()
    if options.resume and options.data and not Path(options.data).exists():
        raise ValueError(f"{options.data} does not exist any more: add --data with its new place")
    model = MODELS[options.model]
    if options.image_size is None and not prepared:
        options.image_size = model.crop or (224 if device.is_cuda else 96)
    if options.image_size is not None and options.image_size < model.smallest:
        raise ValueError(f"--image-size must be at least {model.smallest} pixels")
    # As the paper cuts 224-pixel crops out of 256-pixel squares: 256/224 of the crop.
    square = None if prepared else round(options.image_size * model.photo)
    data = open_data(
        options.data,
        square,
        classes=options.classes,
        val_share=options.val_share,
        seed=options.seed,
        progress=progress,
    )
    square = len(data.mean_image)
    if options.image_size is None:
        options.image_size = round(square / model.photo)
    print(f"data: {data.source}")
    if model.crop is None and options.image_size < WHOLE * square:
        part = (options.image_size / square) ** 2
        print(
            f"note: crops of {options.image_size} pixels show {part:.0%} of a photo of {square}: "
            f"prepare with --image-size {options.image_size}"
        )
    for each in data.skipped:
        print(f"skipped {each}", file=sys.stderr)
    if data.skipped:
        print(f"skipped {len(data.skipped)} files that are no readable photos", file=sys.stderr)
    print(
        f"{len(data.train):,} training and {len(data.val):,} validation photos, "
        f"{len(data.class_names)} classes"
    )
    count, batch = len(data.train), max(1, options.batch_size)
    if count > batch and count % batch:
        print(f"each epoch leaves out {count % batch:,} of them, less than a batch of {batch}")
    return data


def explain(program: str, error: BaseException, whose: str = "") -> tuple[int, str] | None:
    """Exit status and the line to print; None for an error that is a mistake of this program."""
    if isinstance(error, OSError) and error.errno in FULL:
        advice = "make room, and resume the run with --resume: its last checkpoint is whole"
        return 2, f"{program}: error: {whose}the disk is full ({error}): {advice}"
    if isinstance(error, DeviceError | ValueError | OSError):
        return 2, f"{program}: error: {whose}{error}"
    if isinstance(error, MemoryError):
        advice = "not enough memory; try a smaller --batch-size, --width or --image-size"
        return 2, f"{program}: error: {whose}{advice}"
    if isinstance(error, TrainingError):
        return 1, f"{program}: {whose}{error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"{program}: interrupted"
    return None
