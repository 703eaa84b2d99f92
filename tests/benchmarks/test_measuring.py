"""benchmarks/measuring.py: turns, seconds, tables."""

import measuring
import pytest


def test_contestants_alternate():
    calls = []
    runs = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert measuring.in_turns(runs, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert calls == ["a", "b"] * 3


def test_seconds_are_those_of_the_call(monkeypatch):
    readings = iter([1.0, 1.5])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(readings))
    assert measuring.seconds(lambda: None) == 0.5


def test_a_table_aligns_numbers_to_the_right():
    rows = ([name, number] for name, number in (("a", "1"), ("", "2")))
    assert measuring.table(["what", "ms"], rows) == "| what | ms |\n|---|---:|\n| a | 1 |\n|  | 2 |"
    assert measuring.table(["x", "y", "z"], [], text=2).splitlines()[1] == "|---|---|---:|"
    with pytest.raises(ValueError, match=r"\['a'\] has 1 cells for 2 columns"):
        measuring.table(["what", "ms"], [["a"]])
