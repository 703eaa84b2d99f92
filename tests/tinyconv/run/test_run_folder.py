"""The folder of a run, and the pictures in it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from small import new_training, random_photos

from layers import Linear
from tinyconv import Sequential, alexnet
from tinyconv.data.augment import Augment
from tinyconv.run.checkpoint import KIND, CheckpointError
from tinyconv.run.run_folder import RunFolder
from tinyconv.run.sealed import open_sealed, read_json
from tinyconv.train import Epoch

EPOCH = Epoch(1, 0.01, 2.0, 0.2, 1.9, 0.25, 0.8, 100.0, 3.0, 0.01, 2.3, True)
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


def test_a_run_leaves_weights_metrics_curves_and_filters(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    history = [EPOCH, replace(EPOCH, epoch=2, train_loss=1.5)]
    for epoch in history:
        folder.add(epoch)
    folder.finish(alexnet(3, 0.05, 64), MEAN, {"x": 1}, history)
    names = sorted(p.name for p in folder.path.iterdir())
    assert names == ["conv1_filters.png", "curves.png", "metrics.jsonl", "weights.h5"]
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines == [asdict(epoch) for epoch in history]
    for name in ("conv1_filters.png", "curves.png"):
        with Image.open(folder.path / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert picture.format == "PNG" and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_run_that_was_stopped_before_its_first_epoch_has_no_curves(tmp_path):
    folder = RunFolder(tmp_path / "run")
    layer = Linear(2, 2)
    folder.finish(Sequential({"fc": layer}), MEAN, {}, [])
    assert [p.name for p in folder.path.iterdir()] == ["weights.h5"]


# --- checkpoints


def small_training(seed=1):
    photos = random_photos(9)
    net = alexnet(3, 0.05, 64, "robust", seed)
    return new_training(net, photos, photos, Augment(photos.mean_image(), 64, 64.0), epochs=2)


def names(folder):
    return sorted(p.name for p in folder.path.iterdir())


@pytest.mark.parametrize("best_epoch, batch", [(3, 0), (2, 0), (3, 1), (0, 0)])
def test_a_kill_between_a_checkpoint_and_best_h5_loses_neither(tmp_path, best_epoch, batch):
    folder, training = RunFolder(tmp_path / "run"), small_training()
    now = training.progress
    now.epoch, now.step, now.batch, now.best_epoch = 4 if best_epoch else 1, 12, batch, best_epoch
    folder.save(training, {})  # and killed before the best one was kept
    folder.restore(training, {})
    newest = folder.path / "checkpoint-000000012.h5"
    if (best_epoch, batch) == (3, 0):
        assert (folder.path / "best.h5").read_bytes() == newest.read_bytes()
    assert names(folder) == ["best.h5", newest.name][(best_epoch, batch) != (3, 0) :]


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path):
    folder, training = RunFolder(tmp_path / "run"), small_training()
    for step in (5, 90, 100, 1000):
        training.progress.step = step
        folder.save(training, {}, best=step == 90)
    kept = ["best.h5", "checkpoint-000000100.h5", "checkpoint-000001000.h5"]
    assert names(folder) == kept
    progress = [read_json(open_sealed(folder.path / n, KIND), "progress")["step"] for n in kept]
    assert progress == [90, 100, 1000]


def test_where_there_are_no_hard_links_the_best_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("tinyconv.run.run_folder.os.link", refuse)
    folder = RunFolder(tmp_path / "run")
    folder.save(small_training(), {}, best=True)
    first, second = (folder.path / n for n in names(folder))
    assert first.read_bytes() == second.read_bytes()


def test_the_newest_readable_checkpoint_is_restored(tmp_path):
    folder, training = RunFolder(tmp_path / "run"), small_training()
    for step in (1, 2):
        training.progress.step = step
        folder.save(training, {"a": 1})
    target = small_training(seed=2)
    assert folder.restore(target, {"a": 1}) == [] and target.progress.step == 2
    newest = folder.checkpoints()[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    (passed_over,) = folder.restore(target, {"a": 1})
    assert target.progress.step == 1 and "checkpoint-000000002.h5: is damaged" in passed_over
    with pytest.raises(CheckpointError, match="a: the checkpoint has 1, this run has 2"):
        folder.restore(target, {"a": 2})


def test_without_a_checkpoint_the_run_begins_again_and_with_none_readable_it_does_not(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.restore(small_training(), {}) == []
    (folder.path / "checkpoint-000000007.h5").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint can be read: .*000000007"):
        folder.restore(small_training(), {})


def test_epochs_after_the_checkpoint_and_torn_lines_are_taken_out_of_the_metrics(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.history(before=3) == []
    for number in (1, 2, 3):
        folder.add(replace(EPOCH, epoch=number))
    with folder.metrics.open("a") as file:
        file.write('{"epoch": 4, "lr"')
    assert [epoch.epoch for epoch in folder.history(before=9)] == [1, 2, 3]
    assert [epoch.epoch for epoch in folder.history(before=3)] == [1, 2]
    assert len(folder.metrics.read_text().splitlines()) == 2


def test_what_a_killed_process_left_behind_is_removed_on_reopening(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_options({"lr": 0.5})
        (folder.path / ".checkpoint-000000007.h5.part").write_text("half")
    with RunFolder.reopen(tmp_path / "run") as again:
        assert names(again) == ["run.json"] and again.read_options() == {"lr": 0.5}


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    pytest.importorskip("fcntl", reason="the system has no locks of this kind")
    with RunFolder(tmp_path / "run") as folder:
        folder.write_options({})
        with pytest.raises(BlockingIOError, match="another process is training into"):
            RunFolder.reopen(tmp_path / "run")
    RunFolder.reopen(tmp_path / "run").__exit__()


def test_an_empty_folder_is_taken_away_again(tmp_path):
    with RunFolder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_damaged_options_are_an_error(tmp_path, text):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_options({})
        (folder.path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run.json is damaged: start again"):
            folder.read_options()


@pytest.mark.parametrize(
    "out, said", [(None, r"runs/001 \({}\): name a folder with --out"), ("runs/a", "{}")]
)
@pytest.mark.parametrize("reason", ["Not a directory", "Permission denied"])
def test_a_place_that_cannot_be_written_is_refused_with_advice(
    out, said, reason, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise PermissionError(13, reason)

    monkeypatch.chdir(tmp_path)
    if reason == "Permission denied":
        monkeypatch.setattr("tinyconv.run.run_folder.Path.mkdir", refuse)
    else:
        (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=said.format(reason)):
        RunFolder(out)
