"""What the experiments in `examples/` share: options, a folder, trainings that resume, a report.

An experiment trains several nets, measures them, and writes a table and a picture into --out:

    OUT/<name>/        the run folder of each training (`run_folder.py`)
    OUT/<name>.json    what has been measured so far
    OUT/report.md      the table; OUT/*.png the picture

Started again with the same --out it goes through the same steps: trainings that are done are read,
the one that was interrupted resumes from its checkpoint, so a killed experiment gives the table
that it would have given. Figures of the paper have columns of their own.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from layers import Device
from tinyconv.data.augment import Augment, colour_axes
from tinyconv.data.open_data import Data, open_data
from tinyconv.data.photos import PhotoSet
from tinyconv.data.training_data import TrainingData
from tinyconv.recipes import Recipe
from tinyconv.run.checkpoint import load_weights
from tinyconv.run.diagnose import losses_explained
from tinyconv.run.plots import _figure as new_figure
from tinyconv.run.program import explain
from tinyconv.run.run_folder import RunFolder
from tinyconv.run.sealed import replace_file
from tinyconv.run.stop import StopSignals
from tinyconv.run.training import step_for
from tinyconv.schedule import Schedule, Steps
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD
from tinyconv.train import Epoch, Training

CHECKPOINT_SECONDS = 300
"""Between checkpoints within an epoch; there is one after each epoch as well."""

QUICK = {"epochs": 3, "seeds": 1, "width": 0.05, "image_size": 64, "images": 240}
"""What --quick sets, of the options that an experiment has."""

MAY_CHANGE = {"data", "out", "device", "report", "only"}
"""Options that a resumed experiment may be given anew."""


def parser(description: str | None, *, epochs: int, seeds: int = 1) -> argparse.ArgumentParser:
    """The options of every experiment, with its defaults; an experiment adds its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--data", metavar="PATH", help="file of `prepare`, or folder; default: drawn pictures")
    add("--out", metavar="FOLDER", required=True, help="for all results; the same one resumes")
    add("--quick", action="store_true", help="a minute on few pictures: shows how, proves nothing")
    add("--epochs", type=int, default=epochs, help=f"of each training (default {epochs})")
    add("--images", type=int, help="use so many of each set, evenly spaced (default: all)")
    add("--seeds", type=int, default=seeds, help=f"trainings of each kind (default {seeds})")
    add("--device", default="auto", help="cpu, cuda:0, or auto (default)")
    return made


def of_alexnet(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """`made` with the options of experiments that train AlexNet."""
    made.add_argument("--width", type=float, default=0.25, help="of the paper's (default 0.25)")
    made.add_argument("--image-size", type=int, default=96, help="side of crops (default 96)")
    made.add_argument("--lr", type=float, default=0.01, help="first learning rate (default 0.01)")
    return made


def run(work: Callable[["Experiment"], None], options: argparse.Namespace, program: str) -> int:
    """work(experiment); returns the exit status, after one line for an error."""
    try:
        with StopSignals() as stop:
            experiment = Experiment(options, stop)
            try:
                work(experiment)
            except Stopped:
                print(f"stopped; the same command resumes {options.out}")
                return 128 + stop.received
        return 0
    except (Exception, KeyboardInterrupt) as error:
        found = explain(program, error)
        if found is None:
            raise
        print(found[1], file=sys.stderr)
        return found[0]


class Stopped(Exception):
    """A signal has ended a training, after a checkpoint."""


class Experiment:
    """The folder of an experiment, and the ways to fill it.

    ValueError if the folder was begun with other options.
    """

    def __init__(self, options: argparse.Namespace, stop: Any) -> None:
        if options.epochs < 1 or options.seeds < 1:
            raise ValueError(
                f"--epochs and --seeds must be at least 1, not {options.epochs} and {options.seeds}"
            )
        if options.images is not None and options.images < 1:
            raise ValueError(f"--images must be at least 1, not {options.images}")
        self.options, self.stop = options, stop
        self.device = Device(options.device).use()
        self.folder = Path(options.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in vars(options).items() if k not in MAY_CHANGE}
        begun = self.folder / "options.json"
        if begun.exists():
            for name, value in json.loads(begun.read_text()).items():
                if kept.get(name) != value:
                    raise ValueError(
                        f"{options.out} was begun with --{name.replace('_', '-')} {value}, not "
                        f"{kept.get(name)}: give that, or another --out"
                    )
        elif any(self.folder.iterdir()):
            raise ValueError(f"{options.out} is not empty and no experiment's: name another --out")
        else:
            replace_file(begun, json.dumps(kept).encode())
        if options.quick:
            for name in QUICK.keys() & vars(options).keys():
                setattr(options, name, QUICK[name])

    def open_data(self, square: int | None = None) -> Data:
        """The photos of --data, or drawn ones, in memory if --images asks for a part of them.

        square: side in pixels of a folder's or of drawn photos (None: 8/7 of --image-size).
        """
        path, count = self.options.data, self.options.images
        prepared = path is not None and Path(path).is_file()
        square = square or round(self.options.image_size * 256 / 224)
        data = open_data(path, None if prepared else square)
        if count is None:
            return data
        with data:
            train, val = some(data.train, count), some(data.val, count)
            return Data.of_photos(train, val, f"{count} of each set of {data.source}")

    def train(
        self,
        name: str,
        net: Sequential,
        data: Data,
        augment: Augment,
        recipe: Recipe,
        *,
        lr: float,
        batch_size: int = 128,
        schedule: Schedule | None = None,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        until: Callable[[Epoch], bool] | None = None,
    ) -> list[Epoch]:
        """Train `net` in OUT/name, for --epochs or until(epoch); returns the epochs' figures.

        If that has been done the weights are read. settings: what a checkpoint has to agree with,
        beside what is known here. Stopped after a signal.
        """
        net.to(self.device)
        schedule = schedule or Schedule()
        training = Training(
            net,
            TrainingData(data.train, data.val, augment, batch_size, seed),
            step_for(net, SGD(net.parameters(), lr, weight_decay=recipe.weight_decay)),
            epochs=self.options.epochs,
            schedule=schedule,
            seed=seed,
        )
        settings = {
            "recipe": asdict(recipe),
            "image_size": augment.crop,
            "class_ids": data.class_ids,
            "class_names": data.class_names,
            "training photos": data.train.fingerprint(),
            "batch_size": batch_size,
            "lr": lr,
            "schedule": schedule.describe(),
            "seed": seed,
            "network": net.table(computed=False).splitlines(),
        } | (settings or {})
        if hasattr(self.options, "width"):
            settings["width"] = self.options.width  # with it, `load_model` can build the net
        path = self.folder / name
        begun = (path / "run.json").exists()
        with RunFolder.reopen(path) if begun else RunFolder(path) as folder:
            if (path / "weights.h5").exists():
                load_weights(path / "weights.h5", net)
                return folder.history(before=sys.maxsize)
            if not begun:
                folder.write_options({"experiment": name})
            for damage in folder.restore(training, settings):
                print(f"skipped a checkpoint: {damage}", file=sys.stderr)
            history = folder.history(before=training.progress.epoch)
            done = bool(history and until is not None and until(history[-1]))
            saved = time.monotonic()

            def on_step() -> None:
                nonlocal saved
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    folder.save(training, settings)
                    saved = time.monotonic()

            def on_epoch(epoch: Epoch) -> None:
                nonlocal saved
                history.append(epoch)
                folder.add(epoch)
                folder.save(training, settings)
                saved = time.monotonic()
                print(f"{name}: {epoch}", flush=True)
                if until is not None and until(epoch):
                    training.epochs = epoch.epoch

            with losses_explained(training):
                if not done and not training.run(
                    on_step=on_step, on_epoch=on_epoch, should_stop=self.stop.asked
                ):
                    folder.save(training, settings)
                    raise Stopped
            folder.finish(net, augment.mean, settings, history)
        return history

    def augment(self, data: Data, crop: int, recipe: Recipe, seed: int) -> Augment:
        """What makes batches by the recipe."""
        colour = colour_axes(data.eigenvalues, data.eigenvectors, recipe.colour)
        return Augment(data.mean_image, crop, recipe.input_divisor, seed, colour)

    def has(self, name: str) -> bool:
        """Whether `name` has been measured."""
        return (self.folder / f"{name}.json").exists()

    def measured(self, name: str, compute: Callable[[], Any] = dict) -> Any:
        """compute(), JSON values, or what it returned when it was first called for `name`."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            replace_file(path, json.dumps(compute()).encode())
        return json.loads(path.read_text())

    def report(self, *parts: str) -> None:
        """Print the parts of the report, and write them to report.md."""
        text = "\n\n".join(parts) + "\n"
        replace_file(self.folder / "report.md", text.encode())
        print(f"\n{text}\nreport and picture are in {self.folder}")


class Centre(Augment):
    """Always the central crop as it is: training without augmentation."""

    def random(self, images: Any, ids: np.ndarray, epoch: int) -> Any:
        """`centre(images)`."""
        return self.centre(images)


def steps_down(epochs: int) -> Schedule:
    """A tenth of the learning rate in the last third of the epochs, if there are three."""
    return Steps([epochs - epochs // 3 + 1]) if epochs >= 3 else Schedule()


def epochs_of(path: Path) -> list[Epoch]:
    """The epochs that the training in a folder has finished so far, also while it runs."""
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [Epoch(**json.loads(line)) for line in lines]


def some(photos: Any, count: int) -> PhotoSet:
    """`count` photos of a set, evenly spaced, so that all classes are among them; in memory."""
    ids = np.unique(np.linspace(0, len(photos) - 1, min(count, len(photos))).astype(np.int64))
    images = np.empty((len(ids), photos.size, photos.size, 3), np.uint8)
    photos.copy_rows(ids, images)
    return PhotoSet(images, np.asarray(photos.labels)[ids], tuple(photos.class_names))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; figures of the paper go into columns of their own."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in cells)


def mean_and_spread(values: Sequence[float]) -> str:
    """Shares as percent: mean, and standard deviation where there are several."""
    percent = 100 * np.asarray(values)
    spread = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
    return f"{percent.mean():.2f}{spread}"


def draw_lines(
    path: Path, lines: Mapping[str, Sequence[float]], label: str, styles: Mapping[str, str]
) -> None:
    """A PNG of one value for each epoch, a line for each name; styles: Matplotlib's, by name."""
    figure = new_figure(figsize=(6, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, styles[name], label=name)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_bars(path: Path, bars: Mapping[str, Sequence[float]], label: str) -> None:
    """A PNG with a bar for each name: the mean of its values (shares) in percent, each as a dot."""
    figure = new_figure(figsize=(8, 1 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(bars.values()):
        percent = 100 * np.asarray(values)
        axes.barh(place, percent.mean(), color="C0", alpha=0.6)
        axes.plot(percent, [place] * len(percent), "k.")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    figure.savefig(path, dpi=120, metadata={"Software": None})
