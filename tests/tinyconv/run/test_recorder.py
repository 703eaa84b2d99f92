"""What is written down, and when."""

import pytest
from small import random_photos

from tinyconv import alexnet
from tinyconv.data.augment import Augment
from tinyconv.run.recorder import Recorder
from tinyconv.run.run_folder import RunFolder
from tinyconv.train import Training

SETTINGS = {"class_names": ["a", "b", "c"]}


@pytest.fixture
def training():
    photos = random_photos(32)
    net = alexnet(3, 0.05, 64, "robust", 1)
    augment = Augment(photos.mean_image(), 64, 64.0)
    return Training(net, photos, photos, augment, epochs=2, batch_size=8)


@pytest.fixture
def saves(monkeypatch):
    """(step, best) of each checkpoint that is written."""
    seen, save = [], RunFolder.save

    def spy(folder, training, settings, best=False):
        seen.append((training.progress.step, best))
        save(folder, training, settings, best)

    monkeypatch.setattr(RunFolder, "save", spy)
    return seen


def go(recorder):
    recorder.start()
    recorder.training.run(on_epoch=recorder.on_epoch, on_step=recorder.on_step, progress=False)


def test_checkpoints_every_so_many_steps_and_after_every_epoch(training, saves, tmp_path, capsys):
    recorder = Recorder(RunFolder(tmp_path / "run"), training, SETTINGS, steps=3)
    go(recorder)
    assert [step for step, _ in saves] == [0, 3, 4, 6, 8]
    assert saves[2] == (4, True) and not saves[1][1]
    assert [epoch.epoch for epoch in recorder.history] == [1, 2]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("first loss") and printed[1].startswith("epoch   1")
    assert "waiting for data" in printed[1] and printed[2].startswith("epoch   2")


def test_checkpoints_by_the_clock(training, saves, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tinyconv.run.recorder.time.monotonic", lambda: now[0])
    recorder = Recorder(RunFolder(tmp_path / "run"), training, SETTINGS, minutes=1)
    on_step = recorder.on_step

    def step_of_25_seconds():
        now[0] += 25
        on_step()

    recorder.on_step = step_of_25_seconds
    go(recorder)
    # Due after the third step; the epoch's end starts the minute again.
    assert [step for step, _ in saves] == [0, 3, 4, 7, 8]


def test_resuming_finds_the_history(training, tmp_path):
    recorder = Recorder(RunFolder(tmp_path / "run"), training, SETTINGS)
    go(recorder)
    second = Recorder(recorder.folder, training, SETTINGS)
    assert second.resume() == [] and second.history == recorder.history


@pytest.mark.parametrize("options", [{"minutes": 0}, {"steps": 0}, {"minutes": -1}])
def test_nonsense_is_refused(training, tmp_path, options):
    with pytest.raises(ValueError, match="must be positive"):
        Recorder(RunFolder(tmp_path / "run"), training, SETTINGS, **options)
