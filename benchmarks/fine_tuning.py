"""Fine-tuning beside training from nothing: five classes first, 20 photos each of five others.

    python benchmarks/fine_tuning.py imagenette-mini
    python benchmarks/fine_tuning.py --steps            # what frozen layers save

The argument is a folder {train,val}/<class>/ of ten classes. A net is trained on the last five.
Then nets are trained on 20 photos of each other class, from drawn weights and with `--init-from`,
with five seeds, each of which has other photos and another order of them. Prints accuracy on all
validation photos of these classes after the last epoch. RATE and TUNED were chosen in trials with
the two halves changed around (`--swapped`), so that these photos had no part in the choice.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from machine import machine
from measuring import in_turns, seconds, table

from tinyconv import SGD, alexnet
from tinyconv.run.fine_tune import freeze
from tinyconv.tools.command_line import program

PHOTOS, SEEDS = 20, range(5)
RATE = "--lr=0.01"
TUNED = "--lr=0.003", "--lr-multiplier=fc8=10"
FROZEN = "conv1,conv2"


def linked(source: Path, target: Path, classes: list[str], part: slice = slice(None)) -> None:
    """A folder of links to the photos of these classes, of those to train on a part."""
    for split in ("train", "val"):
        for name in classes:
            folder = target / split / name
            folder.mkdir(parents=True)
            found = sorted((source / split / name).iterdir())
            for path in found[part] if split == "train" else found:
                (folder / path.name).symlink_to(path.resolve())


def trained(data: Path, out: Path, *options: str) -> list[dict]:
    """The epochs of a run."""
    with contextlib.redirect_stdout(io.StringIO()):
        command = ["--data", str(data), "--out", str(out), "--device=cpu", *options]
        if program("train_alexnet").main(command):
            raise SystemExit(1)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def row(what: str, runs: list[list[dict]]) -> list[str]:
    """Accuracy after the last epoch, of one or several runs."""
    ends = [100 * run[-1]["val_top1"] for run in runs]
    spread = f" ± {statistics.stdev(ends):.1f}" if len(ends) > 1 else ""
    by_seed = ", ".join(f"{each:.1f}" for each in ends)
    return [what, f"{len(runs[0])}", f"{statistics.mean(ends):.1f}{spread}", by_seed]


def accuracies(options: argparse.Namespace) -> str:
    classes = sorted(path.name for path in (options.data / "train").iterdir())
    halves = (classes[:5], classes[5:10]) if options.swapped else (classes[5:10], classes[:5])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked(options.data, folder / "first", halves[0])
        for seed in SEEDS:
            part = slice(PHOTOS * seed, PHOTOS * (seed + 1))
            linked(options.data, folder / f"others{seed}", halves[1], part)
        run = folder / "first_run"
        net = f"--width={options.width}", f"--image-size={options.image_size}"
        first = trained(folder / "first", run, *net, "--epochs=60")
        lines = [row("five classes, all photos", [first])]
        start = "--init-from", str(run)
        frozen = f"fine-tuned, {FROZEN} frozen", *TUNED, f"--freeze={FROZEN}", *start
        for epochs, what, *settings in (
            (10, "from nothing", RATE),
            (10, *frozen),
            (40, "from nothing", RATE),
            (40, *frozen),
        ):
            runs = []
            for seed in SEEDS:
                out = folder / f"run{len(lines)}_{seed}"
                more = *net, *settings, f"--epochs={epochs}", "--batch-size=20", f"--seed={seed}"
                runs.append(trained(folder / f"others{seed}", out, *more))
            lines.append(row(f"five others, {PHOTOS} photos each, {what}", runs))
            print(lines[-1], file=sys.stderr, flush=True)
    return table(["training", "epochs", "top-1, %", "by seed"], lines)


def step_times(rounds: int = 30) -> str:
    """Milliseconds of a training step on 20 photos, by how many layers are frozen."""
    x = np.random.default_rng(0).normal(size=(20, 96, 96, 3)).astype(np.float32)
    labels = np.arange(20) % 5

    def step_of(frozen: list[str]) -> partial:
        net = alexnet(5, 0.25, 96, "robust")
        if frozen:
            freeze(net, frozen)
        loss, sgd = net.loss(), SGD(net.parameters(), lr=0.001)

        def step() -> None:
            loss.forward(net.forward(x), labels)
            net.backward(loss.backward())
            sgd.step()

        step()
        return partial(seconds, step)

    convs = [f"conv{i}" for i in range(1, 6)]
    steps = {", ".join(convs[:n]) or "none": step_of(convs[:n]) for n in (0, 2, 3, 5)}
    times = in_turns(steps, rounds)
    whole = statistics.median(times["none"])
    lines = [
        [name, f"{1000 * statistics.median(found):.1f}", f"{statistics.median(found) / whole:.0%}"]
        for name, found in times.items()
    ]
    return table(["frozen", "ms a step", "of the whole"], lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--swapped", action="store_true", help="the first five classes first")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--steps", action="store_true", help="only the time of a step")
    options = parser.parse_args()
    if not options.steps and options.data is None:
        parser.error("name the folder of photos, or --steps")
    found = step_times() if options.steps else accuracies(options)
    print(f"{machine('numba', 'numpy')}\n\n{found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
