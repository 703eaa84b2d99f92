"""What is written down, and when."""

from argparse import Namespace

import pytest

from tinyconv.run.recorder import Recorder, in_turn
from tinyconv.run.run_folder import RunFolder

SETTINGS = {"class_names": ["a", "b", "c"]}


def recorder_of(training, folder, minutes=10, steps=None, resume=None):
    options = Namespace(
        checkpoint_minutes=minutes, checkpoint_steps=steps, resume=resume, data=None
    )
    return Recorder(folder, training, SETTINGS, options)


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
    recorder.begin()
    recorder.training.run(on_epoch=recorder.on_epoch, on_step=recorder.on_step)


def test_checkpoints_every_so_many_steps_and_after_every_epoch(training, saves, tmp_path, capsys):
    recorder = recorder_of(training, RunFolder(tmp_path / "run"), steps=3)
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
    recorder = recorder_of(training, RunFolder(tmp_path / "run"), minutes=1)
    on_step = recorder.on_step

    def step_of_25_seconds():
        now[0] += 25
        on_step()

    recorder.on_step = step_of_25_seconds
    go(recorder)
    # Due after the third step; the epoch's end starts the minute again.
    assert [step for step, _ in saves] == [0, 3, 4, 7, 8]


def test_resuming_finds_the_history(training, tmp_path, capsys):
    recorder = recorder_of(training, RunFolder(tmp_path / "run"))
    go(recorder)
    capsys.readouterr()
    second = recorder_of(training, recorder.folder, resume="run")
    second.begin()
    assert second.history == recorder.history
    assert capsys.readouterr() == ("resuming after step 8 (epoch 3)\n", "")


def test_a_rank_without_a_folder_writes_and_prints_nothing(training, capsys):
    recorder = recorder_of(training, None)
    go(recorder)
    recorder.finish(True)
    assert capsys.readouterr() == ("", "") and recorder.prints is False


def test_callbacks_are_called_in_turn():
    seen = []
    in_turn(lambda: seen.append(1), lambda: seen.append(2))()
    assert seen == [1, 2]


@pytest.mark.parametrize("options", [{"minutes": 0}, {"steps": 0}, {"minutes": -1}])
def test_nonsense_is_refused(training, tmp_path, options):
    with pytest.raises(ValueError, match="must be positive"):
        recorder_of(training, RunFolder(tmp_path / "run"), **options)
