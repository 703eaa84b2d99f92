"""Figure 1: a four-layer net on CIFAR-10 learns several times faster with ReLU than with tanh.

    python examples/figure1_relu_tanh.py --data cifar10.h5 --out figure1
    python examples/figure1_relu_tanh.py --out quick --quick

Both nets train without regularisation, with each learning rate of a small grid, until a quarter of
the training images is classified wrongly; of each the fastest rate counts, as the paper chose the
rates "to make training as fast as possible". A rate that takes longer than another is given up. The
paper's net and rates are not published; this net has three convolutions and a fully connected
layer.
"""

import sys

from layers import Conv2D, Flatten, Linear, MaxPool2D, ReLU, Tanh
from tinyconv import Recipe, Sequential, initialize
from tinyconv.recipes import HE
from tinyconv.run.experiment import Centre, draw_lines, parser, run, table
from tinyconv.run.first_use import compilation_announced

TARGET = 0.25
RATES = 0.01, 0.03, 0.003, 0.1
PAPER = "6"
# Pooling takes the largest of nine outputs, so with He initialization alone each layer's output is
# larger than its input, and the first steps leave most ReLUs at zero for good.
STD = {"conv1": 0.05, "fc4": 0.005}
RECIPE = Recipe("figure 1", "no regularisation", HE, STD, weight_decay=0.0, input_divisor=64.0)


def four_layers(classes, size, activation, seed):
    layers, channels = {}, 3
    for number, filters in enumerate((32, 32, 64), start=1):
        layers[f"conv{number}"] = Conv2D(channels, filters, 5, padding=2)
        layers[f"act{number}"] = activation()
        layers[f"pool{number}"] = MaxPool2D(3, 2, ceil=True)
        channels = filters
    layers["flatten"] = Flatten()
    (flat,) = Sequential(layers).output_shapes((size, size, 3))[-1]
    layers["fc4"] = Linear(flat, classes)
    return initialize(Sequential(layers, (size, size, 3)), RECIPE, seed)


def work(experiment):
    rates = RATES[:1] if experiment.options.quick else RATES
    rows, best = [], {}
    with experiment.open_data(32) as data:
        size = len(data.mean_image)
        for activation in (ReLU, Tanh):
            fewest = experiment.options.epochs
            for rate in rates:
                net = four_layers(len(data.class_names), size, activation, seed=0)
                history = experiment.train(
                    *(f"{activation.__name__}-{rate}", net, data),
                    *(Centre(data.mean_image, size, RECIPE.input_divisor), RECIPE),
                    lr=rate,
                    until=lambda epoch, fewest=fewest: (
                        epoch.train_top1 >= 1 - TARGET or epoch.epoch >= fewest
                    ),
                )
                errors = [1 - epoch.train_top1 for epoch in history]
                reached = errors[-1] <= TARGET
                fewest = min(fewest, len(errors)) if reached else fewest
                epochs = len(errors) if reached else f"more than {len(errors)}"
                rows.append([activation.__name__, rate, epochs, f"{errors[-1]:.1%}"])
                # The fastest; of those that do not get there the one that comes nearest.
                key = (not reached, len(errors), errors[-1])
                if activation not in best or key < best[activation][0]:
                    best[activation] = key, errors
        source, count = data.source, len(data.train)
    (relu, relu_errors), (tanh, tanh_errors) = best[ReLU], best[Tanh]
    ratio = "not known: ReLU did not get there" if relu[0] else f"{tanh[1] / relu[1]:.1f}"
    if tanh[0] and not relu[0]:
        ratio = f"more than {ratio}"
    experiment.report(
        "# Epochs to 25 % training error, ReLU and tanh (figure 1)",
        f"Data: {source}, {count:,} training images, at most {experiment.options.epochs} epochs.",
        table(["activation", "learning rate", "epochs", "training error then"], rows),
        table(["", "here", "in the paper"], [["tanh / ReLU", ratio, PAPER]]),
    )
    draw_lines(
        experiment.folder / "figure1.png",
        {"ReLU": relu_errors, "tanh": tanh_errors, "25 %": [TARGET] * max(relu[1], tanh[1])},
        "training error",
        {"ReLU": "k-", "tanh": "k--", "25 %": "C7:"},
    )


def main(arguments=None):
    options = parser(__doc__, epochs=40).parse_args(arguments)
    return run(work, options, "figure1_relu_tanh.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
