"""benchmarks/host_step.py: its tables, and a whole run of it on a tiny net."""

import importlib.util
import re
from types import SimpleNamespace

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
    "PyTorch, compiled": {"step": [0.25]},
}


def test_steps_are_compared_by_their_medians():
    assert host_step.step_table(SECONDS, 64).splitlines()[2:] == [
        "| tinyconv | 200.0 | 100.0 to 400.0 | 320.0 | 1.00 |",
        "| PyTorch | 300.0 | 300.0 to 500.0 | 213.3 | 1.50 |",
        "| PyTorch, channels_last | 600.0 | 600.0 to 600.0 | 106.7 | 3.00 |",
        "| PyTorch, compiled | 250.0 | 250.0 to 250.0 | 256.0 | 1.25 |",
    ]


def test_each_part_is_compared_with_the_faster_of_pytorchs():
    # 1e9 operations in 2 ms at 400e9 a second.
    assert host_step.part_table(SECONDS, 400e9, {"fc8 forward": 1e9}).splitlines() == [
        "| ms | tinyconv | PyTorch | PyTorch, channels_last | theirs / ours | of BLAS |",
        "|---|---:|---:|---:|---:|---:|",
        "| fc8 forward | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) | 3.00 (3.00 to 3.00) "
        "| 1.50 | 125% |",
    ]
    alone = host_step.part_table({"tinyconv": SECONDS["tinyconv"]}, 400e9, {})
    assert alone.splitlines()[::2] == [
        "| ms | tinyconv | of BLAS |",
        "| fc8 forward | 2.00 (2.00 to 2.00) |  |",
    ]


def test_a_quarter_of_the_times_is_below_the_spread_and_a_quarter_above():
    assert host_step.quartiles([9.0, 1.0, 2.0, 3.0, 4.0]) == [2.0, 3.0, 4.0]
    assert host_step.quartiles([7.0]) == [7.0, 7.0, 7.0]


def test_both_passes_of_a_layer_are_added_up_step_by_step(monkeypatch):
    passes = iter([1.0, 10.0, 2.0, 30.0])

    def by_part(watch):
        watch["norm1 forward"], watch["norm1 backward"] = next(passes), next(passes)
        watch["sgd"] = 5.0

    monkeypatch.setattr(host_step, "READY", (lambda: None, by_part))
    steps = host_step.turn(2)
    assert [step["norm1 both"] for step in steps] == [11.0, 32.0]
    assert list(steps[0]) == ["step", "norm1 forward", "norm1 backward", "sgd", "norm1 both"]


def test_operations_are_those_of_the_formula(monkeypatch):
    options = SimpleNamespace(
        width=0.02, image_size=64, classes=3, batch_size=2, threads=1, cpu_time=True
    )
    monkeypatch.setattr(host_step, "SQUARE", 8)
    with pytest.MonkeyPatch.context() as patch:
        for name in host_step.THREADS:
            patch.setenv(name, "1")
        rate, found = host_step.yardsticks(options)
    net = alexnet(3, 0.02, 64, "robust")
    conv1 = 2 * 2 * net["conv1"].multiply_adds(net.input_shape)
    assert rate > 0 and not [name for name in found if name.startswith(("pool", "norm"))]
    # No dL/dx of the first layer: backward as many as forward, elsewhere twice.
    passes = [found[f"conv1+relu1 {name}"] for name in ("forward", "backward", "both")]
    assert passes == [conv1, conv1, 2 * conv1]
    assert (
        found["fc8 backward"]
        == 2 * found["fc8 forward"]
        == 2 * 2 * 2 * net["fc8"].weight.value.size
    )
    convolutions = [n for x, n in found.items() if x.startswith("conv") and x.endswith("both")]
    assert len(convolutions) == 5 and found[host_step.CONVOLUTIONS] == sum(convolutions)


def expected_rows():
    net = alexnet(3, 0.02, 64, "robust")
    names = [step.name for step in net.steps if step.name != "flatten"]
    forward = [f"{name} forward" for name in names]
    backward = [f"{name} backward" for name in reversed(names)]
    both = [*(f"{name} both" for name in (*names, "loss")), host_step.CONVOLUTIONS]
    return [*forward, "loss forward", "loss backward", *backward, "sgd", *both]


needs_torch = pytest.mark.skipif(not WITH_TORCH, reason="PyTorch is not installed")


@pytest.mark.parametrize("with_torch", [False, pytest.param(True, marks=needs_torch)])
def test_a_run_prints_every_part_of_a_step(with_torch, monkeypatch, capfd):
    simple = [] if with_torch else ["--cpu-time"]
    # Of the two that are compiled one: that takes half a minute.
    contestants = (host_step.OURS, *host_step.EAGER, host_step.COMPILED[1])
    monkeypatch.setattr(host_step, "CONTESTANTS", contestants)
    if not with_torch:
        monkeypatch.setattr(host_step.importlib.util, "find_spec", lambda name: None)
        simple += ["--simple"]
    assert host_step.main([*TINY, *SHORT, *simple]) == 0
    printed = capfd.readouterr()
    assert ("PyTorch is not installed" in printed.err) == (not with_torch)
    contestants = contestants if with_torch else ("tinyconv",)
    rows = [re.split(r" *\| *", line)[1:-1] for line in printed.out.splitlines() if "|" in line]
    named = [row[0] for row in rows]
    for name in (*contestants, *["tinyconv, simple"] * (not with_torch)):
        assert named.count(name) == 1
    assert re.search(r"The first step, .* compiled: tinyconv \d+\.\d s", printed.out)
    parts = rows[named.index("ms") + 2 :]
    assert [row[0] for row in parts] == expected_rows()
    width = 2 + len(set(contestants) - set(host_step.COMPILED)) + with_torch
    assert all(len(row) == width for row in parts)
    assert all(float(row[1].split()[0].replace(",", "")) >= 0 for row in parts)


def test_sizes_that_do_not_fit_end_the_run_with_a_line(monkeypatch, capfd):
    monkeypatch.setattr(host_step.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        host_step.main([*TINY, *SHORT, "--image-size", "20"])
    error = capfd.readouterr().err
    assert ended.value.code == 2 and "error: alexnet: image_size must be at least 64" in error
    assert "Traceback" not in error
