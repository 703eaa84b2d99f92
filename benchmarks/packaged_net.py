"""Trains the small net in the package: ten classes of ImageNet, 96 pixels, width 0.25, float16.

    python benchmarks/packaged_net.py imagenette-mini           # about half an hour on two cores
    python benchmarks/packaged_net.py imagenette-mini --run RUN # packs a run that was trained so

The argument is a folder {train,val}/<wnid>/ of 224-pixel photos (Imagenette). Writes
tinyconv/weights/imagenette.h5, and imagenette.txt with its accuracy, as loaded from that file: of
the last epoch, because the best one would be chosen by the photos that the accuracy is quoted on.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tinyconv import evaluate, load_model, save_model
from tinyconv.data.folder import read_folder
from tinyconv.run.checkpoint import PACKAGED
from tinyconv.tools.command_line import program
from tinyconv.weights.model import Model

NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
SETTINGS = "--width=0.25", "--image-size=96", "--epochs=110", "--drops=75,100", "--device=cpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or f"{folder}/run"
        command = ["--data", options.data, *SETTINGS, "--out", run]
        if not options.run and program("train_alexnet").main(command):
            return 1
        trained = load_model(Path(run) / "weights.h5")
    ids = trained.class_names
    settings = {name: trained.settings[name] for name in ("recipe", "width")}
    names = [NAMES[each] for each in ids]
    model = Model(trained.net, trained.mean_image, names, trained.divisor, ids, settings)
    save_model(PACKAGED, model, half=True)
    packed = load_model()
    train, val, _ = read_folder(options.data, len(packed.mean_image))
    results = [evaluate(packed.net, val, packed.augment, views=each) for each in ("centre", "ten")]
    text = (
        f"imagenette.h5: {PACKAGED.stat().st_size:,} bytes, float16. Trained by "
        "benchmarks/packaged_net.py on ten classes of\n"
        f"ImageNet (imagenette-mini, {len(train):,} photos): train_alexnet.py\n"
        f"{' '.join(SETTINGS)}\n"
        f"On {len(val)} other photos: centre {results[0]};\nten views {results[1]}.\n"
        "The weights are those of the last epoch; no epoch was chosen by these photos.\n"
        f"Classes: {', '.join(names)}.\n"
    )
    PACKAGED.with_suffix(".txt").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
