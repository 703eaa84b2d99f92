"""Figure 3: one column's first filters become colour-blind, the other's colourful. Do they here?

    python examples/figure3_columns.py --data photos.h5 --out figure3 --seeds 3
    python examples/figure3_columns.py --out quick --quick

Trains AlexNet in its one-device form, whose two groups compute the same as the paper's two GPUs
(docs/two_gpus.md), from several seeds. The colourfulness of a filter is the part of its sum of
squares that is not grey: 0 % for a grey filter, 67 % for noise. The paper saw the split "during
every run"; which column became which depended on the seed.
"""

import sys

from tinyconv import RECIPES, alexnet
from tinyconv.run.experiment import of_alexnet, parser, run, steps_down, table
from tinyconv.run.filters import colourfulness
from tinyconv.run.first_use import compilation_announced
from tinyconv.run.plots import plot_column_filters

SPLIT = 0.2
"""A difference of the columns' colourfulness above which they count as split."""


def work(experiment):
    options, recipe, rows = experiment.options, RECIPES["robust"], []
    with experiment.open_data() as data:
        for seed in range(options.seeds):
            net = alexnet(len(data.class_names), options.width, options.image_size, recipe, seed)
            augment = experiment.augment(data, options.image_size, recipe, seed)
            schedule = steps_down(options.epochs)
            history = experiment.train(
                *(f"seed-{seed}", net, data, augment, recipe),
                **{"lr": options.lr, "batch_size": 64, "schedule": schedule, "seed": seed},
            )
            filters = net.device.to_host(net["conv1"].weight.value)
            share = colourfulness(filters)
            half = len(share) // 2
            first, second = share[:half].mean(), share[half:].mean()
            verdict = "yes" if abs(first - second) > SPLIT else "no"
            top1 = f"{history[-1].val_top1:.1%}"
            rows.append([seed, top1, f"{first:.0%}", f"{second:.0%}", verdict, "yes"])
            plot_column_filters(filters, experiment.folder / f"conv1-seed-{seed}.png")
        source, count = data.source, len(data.train)
    experiment.report(
        "# Does one column turn colour-blind? (figure 3)",
        f"Data: {source}, {count:,} training photos, {options.epochs} epochs, width "
        f"{options.width}, {options.image_size} pixels. Split: the columns' mean colourfulness "
        f"differs by more than {SPLIT:.0%}.",
        table(["seed", "validation top-1", "colourfulness of column 0", "of column 1",
               "split here", "split in the paper"], rows),
    )  # fmt: skip


def main(arguments=None):
    options = of_alexnet(parser(__doc__, epochs=20, seeds=3)).parse_args(arguments)
    return run(work, options, "figure3_columns.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
