"""The accuracy of fp32, tf32 and bf16: errors of products, and the same training in each.

    python benchmarks/precision.py                                    # drawn photos
    python benchmarks/precision.py --data photos.h5 --epochs 20
    python benchmarks/precision.py --seeds 0                          # products only

Computed on the host, where tf32 and bf16 are emulated (`layers/fast/precision.py`): what is
measured is accuracy, not time.

Products: dot products of random numbers, of both signs or all positive, against float64. Training:
one small AlexNet from the same first weights, with the same photos, crops and masks, in each
precision, with several seeds. Two trainings that differ by one rounding drift apart in time, as all
chaotic systems do; so a fourth one, in fp32, has the first layer's filters scaled by 1 + 2⁻²³. Only
larger differences are effects of the precision; the difference between two seeds is the scale.
"""

import argparse
import statistics
import sys

import numpy as np
from machine import machine
from measuring import table

from layers import Device
from layers.fast.gemm import multiply
from layers.fast.precision import PRECISIONS, round_into
from tinyconv import RECIPES, alexnet, train
from tinyconv.data.augment import Augment, colour_axes
from tinyconv.data.open_data import open_data

LENGTHS = 27, 363, 1200, 4096, 9216
"""Terms of a sum: a 3×3 window of a photo; one of conv1, of conv2; what fc7 and fc6 add up."""

NUDGED = "fp32, nudged"


def relative_error(precision, length, positive, rows=256, seed=0):
    """Root mean square error of rows × rows dot products, relative to that of the products."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, length)).astype(np.float32)
    b = rng.standard_normal((length, rows)).astype(np.float32)
    if positive:
        a, b = np.abs(a), np.abs(b)
    host = Device("cpu")
    out = np.empty((rows, rows), np.float32)
    operands = a.copy(), b.copy()
    if precision != "fp32":
        for operand in operands:
            round_into(host, precision, operand, operand)
    multiply(host, (*operands, out), precision=precision)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.sqrt(np.mean((out - exact) ** 2) / np.mean(exact**2)))


def products_table(names):
    """A row for each length of a sum and kind of numbers."""
    rows = [
        [f"{length:,}", kind, *(f"{relative_error(n, length, positive):.1e}" for n in names)]
        for length in LENGTHS
        for kind, positive in (("both signs", False), ("positive numbers", True))
    ]
    return table(["terms", "of", *names], rows)


def run(name, seed, data, options):
    """The epochs of one training."""
    recipe = RECIPES["robust"]
    net = alexnet(len(data.class_names), options.width, options.image_size, recipe, seed)
    if name == NUDGED:
        net["conv1"].weight.value *= np.float32(1 + 2**-23)
    net.to("cpu", precision="fp32" if name == NUDGED else name)
    colour = colour_axes(data.eigenvalues, data.eigenvectors, recipe.colour)
    augment = Augment(data.mean_image, options.image_size, recipe.input_divisor, seed, colour)
    return train(
        *(net, data.train, data.val, augment),
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=seed,
    )


def distance(one, other):
    """How far two trainings' curves of the mean loss are apart at most, and of top-1 at the end."""
    loss = max(abs(a.train_loss - b.train_loss) for a, b in zip(one, other, strict=True))
    return loss, abs(one[-1].val_top1 - other[-1].val_top1)


def training_tables(names, data, options):
    """Every training and the means of each precision; and how far curves are apart."""
    runs, seeds = {}, range(options.seeds)
    for seed in seeds:
        for name in names:
            runs[name, seed] = run(name, seed, data, options)
            print(f"{name}, seed {seed}: {runs[name, seed][-1]}", file=sys.stderr, flush=True)
    rows = []
    for seed in [*seeds, "mean"]:
        for name in names:
            ends = [runs[name, s][-1] for s in (seeds if seed == "mean" else [seed])]
            figures = ([e.train_loss, e.val_loss, e.val_top1, e.val_top5] for e in ends)
            loss, val_loss, top1, top5 = map(statistics.fmean, zip(*figures, strict=True))
            rows.append(
                [name, f"{seed}", f"{loss:.4f}", f"{val_loss:.4f}", f"{top1:.1%}", f"{top5:.1%}"]
            )
    header = ["precision", "seed", "training loss", "validation loss", "top-1", "top-5"]
    pairs = {
        f"{name} and fp32, one seed": [(runs[name, s], runs["fp32", s]) for s in seeds]
        for name in names
        if name != "fp32"
    }
    pairs["fp32 and fp32, two seeds"] = [
        (runs["fp32", one], runs["fp32", other]) for one in seeds for other in seeds if one < other
    ]
    apart = []
    for title, both in pairs.items():
        if both:
            losses, top1 = zip(*(distance(*pair) for pair in both), strict=True)
            loss = f"{statistics.fmean(losses):.3f} ({max(losses):.3f})"
            apart.append([title, loss, f"{statistics.fmean(top1):.1%} ({max(top1):.1%})"])
    return (
        f"{table(header, rows)}\n\nLargest distance of two curves of the training loss (mean of an "
        "epoch), and distance\nof validation top-1 at the end; of the pairs the mean, and in "
        f"brackets the largest:\n\n{table(['pair', 'loss', 'top-1'], apart)}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help="a prepared file or a folder; default: drawn photos")
    add("--image-size", type=int, default=96, help="side of the crop (96)")
    add("--width", type=float, default=0.25, help="of the net, relative to the paper's (0.25)")
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=64)
    add("--lr", type=float, default=0.01)
    add("--seeds", type=int, default=3, help="how many (3); 0: no training")
    options = parser.parse_args(arguments)
    names = [name for name in PRECISIONS if name != "auto"]
    print(machine("numba", "numpy"))
    print("\nRelative error of a · b, sums of so many terms, against float64 (root mean square):\n")
    print(products_table(names), flush=True)
    if not options.seeds:
        return 0
    prepared = options.data is not None and options.data.endswith(".h5")
    square = None if prepared else round(options.image_size * 256 / 224)
    with open_data(options.data, square) as data:
        print(
            f"\n{data.source}: {len(data.train):,} training and {len(data.val):,} validation "
            f"photos, {len(data.class_names)} classes; AlexNet, width {options.width:g}, "
            f"{options.image_size} pixels, recipe robust; {options.epochs} epochs, batch "
            f"{options.batch_size}, learning rate {options.lr:g}\n"
        )
        print(training_tables([*names, NUDGED], data, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
