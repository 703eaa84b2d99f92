"""The experiments of the paper in their quick form: tables, pictures, and the same after a kill."""

import importlib
import json
from pathlib import Path

import pytest

from tinyconv import SGD
from tinyconv.run import experiment
from tinyconv.run.checkpoint import load_model

QUICK = {
    "cifar10_lrn": (["without LRN", "with LRN", "gain, in points"], "errors.png"),
    "figure1_relu_tanh": (["ReLU", "Tanh", "tanh / ReLU"], "figure1.png"),
    "figure3_columns": (["0"], "conv1-seed-0.png"),
    "figure4_predictions": (["bricks"], "figure4.png"),
    "ensemble": (["1 CNN (mean)", "2 CNNs", "1 CNN*, half the classes"], "ensemble.png"),
    "ablations": (["the whole net", "without LRN", "without conv3", "half the filters"],
                  "ablations.png"),
}  # fmt: skip
"""Of each experiment rows of its tables, by their first cell, and its picture."""


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))


def rows_of(report):
    """The cells of all table rows, by the first one."""
    lines = [line[2:-2].split(" | ") for line in report.splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines}


def main(name, *arguments):
    return importlib.import_module(name).main([str(each) for each in arguments])


@pytest.mark.full
@pytest.mark.parametrize("name", QUICK)
def test_quick_writes_its_table_and_picture(name, tmp_path, capsys):
    rows, picture = QUICK[name]
    assert main(name, "--quick", "--out", tmp_path / "out") == 0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report in capsys.readouterr().out
    assert set(rows) <= set(rows_of(report))
    header = next(line for line in report.splitlines() if line.startswith("| "))
    assert name == "figure4_predictions" or "here" in report
    assert header.count("paper") <= 1
    assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
def test_killed_and_resumed_it_gives_the_same_table(tmp_path, monkeypatch, capsys):
    quick = "cifar10_lrn", "--quick", "--out"
    assert main(*quick, tmp_path / "whole") == 0
    whole = (tmp_path / "whole" / "report.md").read_text()
    step, calls = SGD.step, [0]

    def dies(self, loss=0.0):
        calls[0] += 1
        if calls[0] in (2, 7):  # before the first epoch has ended, and in the other net's last
            raise KeyboardInterrupt
        step(self, loss)

    monkeypatch.setattr(SGD, "step", dies)
    assert [main(*quick, tmp_path / "killed") for _ in range(3)] == [130, 130, 0]
    assert (tmp_path / "killed" / "report.md").read_text() == whole
    weights = [(tmp_path / each / "11pct-0" / "weights.h5").read_bytes() for each in
               ("whole", "killed")]  # fmt: skip
    assert weights[0] == weights[1]
    calls[0] = 100
    assert main(*quick, tmp_path / "killed") == 0  # everything is read
    assert calls[0] == 100
    capsys.readouterr()
    assert main(*quick, tmp_path / "killed", "--report") == 0
    assert rows_of(capsys.readouterr().out) == rows_of(whole)
    (tmp_path / "killed" / "11pct-0-ten-views.json").unlink()  # as if that net were still training
    assert main(*quick, tmp_path / "killed", "--report") == 0
    partial = rows_of(capsys.readouterr().out)
    assert partial["with LRN"][4:] == ["not yet", "11"] and "gain, in points" not in partial
    assert partial["without LRN"] == rows_of(whole)["without LRN"]
    assert main(*quick, tmp_path / "killed", "--epochs", "7") == 2
    assert "was begun with --epochs 100, not 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs and --seeds must be at least 1, not 0 and 1"),
        (["--data", "nowhere"], "no such folder: 'nowhere'"),
        (["--images", "0"], "--images must be at least 1, not 0"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("cifar10_lrn", "--out", "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("cifar10_lrn.py: error: ") and error.count("\n") == 1
    assert message in error


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert main("cifar10_lrn", "--quick", "--out", tmp_path) == 2
    assert "is not empty and no experiment's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_papers_figures_have_columns_of_their_own():
    made = experiment.table(["net", "here", "in the paper"], [["a", 1, 2]])
    assert made == "| net | here | in the paper |\n| --- | --- | --- |\n| a | 1 | 2 |"
    assert experiment.mean_and_spread([0.1, 0.2]) == "15.00 ± 7.07"
    assert experiment.mean_and_spread([0.125]) == "12.50"


@pytest.mark.full
def test_the_trainer_trains_and_loads_a_net_for_small_images(tmp_path):
    out = tmp_path / "run"
    options = "--model", "cifar10-18pct-like", "--epochs", "1", "--lr", "0.001", "--device", "cpu"
    assert main("train_alexnet", *options, "--out", out) == 0
    assert json.loads((out / "run.json").read_text())["image_size"] == 24
    model = load_model(out)
    assert model.settings["recipe"]["name"] == "cifar10"
    assert [layer.name for layer in model.net if layer.name.startswith("conv")] == [
        *("conv1", "conv2", "conv3"),
    ]
