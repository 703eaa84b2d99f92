"""The scripts of docs/library.md run as they stand there."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from marks import long
from PIL import Image

from tinyconv import RECIPES, alexnet, load_model
from tinyconv.run.checkpoint import save_weights

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the scripts read: a run, three photos, a folder of two classes."""
    monkeypatch.chdir(tmp_path)
    recipe, rng = RECIPES["robust"], np.random.default_rng(0)
    settings = {"width": 0.05, "image_size": 64, "recipe": asdict(recipe), "input_divisor": 32.0}
    settings |= {"class_names": ["a", "b", "c"], "class_ids": ["a", "b", "c"]}
    Path("runs/001").mkdir(parents=True)
    mean = np.full((73, 73, 3), 128, np.float32)
    save_weights("runs/001/weights.h5", alexnet(3, 0.05, 64, recipe), mean, settings)
    paths = [Path(name) for name in ("photo.jpg", "other.jpg", "third.png")]
    for split, count in (("train", 4), ("val", 1)):
        for kind in ("dark", "light"):
            paths += [Path(f"photos/{split}/{kind}/{i}.png") for i in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        level = 150 if "light" in str(path) else 0
        pixels = rng.integers(level, level + 100, (80, 90, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


def test_there_are_five_scripts():
    assert len(SCRIPTS) == 5


@pytest.mark.parametrize("number", [0, 1, 2, long(3), 4])
def test_a_script_runs(number, folder, capsys):
    exec(compile(SCRIPTS[number], f"library.md, script {number + 1}", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.strip()
    if "tuned.h5" in SCRIPTS[number]:
        tuned, first = load_model("tuned.h5"), load_model("runs/001")
        assert tuned.class_names == ["dark", "light"]
        for name, same in (("conv1", True), ("conv2", True), ("conv3", False)):
            equal = np.array_equal(tuned.net[name].weight.value, first.net[name].weight.value)
            assert equal == same
    if "own.h5" in SCRIPTS[number]:
        assert len(load_model("own.h5").class_names) == 10
