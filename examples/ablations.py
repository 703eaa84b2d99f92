"""What each part of AlexNet contributes: the net without it, several seeds, one table.

    python examples/ablations.py --data photos.h5 --out ablations --width 0.5 --image-size 128
    python examples/ablations.py --out quick --quick

Each row is AlexNet with one change, trained like the whole net. Errors are top-1 on the centre
crop. The paper's column has its own numbers, on ImageNet, where it gives any.
"""

import sys
from dataclasses import replace

from layers import Conv2D, Linear, MaxPool2D, ReLU, Tanh
from tinyconv import RECIPES, Sequential, alexnet, initialize
from tinyconv.run.experiment import (
    Centre,
    draw_bars,
    mean_and_spread,
    of_alexnet,
    parser,
    run,
    steps_down,
    table,
)
from tinyconv.run.first_use import compilation_announced

RECIPE = replace(RECIPES["robust"], colour="deviation")


def without(*kinds):
    """The edit that removes layers of these kinds."""
    return lambda layers: {n: x for n, x in layers.items() if type(x).__name__ not in kinds}


def without_conv(name):
    """The edit that removes a middle convolution and its ReLU; the next one takes its input."""

    def edit(layers):
        removed = layers[name]
        kept = {n: x for n, x in layers.items() if n not in (name, f"relu{name[-1]}")}
        following = f"conv{int(name[-1]) + 1}"
        if following in kept and removed.in_channels != removed.out_channels:
            conv = kept[following]
            kept[following] = Conv2D(
                removed.in_channels, conv.out_channels, 3, padding=1, groups=conv.groups
            )
        return kept

    return edit


def pooling_2(layers):
    return {n: MaxPool2D(2, 2) if isinstance(x, MaxPool2D) else x for n, x in layers.items()}


def tanh(layers):
    return {n: Tanh() if isinstance(x, ReLU) else x for n, x in layers.items()}


# title: (edit of the layers, "centre" for no crops and flips, recipe, factor of the width,
#         what the paper says the part gains, in points of top-1)
CHANGES = {
    "the whole net": (dict, "random", RECIPE, 1, ""),
    "without LRN": (without("LocalResponseNorm"), "random", RECIPE, 1, "1.4"),
    "pooling 2/2 instead of 3/2": (pooling_2, "random", RECIPE, 1, "0.4"),
    "without colour augmentation": (dict, "random", RECIPES["robust"], 1, "more than 1"),
    "without crops and flips": (dict, "centre", RECIPE, 1, "not given"),
    "without conv3": (without_conv("conv3"), "random", RECIPE, 1, "about 2"),
    "without conv4": (without_conv("conv4"), "random", RECIPE, 1, "about 2"),
    "without conv5": (without_conv("conv5"), "random", RECIPE, 1, "about 2"),
    "without dropout": (without("Dropout"), "random", RECIPE, 1, "not given"),
    "tanh instead of ReLU": (tanh, "random", RECIPE, 1, "not given"),
    "half the filters": (dict, "random", RECIPE, 0.5, "1.7"),
}


def changed_net(classes, options, change, seed):
    """AlexNet after the change, with initial weights."""
    edit, _, recipe, factor, _ = change
    shape = (options.image_size, options.image_size, 3)
    net = alexnet(classes, factor * options.width, options.image_size, recipe, init=False)
    layers = edit({layer.name: layer for layer in net})
    places = list(layers).index("flatten") + 1
    (flat,) = Sequential(dict(list(layers.items())[:places])).output_shapes(shape)[-1]
    layers["fc6"] = Linear(flat, layers["fc6"].out_features)
    net = initialize(Sequential(layers, shape), recipe, seed)
    net["conv1"].weight.value *= recipe.conv1_scale
    return net


def work(experiment):
    options, errors = experiment.options, {}
    with experiment.open_data() as data:
        # Seed by seed: after the first there is a whole table.
        for seed in range(options.seeds):
            for title, change in CHANGES.items():
                net = changed_net(len(data.class_names), options, change, seed)
                recipe = change[2]
                augment = experiment.augment(data, options.image_size, recipe, seed)
                if change[1] == "centre":
                    augment = Centre(data.mean_image, augment.crop, augment.divisor, seed,
                                     augment.colour)  # fmt: skip
                history = experiment.train(
                    *(f"{title.replace('/', '-').replace(' ', '-')}-{seed}", net, data, augment),
                    *(recipe,),
                    lr=options.lr,
                    batch_size=64,
                    schedule=steps_down(options.epochs),
                    seed=seed,
                )
                errors.setdefault(title, []).append(1 - history[-1].val_top1)
        source, count = data.source, len(data.train)
    whole = errors["the whole net"]
    gains = {
        title: [error - base for error, base in zip(found, whole, strict=True)]
        for title, found in errors.items()
    }
    experiment.report(
        "# AlexNet without each of its parts",
        f"Data: {source}, {count:,} training photos, {options.epochs} epochs, width "
        f"{options.width}, {options.image_size} pixels, {options.seeds} seeds; mean ± standard "
        "deviation over the seeds. Gain: the error with the change less that of the whole net.",
        table(
            ["net", "top-1 error here, %", "gain of the part here, points",
             "gain in the paper, points"],
            [
                [title, mean_and_spread(found), mean_and_spread(gains[title]), CHANGES[title][-1]]
                for title, found in errors.items()
            ],
        ),
    )  # fmt: skip
    draw_bars(experiment.folder / "ablations.png", errors, "top-1 error, %")


def main(arguments=None):
    options = of_alexnet(parser(__doc__, epochs=20, seeds=3)).parse_args(arguments)
    return run(work, options, "ablations.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
