"""The main job as its users run it: folders, options, mistakes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_bytes import encoded, noisy_jpeg, put
from PIL import Image

from layers import (
    Conv2D,
    Dropout,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    SoftmaxCrossEntropy,
)
from tinyconv.data.store_writer import StoreWriter
from tinyconv.run.checkpoint import load_model

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
    assert "12 training and 6 validation photos, 2 classes\n" in printed
    assert "leaves out" not in printed
    assert "first loss" in printed and "guessing gives ln 2 = 0.693" in printed
    assert "validation top-1 " in printed and "top-5 100.0%" in printed and str(out) in printed
    names = sorted(p.name for p in out.iterdir())
    assert names == [
        *("best.h5", "checkpoint-000000006.h5", "checkpoint-000000009.h5", "conv1_filters.png"),
        *("curves.png", "metrics.jsonl", "run.json", "weights.h5"),
    ]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.01, 0.001])
    model = load_model(out / "weights.h5")
    assert model.class_names == ["dark", "light"] and model.settings["image_size"] == 64
    # 64 · 256/224 rounded: the paper's margin around the crop.
    assert model.mean_image.shape == (73, 73, 3)


def test_one_seed_writes_the_same_bytes_twice(photos, tmp_path):
    contents = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        out = tmp_path / name
        arguments = ["--data", str(photos), "--out", str(out), "--epochs", "2"]
        assert main([*arguments, "--seed", str(seed), *SMALL]) == 0
        contents.append((out / "weights.h5").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_simple_kernels_train_with_the_loops_of_the_book(photos, tmp_path, capsys, monkeypatch):
    """Training calls every layer's own `forward`; either tier resumes the other's run."""
    called = set()
    for kind in (Conv2D, ReLU, LocalResponseNorm, MaxPool2D, Linear, Dropout, SoftmaxCrossEntropy):
        method = "compute" if kind is SoftmaxCrossEntropy else "forward"
        original = getattr(kind, method)

        def noted(self, *arguments, original=original, kind=kind, **named):
            if type(self) is kind:
                called.add(kind)
            return original(self, *arguments, **named)

        monkeypatch.setattr(kind, method, noted)
    losses = []
    for kernels in ("simple", "fast"):
        called.clear()
        out = tmp_path / kernels
        arguments = ["--data", str(photos), "--out", str(out), "--epochs", "2", *SMALL]
        assert main([*arguments, "--kernels", kernels]) == 0
        printed = capsys.readouterr().out
        line = [each for each in printed.splitlines() if each.startswith("kernels: simple, every")]
        assert len(line) == (kernels == "simple")
        assert len(called) == (7 if kernels == "simple" else 0)
        rows = (out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["train_loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert json.loads((tmp_path / "simple" / "run.json").read_text())["kernels"] == "simple"
    resume = ["--resume", str(tmp_path / "simple"), "--kernels", "fast", "--epochs", "3"]
    assert main(resume) == 0


def test_simple_kernels_in_bf16_are_refused_in_one_line(photos, tmp_path, capsys):
    arguments = ["--data", str(photos), "--out", str(tmp_path / "run"), *SMALL]
    assert main([*arguments, "--kernels", "simple", "--precision", "bf16"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "use kernels 'fast'" in printed
    assert not (tmp_path / "run").exists()


def stored_precision(path):
    return load_model(path).settings["precision"]


def test_a_run_keeps_its_precision_until_another_is_asked_for(photos, tmp_path, capsys):
    out, data = tmp_path / "run", ["--data", str(photos)]
    begin = [*data, "--out", str(out), "--epochs", "1", "--precision", "bf16", *SMALL]
    assert main(begin) == 0
    assert "\nprecision: bf16, emulated on the host\n" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["precision"] == "bf16"
    assert stored_precision(out / "weights.h5") == "bf16"
    for epochs, given, said in (
        ("2", [], "bf16, emulated on the host"),
        ("3", ["--precision", "fp32"], "fp32"),
        ("4", [], "bf16, emulated on the host"),  # that was for once, like every option given anew
        ("5", ["--precision", "auto"], "fp32"),
    ):
        assert main([*data, "--resume", str(out), "--epochs", epochs, *given]) == 0
        assert f"\nprecision: {said}\n" in capsys.readouterr().out
        assert stored_precision(out / "weights.h5") == said.partition(",")[0]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 5


def test_auto_is_written_down_as_what_it_came_down_to(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["--data", str(photos), "--out", str(out), "--epochs", "1", *SMALL]) == 0
    assert "\nprecision: fp32\n" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["precision"] == "fp32"


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
    "a rate that is no number": (None, ["--lr", "nan"], "lr >= 0"),
    "a negative seed": (None, ["--seed", "-3"], "seed -3"),
    "drops that fall": (None, ["--drops", "3,2"], "--drops must be rising numbers"),
    "drops that are no numbers": (None, ["--drops", "soon"], "--drops must be rising numbers"),
    "no patience": (
        None,
        ["--schedule", "plateau", "--patience", "0"],
        "patience and total must be at least 1",
    ),
    "no time between checkpoints": (None, ["--checkpoint-minutes", "0"], "must be positive"),
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


def test_one_batch_by_heart(photos, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--out", str(out), "--overfit-one-batch", *SMALL]
    assert main([*arguments, "--lr", "0.02"]) == 0
    assert "one batch is memorized after" in capsys.readouterr().out
    assert not out.exists()
    assert main([*arguments, "--lr", "1e-9"]) == 1
    printed = capsys.readouterr().out
    assert "one batch is NOT memorized after 200 steps" in printed and "step   20" in printed


def test_a_prepared_file_trains(tmp_path, capsys):
    rng, rows = np.random.default_rng(0), {"train": 12, "val": 6}
    labels = {split: np.arange(count) % 2 for split, count in rows.items()}
    with StoreWriter(
        tmp_path / "two.h5", size=80, rows=rows, class_ids=["n1", "n2"],
        class_names=["dark", "light"], settings={},
    ) as writer:  # fmt: skip
        for split in rows:
            images = rng.integers(0, 90, (rows[split], 80, 80, 3), np.uint8)
            images[labels[split] == 1] += 160
            writer.write_rows(split, 0, images)
        writer.finish(labels)
    arguments = ["--data", str(tmp_path / "two.h5"), "--epochs", "2", "--device", "cpu"]
    arguments += ["--width", "0.05", "--batch-size", "4", "--recipe", "authors"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "two.h5, 80×80 pixels" in capsys.readouterr().out
    model = load_model(tmp_path / "run")
    assert model.settings["image_size"] == 70 and model.class_ids == ["n1", "n2"]
    assert main([*arguments, "--image-size", "64", "--out", str(tmp_path / "small")]) == 0
    assert "note: crops" not in capsys.readouterr().out  # four fifths of the side
    for options, message in (
        (["--classes", "2"], "--classes is for folders"),
        (["--image-size", "81"], "crops of 81 pixels do not fit"),
    ):
        assert main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err


def test_a_file_that_is_no_prepared_one(tmp_path, capsys):
    (tmp_path / "photos.tar").write_text("a tar, perhaps")
    assert main(["--data", str(tmp_path / "photos.tar"), "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert "photos.tar" in printed and "prepare" in printed and printed.count("\n") == 1


def test_help_and_the_embedded_data_in_a_process_of_its_own(tmp_path):
    """No GPU, no network, no argument but a shorter run: a batch of the drawn data set."""
    run = [sys.executable, "-X", "importtime", str(SCRIPT)]
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and "--recipe" in shown.stdout
    # Nobody waits for what draws the pictures at the end, nor for what others need.
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "numba" in imported and imported.isdisjoint({"matplotlib", "cupy", "mpi4py"})
    wrong = subprocess.run(
        [*run, "--recipe", "caffe"], capture_output=True, text=True, env=environment
    )
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_small_crops_of_a_prepared_file_are_pointed_out(tmp_path, capsys):
    rng = np.random.default_rng(0)
    with StoreWriter(
        tmp_path / "large.h5", size=128, rows={"train": 6, "val": 4}, class_ids=["a", "b"],
        class_names=["a", "b"], settings={},
    ) as writer:  # fmt: skip
        for split, count in (("train", 6), ("val", 4)):
            writer.write_rows(split, 0, rng.integers(0, 255, (count, 128, 128, 3), np.uint8))
        writer.finish({"train": np.arange(6) % 2, "val": np.arange(4) % 2})
    out = tmp_path / "run"
    assert main(["--data", str(tmp_path / "large.h5"), "--out", str(out), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "each epoch leaves out 2 of them, less than a batch of 4\n" in said
    assert "note: crops of 64 pixels show 25% of a photo of 128: prepare with --image-s" in said


def test_photos_that_have_moved_are_named_with_the_option(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["--data", str(photos), "--out", str(out), "--epochs", "1", *SMALL]) == 0
    photos.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["--resume", str(out), "--epochs", "2"]) == 2
    assert f"{photos} does not exist any more: add --data with" in capsys.readouterr().err
    again = ["--resume", str(out), "--epochs", "2", "--data", str(tmp_path / "elsewhere")]
    assert main(again) == 0
    assert "note: the learning rate drops before epoch 2, as this" in capsys.readouterr().out


@pytest.mark.full
def test_output_that_the_terminal_cannot_show_is_escaped(photos, tmp_path):
    """× and class names, in ASCII."""
    for split in ("train", "val"):
        (photos / split / "dark").rename(photos / split / "猫")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(SCRIPT.parents[1])}
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--out", str(out), "--epochs", "1", *SMALL]
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "73\\xd773 pixels" in done.stdout
    evaluate = [sys.executable, str(SCRIPT.with_name("evaluate.py")), str(out), "--per-class"]
    command = [*evaluate, "--data", str(photos), "--views", "centre"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "\\u732b" in done.stdout, done.stderr
