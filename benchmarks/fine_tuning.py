"""Fine-tuning beside training from nothing: five classes first, 20 photos each of five others.

    python benchmarks/fine_tuning.py imagenette-mini

The argument is a folder {train,val}/<class>/ of ten classes. A net is trained on the first five.
Then nets are trained on 20 photos of each other class: with `--init-from`, conv1 and conv2 frozen
and half the rate, and from drawn weights, each with two seeds. Prints accuracy and seconds.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

from machine import machine
from measuring import table

from tinyconv.tools.command_line import program

PHOTOS = 20
NET = "--width=0.25", "--image-size=96", "--device=cpu"


def linked(source: Path, target: Path, classes: list[str], photos: int | None) -> None:
    """A folder of links to the photos of these classes, at most so many of each to train on."""
    for split in ("train", "val"):
        for name in classes:
            folder = target / split / name
            folder.mkdir(parents=True)
            found = sorted((source / split / name).iterdir())
            for path in found[: photos if split == "train" else None]:
                (folder / path.name).symlink_to(path.resolve())


def trained(data: Path, out: Path, *options: str) -> list[dict]:
    """The epochs of a run."""
    with contextlib.redirect_stdout(io.StringIO()):
        command = ["--data", str(data), *NET, "--out", str(out), *options]
        if program("train_alexnet").main(command):
            raise SystemExit(1)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=40, help="on the 20 photos (40)")
    parser.add_argument("--first-epochs", type=int, default=60, help="on the five classes (60)")
    options = parser.parse_args()
    classes = sorted(path.name for path in (options.data / "train").iterdir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked(options.data, folder / "first", classes[:5], None)
        linked(options.data, folder / "others", classes[5:10], PHOTOS)
        first = folder / "first_run"
        rows = [("five classes, all photos", trained(folder / "first", first,
                 f"--epochs={options.first_epochs}"))]  # fmt: skip
        others = [f"--epochs={options.epochs}", "--batch-size=20"]
        tuned = ["--init-from", str(first), "--freeze=conv1,conv2", "--lr=0.005"]
        for what, more in (("fine-tuned", [*others, *tuned]), ("from nothing", others)):
            for seed in (0, 1):
                run = trained(folder / "others", folder / f"{what}{seed}", *more, f"--seed={seed}")
                rows.append((f"five others, {PHOTOS} photos each, {what}, seed {seed}", run))
    lines = [
        [
            *(what, f"{len(epochs)}", f"{epochs[-1]['val_top1']:.1%}"),
            *(
                f"{max(e['val_top1'] for e in epochs):.1%}",
                f"{sum(e['seconds'] for e in epochs):.1f}",
            ),
        ]
        for what, epochs in rows
    ]
    header = ["training", "epochs", "top-1 at the end", "best top-1", "seconds"]
    print(f"{machine('numba', 'numpy')}\n\n{table(header, lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
