"""benchmarks/host_step.py: its tables, and a whole run of it on a tiny net."""

import importlib.util
import re

import host_step
import pytest

from tinyconv import alexnet

TINY = ["--width", "0.02", "--image-size", "64", "--classes", "3", "--batch-size", "2"]
SHORT = ["--steps", "1", "--rounds", "1", "--threads", "1"]
WITH_TORCH = importlib.util.find_spec("torch") is not None
SECONDS = {
    "tinyconv": {"step": [0.2, 0.1, 0.4], "fc8 forward": [0.002], "flatten forward": [1e-6]},
    "PyTorch": {"step": [0.3, 0.5, 0.3], "fc8 forward": [0.004], "flatten forward": [1e-5]},
    "PyTorch, channels_last": {"step": [0.6], "fc8 forward": [0.003], "flatten forward": [1e-5]},
}


def test_steps_are_compared_by_their_medians():
    assert list(host_step.step_table(SECONDS, 64))[2:] == [
        "| tinyconv | 200.0 | 100.0 to 400.0 | 320.0 | 1.00 |",
        "| PyTorch | 300.0 | 300.0 to 500.0 | 213.3 | 1.50 |",
        "| PyTorch, channels_last | 600.0 | 600.0 to 600.0 | 106.7 | 3.00 |",
    ]


def test_each_part_is_compared_with_the_faster_of_pytorchs():
    header, rule, *rows = host_step.part_table(SECONDS)
    assert header == "| ms | tinyconv | PyTorch | PyTorch, channels_last | theirs / ours |"
    assert rule.count("---") == 5
    assert rows == [
        "| fc8 forward | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) | 3.00 (3.00 to 3.00) | 1.50 |"
    ]


def test_alone_there_is_no_ratio():
    header, rule, row = host_step.part_table({"tinyconv": SECONDS["tinyconv"]})
    assert (header, rule) == ("| ms | tinyconv |", "|---|---:|")
    assert row == "| fc8 forward | 2.00 (2.00 to 2.00) |"


def test_a_quarter_of_the_times_is_below_the_spread_and_a_quarter_above():
    assert host_step.quartiles([9.0, 1.0, 2.0, 3.0, 4.0]) == [2.0, 3.0, 4.0]
    assert host_step.quartiles([7.0]) == [7.0, 7.0, 7.0]


def test_the_last_lines_name_who_is_behind_and_by_how_much():
    ours = {
        "step": [9.0],
        "flatten forward": [9.0],
        "conv1+relu1 forward": [9.0],
        "ahead": [1.0, 2.0, 3.0],
        "level": [3.0, 3.0, 3.0],
        "halves touch": [4.0, 5.0, 9.0],
        "apart": [5.0, 6.0, 7.0],
        "behind the faster one only": [5.0, 6.0, 7.0],
    }
    theirs = dict.fromkeys(ours, [2.0, 3.0, 7.0])
    slower = dict.fromkeys(ours, [8.0, 8.0, 8.0])
    seconds = {"tinyconv": ours, "PyTorch": slower, "PyTorch, channels_last": theirs}
    assert list(host_step.verdict(seconds)) == [
        "Of 5 rows without a convolution, behind PyTorch",
        "by more than the spread: 2; apart; behind the faster one only",
        "within the spread: 1; halves touch",
    ]
    theirs["apart"] = theirs["behind the faster one only"] = [9.0]
    assert list(host_step.verdict(seconds))[1:] == [
        "by more than the spread: 0",
        "within the spread: 1; halves touch",
    ]


def test_both_passes_of_a_layer_are_added_up_step_by_step():
    times = {
        **{"step": [20.0, 30.0], "norm1 forward": [1.0, 2.0], "flatten forward": [7.0, 7.0]},
        **{"norm1 backward": [10.0, 30.0], "flatten backward": [7.0, 7.0], "sgd": [5.0, 5.0]},
    }
    slower = {what: [2 * took for took in each] for what, each in times.items()}
    seconds = host_step.both_ways({"tinyconv": slower, "PyTorch": times})
    assert seconds["PyTorch"]["norm1"] == [11.0, 32.0]
    assert list(host_step.verdict(seconds, "layers")) == [
        "Of 1 layers without a convolution, behind PyTorch",
        "by more than the spread: 1; norm1",
        "within the spread: 0",
    ]


def expected_rows():
    net = alexnet(3, 0.02, 64, "robust")
    names = [step.name for step in net.steps if step.name != "flatten"]
    forward = [f"{name} forward" for name in names]
    backward = [f"{name} backward" for name in reversed(names)]
    return [*forward, "loss forward", "loss backward", *backward, "sgd"]


@pytest.mark.parametrize(
    "with_torch",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not WITH_TORCH, reason="PyTorch is not installed")
        ),
    ],
)
def test_a_run_prints_every_part_of_a_step(with_torch, monkeypatch, capfd):
    if not with_torch:
        monkeypatch.setattr(host_step.importlib.util, "find_spec", lambda name: None)
    assert host_step.main([*TINY, *SHORT]) == 0
    printed = capfd.readouterr()
    assert ("PyTorch is not installed" in printed.err) == (not with_torch)
    contestants = host_step.CONTESTANTS if with_torch else ("tinyconv",)
    rows = [re.split(r" *\| *", line)[1:-1] for line in printed.out.splitlines() if "|" in line]
    for name in contestants:
        assert sum(row[0] == name for row in rows) == 1
    parts = [row for row in rows if row[0] in expected_rows()]
    assert [row[0] for row in parts] == expected_rows()
    width = 1 + len(contestants) + with_torch
    assert all(len(row) == width for row in parts)
    assert all(float(row[1].split()[0].replace(",", "")) >= 0 for row in parts)
    assert ("by more than the spread" in printed.out) == with_torch


def test_the_book_can_be_timed_in_turn(monkeypatch, capfd):
    monkeypatch.setattr(host_step.importlib.util, "find_spec", lambda name: None)
    assert host_step.main([*TINY, *SHORT, "--simple"]) == 0
    lines = capfd.readouterr().out.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if "|" in line]
    assert rows.count("tinyconv") == rows.count("tinyconv, simple") == 1
    assert not any(row.startswith("relu") for row in rows)  # the parts are those of the fast tier


def test_a_worker_that_breaks_ends_the_run_with_a_line(monkeypatch, capfd):
    monkeypatch.setattr(host_step.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="the process of tinyconv ended early"):
        host_step.main([*TINY, *SHORT, "--image-size", "20"])
    assert "image_size must be at least 64" in capfd.readouterr().err


def test_a_stopwatch_keeps_the_last_time_of_each_name(monkeypatch):
    readings = iter([1.0, 1.5, 3.0, 5.0])
    monkeypatch.setattr(host_step.time, "perf_counter", lambda: next(readings))
    watch = host_step.Stopwatch()
    assert watch.timed("a", max, 2, 3) == 3 and watch.seconds == {"a": 0.5}
    watch.timed("a", max, 2, 3)
    assert watch.seconds == {"a": 2.0}
