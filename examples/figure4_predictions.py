"""Figure 4: what the net says of eight photos, and which training photos it finds alike.

    python examples/figure4_predictions.py --data photos.h5 --out figure4 --run runs/003
    python examples/figure4_predictions.py --out quick --quick

Left: test photos with their class and the five likeliest as bars, the right one in red. Right: in
each row a test photo and the six training photos nearest to it in Euclidean distance between fc7
vectors. --run takes a trained net; without it one is trained here.
"""

import sys

import numpy as np

from tinyconv import RECIPES, alexnet
from tinyconv.evaluate import average, likeliest, log_probabilities
from tinyconv.run.experiment import new_figure, of_alexnet, parser, run, some, steps_down, table
from tinyconv.run.features import features, nearest
from tinyconv.run.first_use import compilation_announced
from tinyconv.tools.ensemble import load_member

SHOWN, QUERIES, NEAREST = 8, 5, 6


def trained_net(experiment, data):
    """(net, augment): that of --run, or one that is trained now."""
    options, recipe = experiment.options, RECIPES["robust"]
    if options.run:
        member = load_member(options.run, experiment.device)
        if member.class_names != data.class_names or member.size != len(data.mean_image):
            raise ValueError(
                f"{options.run} was trained on {len(member.class_names)} classes of photos of "
                f"{member.size} pixels: give the --data that it was trained on"
            )
        return member.net, member.augment
    net = alexnet(len(data.class_names), options.width, options.image_size, recipe, seed=0)
    augment = experiment.augment(data, options.image_size, recipe, 0)
    schedule = steps_down(options.epochs)
    experiment.train(
        "net", net, data, augment, recipe, lr=options.lr, batch_size=64, schedule=schedule
    )
    return net, augment


def work(experiment):
    with experiment.open_data() as data:
        net, augment = trained_net(experiment, data)
        shown = some(data.val, SHOWN)
        chances = np.exp(average(log_probabilities(net, augment, shown.images, "centre")))
        best = likeliest(chances, 5)
        vectors = [features(net, photos, augment, "fc7") for photos in (shown, data.train)]
        queries = np.linspace(0, len(shown) - 1, QUERIES).astype(int)
        near = nearest(vectors[0][queries], vectors[1], NEAREST)
        train_labels = np.asarray(data.train.labels)
        images = np.empty((near.size, *shown.images.shape[1:]), np.uint8)
        data.train.copy_rows(near.ravel(), images)
        names, source = data.class_names, data.source
    figure = new_figure(figsize=(15, 7), layout="constrained")
    left, right = figure.subfigures(1, 2)
    draw_predictions(left, shown, chances, best, names)
    draw_nearest(right, shown.images[queries], images.reshape(*near.shape, *images.shape[1:]))
    figure.savefig(experiment.folder / "figure4.png", dpi=100, metadata={"Software": None})

    own = shown.labels[queries]
    same = [int((train_labels[row] == label).sum()) for row, label in zip(near, own, strict=True)]
    experiment.report(
        "# Predictions, and nearest training photos by fc7 (figure 4)",
        f"Data: {source}. The paper shows a picture and gives no figures for it.",
        table(
            ["photo's class", "likeliest", "probability", "right class among five"],
            [
                [names[label], names[row[0]], f"{p[row[0]]:.1%}", "yes" if label in row else "no"]
                for label, row, p in zip(shown.labels, best, chances, strict=True)
            ],
        ),
        table(
            ["query's class", f"of the {NEAREST} nearest have it"],
            [[names[label], count] for label, count in zip(own, same, strict=True)],
        ),
    )


def draw_predictions(part, photos, chances, best, names):
    for place, axes in enumerate(part.subplots(4, 4).flat):
        number, kind = place // 2, place % 2
        if kind == 0:
            axes.imshow(photos.images[number])
            axes.set_title(names[photos.labels[number]], fontsize=8)
            axes.set_axis_off()
            continue
        row = best[number][::-1]
        colours = ["C3" if label == photos.labels[number] else "C0" for label in row]
        axes.barh([names[label] for label in row], chances[number][row], color=colours)
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.tick_params(labelsize=7, length=0)


def draw_nearest(part, queries, near):
    places = part.subplots(len(queries), 1 + near.shape[1])
    for row, (query, others) in enumerate(zip(queries, near, strict=True)):
        for axes, image in zip(places[row], [query, *others], strict=True):
            axes.imshow(image)
            axes.set_axis_off()


def main(arguments=None):
    options = of_alexnet(parser(__doc__, epochs=20))
    options.add_argument("--run", metavar="RUN", help="folder of a run, or weights")
    return run(work, options.parse_args(arguments), "figure4_predictions.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
