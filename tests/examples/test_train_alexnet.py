"""The main job as its users run it: folders, options, mistakes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from photo_bytes import encoded, noisy_jpeg, put
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "train_alexnet.py"


def load():
    spec = importlib.util.spec_from_file_location("train_alexnet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main = load().main
SMALL = ["--device", "cpu", "--width", "0.05", "--image-size", "64", "--batch-size", "4"]


@pytest.fixture
def photos(tmp_path):
    """Two classes of photos of two sizes and formats: light and dark noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for k in range(count):
            dark = Image.fromarray(rng.integers(0, 90, (70 + k, 90, 3), np.uint8))
            light = Image.fromarray(rng.integers(160, 255, (80, 75 + k), np.uint8))
            put(tmp_path / "photos" / split / "dark" / f"{k}.jpg", encoded(dark, "JPEG").getvalue())
            put(tmp_path / "photos" / split / "light" / f"{k}.png", encoded(light).getvalue())
    return tmp_path / "photos"


def test_a_folder_of_photos_gives_a_run_folder(photos, tmp_path, capsys):
    out = tmp_path / "run"
    status = main(["--data", str(photos), "--out", str(out), "--epochs", "3", *SMALL])
    printed = capsys.readouterr().out
    assert status == 0
    assert "12 training and 6 validation photos, 2 classes" in printed
    assert "first loss" in printed and "guessing gives ln 2 = 0.693" in printed
    assert "validation top-1 " in printed and "top-5 100.0%" in printed and str(out) in printed
    names = sorted(p.name for p in out.iterdir())
    assert names == ["conv1_filters.png", "curves.png", "metrics.jsonl", "weights.h5"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.01, 0.001])
    with h5py.File(out / "weights.h5") as file:
        settings = json.loads(file.attrs["settings"])
        assert settings["classes"] == ["dark", "light"] and settings["image_size"] == 64
        # 64 · 256/224 rounded: the paper's margin around the crop.
        assert file["mean_image"].shape == (73, 73, 3)


def test_one_seed_writes_the_same_bytes_twice(photos, tmp_path):
    contents = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        out = tmp_path / name
        arguments = ["--data", str(photos), "--out", str(out), "--epochs", "2"]
        assert main([*arguments, "--seed", str(seed), *SMALL]) == 0
        contents.append((out / "weights.h5").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_unreadable_files_are_named_counted_and_skipped(photos, tmp_path, capsys):
    put(photos / "train" / "dark" / "notes.jpg", b"this is text")
    put(photos / "train" / "light" / "cut.jpg", noisy_jpeg()[:2000])
    out = tmp_path / "run"
    assert main(["--data", str(photos), "--out", str(out), "--epochs", "1", *SMALL]) == 0
    printed = capsys.readouterr()
    assert "12 training and 6 validation" in printed.out
    assert "notes.jpg" in printed.err and "cut.jpg" in printed.err
    assert "skipped 2 files" in printed.err


def remove(path):
    for entry in sorted(path.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()
    path.rmdir()


MISTAKES = {
    "no such folder": (lambda photos: remove(photos), [], "no such folder"),
    "no val": (lambda photos: remove(photos / "val"), [], "no folder 'val'"),
    "one class": (
        lambda photos: [remove(photos / s / "dark") for s in ("train", "val")],
        [],
        "only one class",
    ),
    "an empty class": (
        lambda photos: [p.unlink() for p in (photos / "train" / "dark").iterdir()],
        [],
        "dark' is empty",
    ),
    "too many classes": (None, ["--classes", "5"], "cannot take 5 of the 2 classes"),
    "a tiny image": (None, ["--image-size", "20"], "--image-size must be at least 64"),
    "image size 0": (None, ["--image-size", "0"], "--image-size must be at least 64"),
    "no width": (None, ["--width", "0"], "width must be between"),
    "negative epochs": (None, ["--epochs", "-1"], "at least 1"),
    "no batch": (None, ["--batch-size", "0"], "at least 1"),
    "a negative rate": (None, ["--lr", "-0.1"], "lr >= 0"),
    "a negative seed": (None, ["--seed", "-3"], "seed -3"),
    "a device that makes no sense": (None, ["--device", "gpu"], "device 'gpu'"),
    "a GPU that is not there": (None, ["--device", "cuda:7"], "cuda:7"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line_status_2_and_nothing_is_written(
    name, photos, tmp_path, capsys
):
    spoil, options, message = MISTAKES[name]
    if spoil:
        spoil(photos)
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--out", str(out), "--epochs", "1", *SMALL, *options]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("train_alexnet.py: error: ")
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_output_folder_that_cannot_be_written_is_noticed_before_training(
    photos, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", photos):
        assert main(["--data", str(photos), "--out", str(out), *SMALL]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "epoch" not in printed.out


def test_a_learning_rate_that_explodes_ends_with_status_1_and_advice(photos, tmp_path, capsys):
    arguments = ["--data", str(photos), "--out", str(tmp_path / "run"), "--epochs", "9"]
    with np.errstate(all="ignore"):
        assert main([*arguments, *SMALL, "--lr", "1e6"]) == 1
    assert "learning rate of a third or less" in capsys.readouterr().err


def test_ctrl_c_keeps_the_weights_so_far(photos, tmp_path, monkeypatch, capsys):
    module = load()
    original = module.RunFolder.add

    def interrupted(folder, epoch):
        original(folder, epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.RunFolder, "add", interrupted)
    out = tmp_path / "run"
    assert module.main(["--data", str(photos), "--out", str(out), "--epochs", "9", *SMALL]) == 130
    assert "interrupted after 2 epochs" in capsys.readouterr().out
    assert (out / "weights.h5").exists() and len((out / "metrics.jsonl").open().readlines()) == 2


def test_help_and_the_embedded_data_in_a_process_of_its_own(tmp_path):
    """No GPU, no network, no argument but a shorter run: a batch of the drawn data set."""
    run = [sys.executable, str(SCRIPT)]
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and "--recipe" in shown.stdout
    wrong = subprocess.run(
        [*run, "--recipe", "caffe"], capture_output=True, text=True, env=environment
    )
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
