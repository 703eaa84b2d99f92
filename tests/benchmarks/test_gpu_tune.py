"""benchmarks/gpu_tune.py: both tiles are timed, and the faster one gets into the table."""

import json

import gpu_report
import gpu_runner
import gpu_tune
import pytest
from gpu_runner import Budget, HostClock, Result
from mini_net import mini_net

from layers.fast.conv import tile_table

KEY = "bf16 forward 2x5x4x8 3x2x2x8 stride 1 before 0 groups 1"


def found(what, **seconds):
    return [Result("tiles", what, tile, times) for tile, times in seconds.items()]


RESULTS = [
    *found("a", large=[3.0, 1.0, 2.0], small=[2.5]),
    *found("a", large=[9.0], small=[1.5, 1.5]),
    *found("b", large=[1.0], small=[1.0]),
    *found("c", large=[1.0]),
    Result("tiles", "c", "small", why="failed: ValueError: other bits"),
]


def test_the_best_of_the_medians_decides_and_the_large_tile_if_they_are_equal():
    best = gpu_tune.best_medians(RESULTS)
    assert best == {"a": {"large": 2.0, "small": 1.5}, "b": {"large": 1.0, "small": 1.0}}
    assert [gpu_tune.faster(tiles) for tiles in best.values()] == ["small", "large"]
    assert gpu_tune.tuned_table(RESULTS).splitlines()[2:] == [
        "| a | small | 2,000.0000 | 1,500.0000 |",
        "| b | large | 1,000.0000 | 1,000.0000 |",
        "| c | failed: ValueError: other bits |  |  |",
    ]


def test_what_was_found_joins_what_was_known(tmp_path):
    path = tmp_path / "tiles.json"
    known = {"sm_80": {"a": "large"}, "sm_90": {"a": "large", "z": "small"}}
    path.write_text(json.dumps(known))
    text = gpu_tune.with_tiles(RESULTS, "sm_90", path)
    expected = {"sm_80": {"a": "large"}, "sm_90": {"a": "small", "b": "large", "z": "small"}}
    assert json.loads(text) == expected
    path.write_text(text)
    assert tile_table.read(path) == expected
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no table of tiles"):
        gpu_tune.with_tiles(RESULTS, "sm_90", path)


@pytest.mark.parametrize("arguments", [["--autotune"], ["--autotune", "--rehearse"]])
def test_the_host_has_no_tiles(arguments, capsys):
    assert gpu_report.main([*arguments, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("gpu_report.py: error: the host") and printed.err.count("\n") == 1
    assert printed.out == ""


# --- in the simulator


@pytest.fixture
def bench(cuda_device, monkeypatch):
    monkeypatch.setattr(gpu_report, "tiny_net", mini_net)
    return gpu_report.bench_on(cuda_device, tiny=True, seed=8)


def test_both_tiles_take_turns_for_every_product_of_a_step(bench):
    cases = list(gpu_tune.tile_cases(bench, (2, 3)))
    keys = list(dict.fromkeys(case.what for case in cases))
    assert KEY in keys and len(keys) == 2 * 2 * 2  # no dL/dx of the first layer
    of_one = [case.who for case in cases if case.what == KEY]
    assert of_one == ["large", "small"] * gpu_tune.ROUNDS


def test_a_rehearsal_times_and_writes_nothing(bench, monkeypatch, capsys):
    monkeypatch.setattr(gpu_tune, "PRECISIONS", ("bf16",))
    before = tile_table.PATH.read_text()
    assert gpu_report.main(["--rehearse", "--autotune", "--seed", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 2 and rows[2].startswith(f"| {KEY} | ")
    assert tile_table.PATH.read_text() == before


def test_on_a_gpu_the_table_is_written(bench, monkeypatch, tmp_path, capsys):
    class Gpu:
        is_cuda, is_simulated = True, False

    monkeypatch.setattr(gpu_tune, "capability", lambda device: (9, 0))
    path = tmp_path / "tiles.json"
    path.write_text("{}")
    monkeypatch.setattr(gpu_report, "PATH", path)
    monkeypatch.setattr(gpu_report, "run_cases", lambda *_: RESULTS)
    assert gpu_report.autotune([], HostClock(), Budget(1), Gpu()) == 1  # c has failed
    assert json.loads(path.read_text()) == {"sm_90": {"a": "small", "b": "large"}}
    assert str(path) in capsys.readouterr().err


def test_tiles_that_disagree_are_not_timed(bench, monkeypatch):
    forward = gpu_tune.tensor_forward

    def wrong(*arguments, tile, **options):
        forward(*arguments, tile=tile, **options)
        arguments[3][0, 0, 0, 0] += tile == "small"

    monkeypatch.setattr(gpu_tune, "tensor_forward", wrong)
    case = next(case for case in gpu_tune.tile_cases(bench, (2,)) if case.what == KEY)
    result = gpu_runner.run_case(case, HostClock(), 60.0)
    assert result.why == "failed: ValueError: the two tiles give different bits"
