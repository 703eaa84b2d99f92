"""Evaluation as its users run it: nets, folders and files of photos, mistakes."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from photo_bytes import encoded, noisy_jpeg, put
from PIL import Image
from small import random_photos
from stores import new_store, write_store

from tinyconv import RECIPES, alexnet, evaluate
from tinyconv.data.augment import Augment
from tinyconv.data.folder import read_folder
from tinyconv.data.prepare import prepare
from tinyconv.data.sources import Options
from tinyconv.run.checkpoint import load_model, save_weights

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"


def load():
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()
HOST = ["--device", "cpu"]


def weights(path, seed=0, classes=("dark", "light"), side=73, ids=None):
    """The file of a tiny net, its weights as drawn."""
    recipe = RECIPES["robust"]
    settings = {
        "width": 0.05,
        "image_size": 64,
        "recipe": asdict(recipe),
        "input_divisor": recipe.input_divisor,
        "class_names": list(classes),
        "class_ids": list(ids or classes),
    }
    mean = np.full((side, side, 3), 128, np.float32)
    path.parent.mkdir(exist_ok=True)
    save_weights(path, alexnet(len(classes), 0.05, 64, recipe, seed), mean, settings)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes, light and dark; 3 training photos of each, 2 and 5 for validation."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (3, 3)), ("val", (2, 5))):
        for k in range(max(counts)):
            dark = Image.fromarray(rng.integers(0, 90, (70 + k, 90, 3), np.uint8))
            light = Image.fromarray(rng.integers(160, 255, (80, 75 + k, 3), np.uint8))
            for image, name, count in zip((dark, light), ("dark", "light"), counts, strict=True):
                if k < count:
                    path = tmp_path / "photos" / split / name / f"{k}.png"
                    put(path, encoded(image).getvalue())
    return tmp_path / "photos"


def results(path):
    found = json.loads(Path(path).read_text())["results"]
    return {(each["model"], each["views"]): each for each in found}


def test_one_net_on_a_folder(photos, tmp_path, capsys):
    net = weights(tmp_path / "run" / "weights.h5")
    out = tmp_path / "out.json"
    arguments = [str(tmp_path / "run"), "--data", str(photos), "--json", str(out), *HOST]
    assert script.main(arguments) == 0
    printed = capsys.readouterr()
    assert "7 photos of val, 2 classes" in printed.out and printed.err == ""
    assert "centre crop: top-1" in printed.out and "ten views: top-1" in printed.out
    assert "7 photos in " in printed.out and " images/s" in printed.out
    assert "average" not in printed.out and "paper" not in printed.out
    assert "by class" not in printed.out

    model = load_model(net)
    _, val, _ = read_folder(photos, 73)
    augment = Augment(model.mean_image, 64, model.settings["input_divisor"])
    for views in ("centre", "ten"):
        expected = evaluate(model.net, val, augment, 64, views)
        found = results(out)[str(tmp_path / "run"), views]
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert (found["top1"], found["top5"]) == (expected.top1, expected.top5)
        assert f"{expected.loss:.4f}" in printed.out


@pytest.mark.parametrize("prepared", [False, True])
def test_photos_to_evaluate_with_are_enough(photos, tmp_path, monkeypatch, capsys, prepared):
    net, data = weights(tmp_path / "w.h5"), photos
    (photos / "val").rename(photos / "Test")
    for path in (photos / "train").rglob("*.png"):
        path.write_bytes(b"not read")  # and named, if it were
    if prepared:
        data = tmp_path / "test.h5"
        prepare(photos, data, Options(splits=("val",)), size=73)
    shutil.rmtree(photos / "train")
    assert script.main([net, "--data", str(data), *HOST]) == 0
    printed = capsys.readouterr()
    assert "7 photos of val, 2 classes" in printed.out and printed.err == ""
    assert script.main([net, "--data", str(data), "--split", "train", *HOST]) == 2
    assert re.search("no folder 'train'|the set has no photos", capsys.readouterr().err)


def test_a_share_of_a_folder_of_classes(photos, tmp_path, capsys):
    net = weights(tmp_path / "w.h5")
    assert script.main([net, "--data", str(photos / "val"), *HOST]) == 2
    assert "add --val-share 0.2" in capsys.readouterr().err
    assert script.main([net, "--data", str(photos / "val"), "--val-share", "0.3", *HOST]) == 0
    assert "2 photos of val" in capsys.readouterr().out


def test_the_precision_is_said_and_changes_little(photos, tmp_path, capsys):
    net, losses = weights(tmp_path / "run" / "weights.h5"), {}
    for precision in ("auto", "fp32", "bf16"):
        file = tmp_path / f"{precision}.json"
        options = ["--data", str(photos), "--precision", precision, "--json", str(file), *HOST]
        assert script.main([net, *options]) == 0
        said = json.loads(file.read_text())["precision"]
        assert said == ("fp32" if precision == "auto" else precision)
        emulated = ", emulated on the host" if precision == "bf16" else ""
        assert f"\nprecision: {said}{emulated}\n" in capsys.readouterr().out
        losses[precision] = results(file)[net, "centre"]["loss"]
    assert losses["auto"] == losses["fp32"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_several_nets_answer_alone_and_together(photos, tmp_path, capsys):
    nets = [weights(tmp_path / f"{seed}.h5", seed) for seed in range(3)]
    out = tmp_path / "out.json"
    arguments = [*nets, "--data", str(photos), "--json", str(out), "--paper", *HOST]
    assert script.main([*arguments, "--views", "ten", "--split", "train"]) == 0
    printed = capsys.readouterr().out
    assert "6 photos of train" in printed and "average of 3" in printed
    assert "paper: 5 CNNs, ILSVRC-2012" in printed and "61.9%" in printed
    found = results(out)
    assert list(found) == [(net, "ten") for net in nets] + [(None, "ten")]
    losses = [each["loss"] for each in found.values()]
    # Averaging probabilities is never worse than the mean of the losses: −log is convex.
    assert losses[3] <= np.mean(losses[:3]) and len(set(losses)) == 4


def test_nets_of_different_sizes_read_the_folder_in_their_own(photos, tmp_path, capsys):
    nets = [weights(tmp_path / "a.h5", 1, side=73), weights(tmp_path / "b.h5", 2, side=80)]
    assert script.main([*nets, "--data", str(photos), "--views", "centre", *HOST]) == 0
    assert "average of 2" in capsys.readouterr().out


def test_the_table_of_classes(photos, tmp_path, capsys):
    net = weights(tmp_path / "w.h5")
    out = tmp_path / "out.json"
    arguments = [net, "--data", str(photos), "--per-class", "--json", str(out), *HOST]
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"by class: {net}, ten views" in printed
    classes = json.loads(out.read_text())["classes"]
    assert sorted((each["name"], each["photos"]) for each in classes) == [("dark", 2), ("light", 5)]
    assert classes[0]["top1"] <= classes[1]["top1"] and classes[0]["top5"] == 1
    order = [printed.index(f"\n{each['name']} ") for each in classes]
    assert order == sorted(order)


def test_a_store_of_photos(tmp_path, capsys):
    """Its classes have ids; a net trained on it knows them by these."""
    sets = {"train": random_photos(9, size=73), "val": random_photos(5, size=73, seed=1)}
    store = write_store(tmp_path / "store.h5", sets)
    ids = [f"n{i:08}" for i in range(3)]
    net = weights(tmp_path / "w.h5", 0, sets["val"].class_names, ids=ids)
    arguments = ["--data", str(store), *HOST]
    assert script.main([net, *arguments]) == 0
    assert "5 photos of val, 3 classes" in capsys.readouterr().out

    assert script.main([weights(tmp_path / "o.h5", 0, sets["val"].class_names), *arguments]) == 2
    assert "class 0 is 'class0' in " in error_of(capsys)
    other = weights(tmp_path / "s.h5", 0, sets["val"].class_names, 80, ids)
    assert script.main([other, *arguments]) == 2
    assert "has squares of 73 pixels, but" in (error := error_of(capsys))
    assert "was trained on 80" in error


def error_of(capsys):
    """The one line of a mistake."""
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: error: ") and error.count("\n") == 1, error
    return error


# --- single photos


def test_the_likeliest_classes_of_photos(photos, tmp_path, capsys):
    net = weights(tmp_path / "w.h5", 0, [f"c{i}" for i in range(7)])
    shots = [str(photos / "val" / "dark" / "0.png"), str(photos / "val" / "light" / "0.png")]
    for views in ([], ["--views", "centre"]):
        assert script.main([net, "--predict", *shots, "--json", "-", *views, *HOST]) == 0
        found = json.loads(capsys.readouterr().out)["predictions"]
        assert [each["photo"] for each in found] == shots
        for each in found:
            chances = [one["probability"] for one in each["classes"]]
            assert len(chances) == 5 and chances == sorted(chances, reverse=True)
            assert 0 < sum(chances) <= 1
    assert script.main([net, "--predict", shots[0], *HOST]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-6] == repr(shots[0]) and lines[-5].split()[0].endswith("%")


def test_unreadable_photos_are_named_the_others_done_and_the_status_is_2(photos, tmp_path, capsys):
    net = weights(tmp_path / "w.h5")
    bad = [put(tmp_path / "text.jpg", b"hello"), put(tmp_path / "cut.jpg", noisy_jpeg()[:2000])]
    good = photos / "val" / "dark" / "0.png"
    shots = [str(each) for each in (bad[0], good, bad[1], tmp_path / "absent.jpg", tmp_path)]
    assert script.main([net, "--predict", *shots, *HOST]) == 2
    printed = capsys.readouterr()
    assert repr(str(good)) in printed.out
    assert [line.split("'")[1] for line in printed.err.splitlines()] == [
        *(str(each) for each in bad),
        str(tmp_path / "absent.jpg"),
        str(tmp_path),
    ]
    assert script.main([net, "--predict", *shots, "--json", "-", *HOST]) == 2
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [("error" in each) for each in found] == [True, False, True, True, True]


# --- mistakes


def test_a_damaged_photo_in_the_folder_is_named_and_left_out(photos, tmp_path, capsys):
    put(photos / "val" / "dark" / "notes.jpg", b"this is text")
    assert script.main([weights(tmp_path / "w.h5"), "--data", str(photos), *HOST]) == 0
    printed = capsys.readouterr()
    assert "notes.jpg" in printed.err and "7 photos of val" in printed.out


def spoiled(tmp_path):
    path = tmp_path / "spoiled.h5"
    path.write_bytes(Path(weights(path)).read_bytes()[:-9])
    return path


def unfinished(tmp_path):
    sets = {"train": random_photos(3, size=73), "val": random_photos(3, size=73)}
    with new_store(tmp_path / "unfinished.h5", sets):
        return tmp_path / "unfinished.h5"


MISTAKES = {
    "no such net": (lambda t: ["absent", "--data", "photos"], "absent: cannot be read"),
    "a folder without weights": (lambda t: [t, "--data", "photos"], "neither best.h5 nor"),
    "a damaged net": (lambda t: [spoiled(t), "--data", "photos"], "is damaged"),
    "no such data": (lambda t: [weights(t / "w.h5"), "--data", "absent"], "no such folder"),
    "data without val": (lambda t: [weights(t / "w.h5"), "--data", "photos/val"], "no train/"),
    "a net for data": (
        lambda t: [weights(t / "w.h5"), "--data", t / "w.h5"],
        "w.h5",
    ),
    "an unfinished store": (
        lambda t: [weights(t / "w.h5"), "--data", unfinished(t)],
        "not complete",
    ),
    "nets of other classes": (
        lambda t: [weights(t / "w.h5"), weights(t / "o.h5", classes="ab"), "--data", "photos"],
        "class 0 is 'dark' in ",
    ),
    "data of other classes": (
        lambda t: [weights(t / "w.h5", classes=["dark", "night"]), "--data", "photos"],
        "class 1 is 'night' in ",
    ),
    "data of fewer classes": (
        lambda t: [weights(t / "w.h5", classes=["dark", "light", "red"]), "--data", "photos"],
        "has 3 classes and photos has 2",
    ),
    "no batch": (
        lambda t: [weights(t / "w.h5"), "--data", "photos", "--batch-size", "0"],
        "batch_size must be at least 1",
    ),
    "no folder for the JSON": (
        lambda t: [weights(t / "w.h5"), "--data", "photos", "--json", t / "no" / "x.json"],
        "there is no such folder",
    ),
    "a device that makes no sense": (
        lambda t: [weights(t / "w.h5"), "--data", "photos", "--device", "gpu"],
        "device 'gpu'",
    ),
    "a GPU that is not there": (
        lambda t: [weights(t / "w.h5"), "--data", "photos", "--device", "cuda:7"],
        "cuda:7",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line_and_status_2(name, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[name]
    given = [str(each) for each in arguments(tmp_path)]
    assert script.main([*(HOST if "--device" not in given else []), *given]) == 2
    assert message in error_of(capsys)


def test_nothing_to_look_at_is_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        script.main([weights(tmp_path / "w.h5")])
    assert caught.value.code == 2
    assert "give --data PATH or --predict PHOTO" in capsys.readouterr().err


def test_ctrl_c_is_one_line(photos, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "evaluate_members", interrupted)
    assert script.main([weights(tmp_path / "w.h5"), "--data", str(photos), *HOST]) == 130
    assert capsys.readouterr().err == "evaluate.py: interrupted\n"


def test_in_a_process_of_its_own_with_a_reader_that_has_had_enough(photos, tmp_path):
    net = weights(tmp_path / "w.h5")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1])
    run = [sys.executable, str(SCRIPT), net, "--predict", str(photos / "val" / "dark" / "0.png")]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            run, stdout=closed, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 1 and done.stderr == ""
