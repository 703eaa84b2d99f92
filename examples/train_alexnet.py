"""Train AlexNet: on drawn textures and shapes at once, on a folder of photos, or on ImageNet.

    python examples/train_alexnet.py
    python examples/train_alexnet.py --data photos --width 0.5 --image-size 128 --epochs 30
    python examples/train_alexnet.py --data imagenet.h5 --epochs 90 --schedule plateau
    python examples/train_alexnet.py --resume runs/003
    python examples/train_alexnet.py --parallel columns --device cuda:0,cuda:1
    python examples/train_alexnet.py --parallel replicas --device cuda:0,cuda:1
    mpiexec -n 16 python examples/train_alexnet.py --parallel replicas --device cuda:0,cuda:1

--data is a folder with train/<class>/ and val/<class>/ (photos of any size, mode and format), or a
file made by `python -m tinyconv prepare`. The run leaves a folder with checkpoints, weights.h5,
metrics.jsonl, curves.png and conv1_filters.png. Ctrl-C and SIGTERM end it after the step, with a
checkpoint; --resume goes on from there, or from where the power failed, to the same bits.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from layers import Device, DeviceError
from layers.fast.plan import simple_note
from layers.fast.precision import described
from tinyconv import RECIPES, alexnet
from tinyconv.alexnet import SMALLEST_IMAGE
from tinyconv.data.augment import Augment, colour_axes
from tinyconv.data.open_data import Data, open_data
from tinyconv.diagnose import LEARNED, overfit_one_batch
from tinyconv.parallel.column_training import ColumnTraining
from tinyconv.parallel.columns import Columns, two_devices
from tinyconv.parallel.launch import join, spawn, under_mpi
from tinyconv.parallel.rank import device_names
from tinyconv.parallel.replicas import Replica, ReplicaTraining
from tinyconv.run.first_use import compilation_announced
from tinyconv.run.options import complete, describe, make_schedule, parse, resumed
from tinyconv.run.plots import plot_column_filters
from tinyconv.run.recorder import Recorder
from tinyconv.run.run_folder import RunFolder
from tinyconv.run.stop import StopSignals
from tinyconv.sequential import Sequential
from tinyconv.train import Training, TrainingError

PROGRAM = "train_alexnet.py"


def load(options: argparse.Namespace, device: Device) -> Data:
    def progress(photos, total):
        return tqdm(photos, total=total, desc="decoding", unit="photo", disable=None)

    prepared = options.data is not None and Path(options.data).is_file()
    if options.image_size is None and not prepared:
        options.image_size = 224 if device.is_cuda else 96
    if options.image_size is not None and options.image_size < SMALLEST_IMAGE:
        raise ValueError(f"--image-size must be at least {SMALLEST_IMAGE} pixels")
    # As the paper cuts 224-pixel crops out of 256-pixel squares: 256/224 of the crop.
    square = None if prepared else round(options.image_size * 256 / 224)
    data = open_data(
        options.data, square, classes=options.classes, seed=options.seed, progress=progress
    )
    if options.image_size is None:
        options.image_size = round(data.mean_image.shape[0] * 224 / 256)
    print(f"data: {data.source}")
    for path, reason in data.skipped:
        print(f"skipped {str(path)!r}: {reason}", file=sys.stderr)
    if data.skipped:
        print(f"skipped {len(data.skipped)} files that are no readable photos", file=sys.stderr)
    print(
        f"{len(data.train):,} training and {len(data.val):,} validation photos, "
        f"{len(data.class_names)} classes"
    )
    return data


def run(
    options: argparse.Namespace,
    device: Device,
    folder: RunFolder | None,
    data: Data,
    replica: Replica | None = None,
) -> int:
    recipe = RECIPES[options.recipe]
    colour = colour_axes(data.eigenvalues, data.eigenvectors, recipe.colour)
    augment = Augment(
        data.mean_image, options.image_size, recipe.input_divisor, options.seed, colour
    )
    net = alexnet(len(data.class_names), options.width, options.image_size, recipe, options.seed)
    columns = options.parallel == "columns"
    net = Columns(net, options.device) if columns else net
    where = options.device if columns else device
    net.to(where, precision=options.precision, kernels=options.kernels)
    print(f"\n{net}\n\nrecipe {recipe.name}: {recipe.summary}")
    if options.overfit_one_batch and (columns or replica):
        raise ValueError("--overfit-one-batch runs on one device: leave --parallel out")
    if options.overfit_one_batch:
        return overfit(options, net, augment, data)

    kind: Any = ColumnTraining if columns else Training
    training = (partial(ReplicaTraining, replica=replica) if replica else kind)(
        net,
        data.train,
        data.val,
        augment,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        schedule=make_schedule(options),
        bare_last_stage=recipe.bare_last_stage,
        seed=options.seed,
        graph=not options.no_graph,
    )
    if folder is None:
        with StopSignals() as stop:
            done = training.run(should_stop=lambda: stop.received)
            return 0 if done else 128 + training.stopped
    settings = describe(options, data, net)
    recorder = Recorder(
        folder, training, settings, options.checkpoint_minutes, options.checkpoint_steps
    )
    if options.resume:
        for damage in recorder.resume():
            print(f"passed over a checkpoint: {damage}", file=sys.stderr)
        print(f"going on after step {training.progress.step} (epoch {training.progress.epoch})")
    else:
        folder.write_options(vars(options))
        recorder.start()
    with StopSignals() as stop:
        done = training.run(
            on_epoch=recorder.on_epoch,
            on_step=recorder.on_step,
            should_stop=lambda: stop.received,
        )
        if not done:
            recorder.save()
            print(
                f"stopped after step {training.progress.step} (epoch {training.progress.epoch}); "
                f"go on with: python examples/train_alexnet.py --resume {folder.path}"
            )
            return 128 + training.stopped
    history = recorder.history
    folder.finish(net, data.mean_image, settings, history)
    if columns:
        plot_column_filters(net["conv1"].weight.value.get(), folder.path / "conv1_filters.png")
    if history:
        print(f"validation top-1 {history[-1].val_top1:.1%}, top-5 {history[-1].val_top5:.1%}")
    print(f"weights, metrics, curves and filters are in {folder.path}")
    return 0


def overfit(options: argparse.Namespace, net: Sequential, augment: Augment, data: Data) -> int:
    """Can the net learn one batch by heart? Exit status 0 if it can, 1 if not."""

    def report(step: int, loss: float) -> None:
        if step == 1 or step % 20 == 0:
            print(f"step {step:4d}   loss {loss:.4f}", flush=True)

    augment.to(net.device, net.dtype)
    losses = overfit_one_batch(
        net, data.train, augment, options.batch_size, options.lr, report=report
    )
    learned = losses[-1] < LEARNED
    print(
        f"one batch is {'known by heart' if learned else 'NOT learned'} after {len(losses)} steps: "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    return 0 if learned else 1


def start(options: argparse.Namespace, replica: Replica | None = None) -> int:
    """Everything after the options; by each rank, of which only the first has a folder."""
    if options.parallel == "columns":
        device, second = two_devices(options.device)
        print(f"devices: column 0 on {device}; column 1 on {second}")
    else:
        device = Device(replica.device if replica else options.device)
        print(f"device: {device}")
    complete(options, device)
    print(f"precision: {described(options.precision, device)}")
    if options.kernels == "simple":
        print(f"kernels: {simple_note(device)}")
    make_schedule(options)
    if replica and not replica.first:
        with load(options, device) as data:
            return run(options, device, None, data, replica)
    folder = RunFolder.reopen(options.resume) if options.resume else RunFolder(options.out)
    with folder, load(options, device) as data:
        return run(options, device, folder, data, replica)


def settled(options: argparse.Namespace, given: dict[str, Any]) -> argparse.Namespace:
    """The options, those of the run that is resumed included."""
    if options.resume:
        with RunFolder.reopen(options.resume) as folder:
            resumed(options, given, folder)
    if options.parallel == "none" and (under_mpi() or len(options.device.split(",")) > 1):
        raise ValueError("for several devices or processes add --parallel replicas (or columns)")
    if options.parallel == "columns" and under_mpi():
        raise ValueError("--parallel columns is one process: start it without mpiexec")
    return options


def failure(error: BaseException, whose: str = "") -> tuple[int, str] | None:
    """Exit status and the line to print; None for an error that is a mistake of this program."""
    if isinstance(error, (DeviceError, ValueError, OSError)):
        return 2, f"{PROGRAM}: error: {whose}{error}"
    if isinstance(error, MemoryError):
        advice = "not enough memory; try a smaller --batch-size, --width or --image-size"
        return 2, f"{PROGRAM}: error: {whose}{advice}"
    if isinstance(error, TrainingError):
        return 1, f"{PROGRAM}: {whose}{error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"{PROGRAM}: interrupted"
    return None


def main(arguments: list[str] | None = None) -> int:
    options, given = parse(__doc__, arguments)
    try:
        if under_mpi():
            return join(start, lambda: settled(options, given), failure, PROGRAM)
        options = settled(options, given)
        if options.parallel == "replicas" and len(names := device_names(options.device)) > 1:
            return spawn(start, options, names, failure, PROGRAM)
        return start(options)
    except (Exception, KeyboardInterrupt) as error:
        found = failure(error)
        if found is None:
            raise
        print(found[1], file=sys.stderr)
        return found[0]


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
