"""The folder of a run, and the pictures in it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from layers import Linear
from tinyconv import Sequential, alexnet
from tinyconv.run_folder import RunFolder
from tinyconv.train import Epoch

EPOCH = Epoch(1, 0.01, 2.0, 0.2, 1.9, 0.25, 0.8, 100.0, 3.0, 2.3)
MEAN = np.zeros((64, 64, 3), np.float32)


def test_without_a_name_the_next_free_number_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [RunFolder().path.as_posix() for _ in range(2)] == ["runs/001", "runs/002"]
    (tmp_path / "runs" / "001").rename(tmp_path / "runs" / "kept")
    assert RunFolder().path.as_posix() == "runs/001"


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="is not empty; name another folder"):
        RunFolder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_fails_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        RunFolder(tmp_path / "file" / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        RunFolder()


def test_a_run_leaves_weights_metrics_curves_and_filters(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    history = [EPOCH, replace(EPOCH, epoch=2, train_loss=1.5)]
    for epoch in history:
        folder.add(epoch)
    folder.finish(alexnet(3, 0.05, 64), MEAN, {"x": 1}, history)
    names = sorted(p.name for p in folder.path.iterdir())
    assert names == ["conv1_filters.png", "curves.png", "metrics.jsonl", "weights.h5"]
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines == [epoch.as_dict() for epoch in history]
    for name in ("conv1_filters.png", "curves.png"):
        with Image.open(folder.path / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert picture.format == "PNG" and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_run_that_was_stopped_before_its_first_epoch_has_no_curves(tmp_path):
    folder = RunFolder(tmp_path / "run")
    layer = Linear(2, 2)
    folder.finish(Sequential({"fc": layer}), MEAN, {}, [])
    assert sorted(p.name for p in folder.path.iterdir()) == ["metrics.jsonl", "weights.h5"]
