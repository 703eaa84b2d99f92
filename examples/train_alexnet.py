"""Train AlexNet: on drawn textures and shapes at once, or on a folder of your own photos.

    python examples/train_alexnet.py
    python examples/train_alexnet.py --data photos --width 0.5 --image-size 128 --epochs 30

A folder holds train/<class>/ and val/<class>/ with photos of any size, mode and format. The run
leaves a folder with weights.h5, metrics.jsonl, curves.png and conv1_filters.png.
"""

import argparse
import sys

from tqdm import tqdm

from layers import Device, DeviceError
from layers.first_use import compilation_announced
from tinyconv import RECIPES, alexnet, train
from tinyconv.alexnet import SMALLEST_IMAGE
from tinyconv.data import PhotoSet, read_folder, synthetic
from tinyconv.data.augment import Augment
from tinyconv.run_folder import RunFolder
from tinyconv.train import Epoch, TrainingError, first_loss_note, stuck_note


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="photos in {train,val}/<class>/; default: drawn ones")
    add("--classes", type=int, help="take only the first so many classes of the folder")
    add("--image-size", type=int, help="side of the crop the net sees (host 96, GPU 224)")
    add("--width", type=float, help="filters and units relative to the paper's (host 0.25, GPU 1)")
    add("--batch-size", type=int, default=64, help="images a step (default 64; the paper: 128)")
    add("--epochs", type=int, default=10, help="times through the training set (default 10)")
    add("--lr", type=float, default=0.01, help="learning rate, a tenth of it in the last third")
    add("--recipe", choices=RECIPES, default="robust", help="initial weights and the like")
    add("--device", default="auto", help="cpu, cuda:0, or auto (default): a GPU if one works")
    add("--seed", type=int, default=0, help="same seed, same machine: same weights, to the bit")
    add("--out", metavar="FOLDER", help="new folder for the results (default: runs/001, ...)")
    return parser.parse_args(arguments)


def load(options: argparse.Namespace) -> tuple[PhotoSet, PhotoSet]:
    # As the paper cuts 224-pixel crops out of 256-pixel squares: 256/224 of the crop.
    if options.image_size < SMALLEST_IMAGE:
        raise ValueError(f"--image-size must be at least {SMALLEST_IMAGE} pixels")
    square = round(options.image_size * 256 / 224)
    if options.data is None:
        print(f"drawing textures and shapes, {square}×{square} pixels")
        return synthetic(size=square, seed=options.seed)

    def progress(photos, total):
        return tqdm(photos, total=total, desc="decoding", unit="photo", disable=None)

    train_set, val_set, skipped = read_folder(
        options.data, square, classes=options.classes, progress=progress
    )
    for path, reason in skipped:
        print(f"skipped {str(path)!r}: {reason}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} files that are no readable photos", file=sys.stderr)
    return train_set, val_set


def run(options: argparse.Namespace, device: Device, folder: RunFolder) -> int:
    print(f"device: {device}")
    recipe = RECIPES[options.recipe]
    train_set, val_set = load(options)
    classes = len(train_set.class_names)
    print(f"{len(train_set):,} training and {len(val_set):,} validation photos, {classes} classes")

    mean_image = train_set.mean_image()
    augment = Augment(mean_image, options.image_size, recipe.input_divisor, options.seed)
    net = alexnet(classes, options.width, options.image_size, recipe, options.seed).to(device)
    print(f"\n{net}\n\nrecipe {recipe.name}: {recipe.summary}")

    history: list[Epoch] = []

    def report(epoch: Epoch) -> None:
        if not history:
            print(first_loss_note(epoch.first_loss, classes))
        history.append(epoch)
        folder.add(epoch)
        print(epoch, flush=True)
        if note := stuck_note(history, classes):
            print(note)

    settings = {
        "image_size": options.image_size,
        "width": options.width,
        "recipe": recipe.name,
        "input_divisor": recipe.input_divisor,
        "classes": list(train_set.class_names),
    }
    interrupted = False
    try:
        train(
            net,
            train_set,
            val_set,
            augment,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            lr_drops=[options.epochs - options.epochs // 3 + 1],
            seed=options.seed,
            on_epoch=report,
        )
    except KeyboardInterrupt:
        interrupted = True
    folder.finish(net, mean_image, settings, history)
    if interrupted:
        print(f"interrupted after {len(history)} epochs; the weights so far are in {folder.path}")
        return 130
    print(f"validation top-1 {history[-1].val_top1:.1%}, top-5 {history[-1].val_top5:.1%}")
    print(f"weights, metrics, curves and filters are in {folder.path}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        device = Device(options.device)
        if options.image_size is None:
            options.image_size = 224 if device.is_cuda else 96
        if options.width is None:
            options.width = 1.0 if device.is_cuda else 0.25
        with RunFolder(options.out) as folder:
            return run(options, device, folder)
    except (DeviceError, ValueError, OSError) as error:
        print(f"train_alexnet.py: error: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(
            "train_alexnet.py: error: not enough memory; try a smaller --batch-size, --width or "
            "--image-size",
            file=sys.stderr,
        )
        return 2
    except TrainingError as error:
        print(f"train_alexnet.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
