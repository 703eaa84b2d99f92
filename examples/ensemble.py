"""Tables 1 and 2: one net, five nets averaged, and a net that has seen more classes before (CNN*).

    python examples/ensemble.py --data photos.h5 --out ensemble
    python examples/ensemble.py --out quick --quick

First half: --seeds nets that differ in their seed, each on the centre crop and on ten views, alone
and with averaged probabilities. Second half: a net with a sixth convolution, as the paper's CNN*,
is trained on all classes; then, with a new last layer, on the first half of the classes, and is
compared with the same net trained on those alone. (The paper: 15 million photos of 22,000 classes,
then the 1,000 of ILSVRC.)
"""

import sys

import numpy as np

from tinyconv import RECIPES, alexnet
from tinyconv.data.open_data import Data
from tinyconv.data.photos import PhotoSet
from tinyconv.run.experiment import draw_bars, of_alexnet, parser, run, some, steps_down, table
from tinyconv.run.first_use import compilation_announced
from tinyconv.tools.ensemble import Member, evaluate_members

RECIPE = RECIPES["robust"]
PAPER = """\
The paper, ILSVRC-2012, error in percent (top-1 and top-5 on validation, top-5 on test): 1 CNN 40.7,
18.2, -; 5 CNNs 38.1, 16.4, 16.4; 1 CNN* 39.0, 16.6, -; 7 CNNs* 36.7, 15.4, 15.3."""


def work(experiment):
    options = experiment.options
    if options.quick:
        options.seeds = 2
    with experiment.open_data() as data:
        rows = averaged(experiment, data) + pretrained(experiment, data)
        source, count = data.source, len(data.train)
    experiment.report(
        "# One net, several averaged, and pre-training (tables 1 and 2)",
        f"Data: {source}, {count:,} training photos, {options.epochs} epochs, width "
        f"{options.width}, {options.image_size} pixels.",
        table(["nets", "views", "top-1 error here, %", "top-5 error here, %"], rows),
        PAPER,
    )
    bars = {f"{nets}, {views}": [float(top1) / 100] for nets, views, top1, _ in rows}
    draw_bars(experiment.folder / "ensemble.png", bars, "top-1 error, %")


def one_net(experiment, name, data, seed, sixth_conv=False, start=None):
    """A trained Member; start: a net whose weights it begins with, but for the last layer."""
    options = experiment.options
    size = options.image_size
    net = alexnet(len(data.class_names), options.width, size, RECIPE, seed, sixth_conv=sixth_conv)
    if start is not None:
        for own, other in zip(net.parameters()[:-2], start.parameters()[:-2], strict=True):
            own.value[...] = start.device.to_host(other.value)
    augment = experiment.augment(data, size, RECIPE, seed)
    schedule = steps_down(options.epochs)
    experiment.train(
        *(name, net, data, augment, RECIPE),
        lr=options.lr if start is None else options.lr / 10,
        **{"batch_size": 64, "schedule": schedule, "seed": seed},
    )
    return Member(name, net, augment, data.class_ids, data.class_names)


def errors(experiment, name, members, data):
    """[[net or "" for the average, views, top-1, top-5]] in percent."""

    def compute():
        found = evaluate_members(members, {members[0].size: data.val})
        results = [(row.name, row.views, row.tally.evaluation()) for row in found]
        return [[n, views, 100 * (1 - e.top1), 100 * (1 - e.top5)] for n, views, e in results]

    return experiment.measured(name, compute)


def averaged(experiment, data):
    seeds = range(experiment.options.seeds)
    members = [one_net(experiment, f"net-{seed}", data, seed) for seed in seeds]
    found = errors(experiment, "averaged", members, data)
    rows = []
    for views in ("centre", "ten"):
        alone = np.array([row[2:] for row in found if row[0] and row[1] == views])
        top1, top5 = (f"{value:.2f}" for value in alone.mean(axis=0))
        rows.append(["1 CNN (mean)", views, top1, top5])
        for row in found:
            if not row[0] and row[1] == views:
                rows.append([f"{len(members)} CNNs", views, f"{row[2]:.2f}", f"{row[3]:.2f}"])
    return rows


def pretrained(experiment, data):
    fewer = first_classes(data, len(data.class_names) // 2)
    before = one_net(experiment, "all-classes", data, 0, sixth_conv=True)
    tuned = one_net(experiment, "fine-tuned", fewer, 0, sixth_conv=True, start=before.net)
    alone = one_net(experiment, "half-the-classes", fewer, 0, sixth_conv=True)
    titles = {
        "fine-tuned": "1 CNN*, half the classes",
        "half-the-classes": "the same net, those classes alone",
    }
    found = errors(experiment, "pretrained", [tuned, alone], fewer)
    five = len(fewer.class_names) <= 5  # then every class is among the five likeliest
    return [
        [titles[name], views, f"{top1:.2f}", "-" if five else f"{top5:.2f}"]
        for name, views, top1, top5 in found
        if name
    ]


def first_classes(data, count):
    """The photos of the first `count` classes, in memory."""

    def part(photos):
        whole = some(photos, len(photos))
        rows = whole.labels < count
        return PhotoSet(whole.images[rows], whole.labels[rows], whole.class_names[:count])

    return Data.of_photos(part(data.train), part(data.val), f"{count} classes of {data.source}")


def main(arguments=None):
    options = of_alexnet(parser(__doc__, epochs=20, seeds=5)).parse_args(arguments)
    return run(work, options, "ensemble.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
