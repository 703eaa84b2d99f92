"""§3.3: a four-layer net on CIFAR-10 errs on 13 % of the test images, with LRN on 11 %.

    python -m tinyconv prepare cifar-10-binary.tar.gz cifar10.h5 --size 32
    python examples/cifar10_lrn.py --data cifar10.h5 --out lrn
    python examples/cifar10_lrn.py --data cifar10.h5 --out lrn --report      (so far)
    python examples/cifar10_lrn.py --out quick --quick

Trains the two nets of `tinyconv/run/models.py`, which differ in LRN only, on 24×24 crops and
mirror images, and tests them on the average of ten views. The authors trained on four fifths of the
images until the error on the last fifth stopped falling (about 300 epochs), on all of them for
about 150 more, and 10 epochs each with a tenth and a hundredth of the learning rate. Here all
images are used from the start, in --epochs; the lower rates have 10 epochs each as well, or a tenth
of --epochs each where that is fewer.
--only NET trains one of them, so that two processes share the work; Ctrl-C stops, the same command
resumes.
"""

import sys

from tinyconv import cifar10_net, evaluate
from tinyconv.recipes import CIFAR10
from tinyconv.run.experiment import draw_lines, epochs_of, mean_and_spread, parser, run, table
from tinyconv.run.first_use import compilation_announced
from tinyconv.schedule import Steps

CROP, LR = 24, 0.001
NETS = {"13pct": ("without LRN", "13"), "11pct": ("with LRN", "11")}


def work(experiment):
    options = experiment.options
    low = min(10, max(1, options.epochs // 10))  # epochs at each of the two lower rates
    drops = [options.epochs - 2 * low + 1, options.epochs - low + 1]
    errors = {kind: {} for kind in NETS}  # by seed
    histories = {}
    with experiment.open_data(32) as data:
        for seed in range(options.seeds):
            for kind in NETS:
                name = f"{kind}-{seed}"
                if options.report:  # whatever there is
                    histories[name] = epochs_of(experiment.folder / name)
                    if experiment.has(f"{name}-ten-views"):
                        errors[kind][seed] = experiment.measured(f"{name}-ten-views")
                    continue
                if options.only not in (None, kind):
                    continue
                net = cifar10_net(kind, len(data.class_names), CROP, seed=seed)
                augment = experiment.augment(data, CROP, CIFAR10, seed)
                histories[name] = experiment.train(
                    *(name, net, data, augment, CIFAR10),
                    lr=LR,
                    schedule=Steps(drops),
                    seed=seed,
                    settings={"model": f"cifar10-{kind}"},
                )
                errors[kind][seed] = experiment.measured(
                    f"{name}-ten-views",
                    lambda net=net, augment=augment: (
                        1 - evaluate(net, data.val, augment, 500, views="ten").top1
                    ),
                )
        source, count = data.source, len(data.train)
    rows = []
    for kind, (title, paper) in NETS.items():
        last = [h[-1] for name, h in histories.items() if name.startswith(kind) and h]
        if last:
            centre = mean_and_spread([1 - epoch.val_top1 for epoch in last])
            ten = mean_and_spread(list(errors[kind].values())) if errors[kind] else "not yet"
            done = ", ".join(str(epoch.epoch) for epoch in last)
            rows.append([title, done, len(last), centre, ten, paper])
    both = sorted(errors["13pct"].keys() & errors["11pct"].keys())
    if both:
        gains = [errors["13pct"][seed] - errors["11pct"][seed] for seed in both]
        rows.append(["gain, in points", "", len(gains), "", mean_and_spread(gains), "2"])
    experiment.report(
        "# Error on CIFAR-10 without and with LRN (§3.3)",
        f"Data: {source}, {count:,} training images. {options.epochs} epochs, batch 128, rate {LR} "
        f"divided by 10 before epochs {drops[0]} and {drops[1]}. The authors' schedule has about "
        "470 epochs, so this one is shortened.",
        table(
            ["net", "epochs done", "seeds", "error here, centre, %", "error here, ten views, %",
             "error in the paper, %"],
            rows,
        ),
    )  # fmt: skip
    draw_lines(
        experiment.folder / "errors.png",
        {name: [100 * (1 - e.val_top1) for e in h] for name, h in histories.items()},
        "test error, centre, %",
        {name: "--" if name.startswith("13pct") else "-" for name in histories},
    )


def main(arguments=None):
    options = parser(__doc__, epochs=100)
    options.add_argument("--only", choices=NETS, help="train this net alone")
    options.add_argument("--report", action="store_true", help="print what there is, and end")
    return run(work, options.parse_args(arguments), "cifar10_lrn.py")


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
