"""benchmarks/gpu_report.py: everything but the times, on the host and on the simulated device."""

import json
import sys

import gpu_bench
import gpu_convs
import gpu_report
import gpu_runner
import gpu_steps
import gpu_tables
import numpy as np
import pytest
from gpu_bench import Bench, compare
from gpu_runner import Budget, HostClock, Result
from mini_net import mini_net

from layers import Device
from layers.fast.bfloat16 import to_bits
from layers.fast.host.im2col import Im2colConv


def run_everything(bench, say=lambda result: None):
    return gpu_report.run_all(bench, HostClock(), Budget(60), (2,), say)


def test_everything_runs_on_tiny_shapes_and_agrees(device, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    if device.is_cuda:
        # Tiles and tensor cores take part below, with a smaller net.
        monkeypatch.setattr(gpu_convs, "RUNGS", {"direct": ["fp32"]})
        monkeypatch.setattr(Bench, "precisions", ["fp32"])
    bench, clock = gpu_report.bench_on(device, tiny=True, seed=3), HostClock()
    said = []
    results = run_everything(bench, said.append)
    assert said == results
    assert [r for r in results if r.why] == []
    names = {(r.section, r.what, r.who) for r in results}
    assert len(names) == len(results)
    rung = "direct" if device.is_cuda else "host"
    for direction in gpu_convs.DIRECTIONS:
        assert ("convolutions", f"conv2 {direction}", rung) in names
    assert ("layers", "norm1 backward", "tinyconv, simple") in names
    assert ("layers", "fc3+relu3+drop3 forward", "tinyconv") in names
    assert ("steps", "2", "tinyconv, graph") in names
    assert ("steps", "2", "tinyconv, two columns on this GPU") in names
    assert (("steps", "2", "tinyconv, BF16") in names) != device.is_cuda
    assert not any("conv" in what for section, what, _ in names if section == "layers")
    if device.is_cuda:
        (graph,) = (r for r in results if r.section == "agreement")
        assert graph.notes == {"equal bits": True}
        (step,) = (r for r in results if r.who == "tinyconv, graph")
        assert step.notes["replayed"]

    facts = gpu_report.description(bench, clock, 3, rehearsal=True)
    assert facts["pytorch"] == "not installed for this device"
    text, numbers = gpu_report.write(tmp_path, facts, results)
    content = json.loads(numbers.read_text())
    assert [Result(**row) for row in content["results"]] == results
    report = text.read_text()
    assert gpu_tables.WARNING in report and facts["device"] in report
    for title in gpu_tables.TITLES.values():
        assert f"## {title}" in report


def test_tensor_cores_take_part_in_both_precisions(cuda_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(gpu_convs, "RUNGS", {"tensor": ["tf32", "bf16"]})
    monkeypatch.setattr(gpu_report, "tiny_net", mini_net)
    # mini_net has no two halves.
    monkeypatch.setattr(gpu_steps, "COLUMNS_IN", ())
    results = run_everything(gpu_report.bench_on(cuda_device, tiny=True, seed=6))
    assert [r for r in results if r.why] == []
    names = {(r.section, r.what, r.who) for r in results}
    for words in ("TF32", "BF16"):
        for direction in gpu_convs.DIRECTIONS:
            assert ("convolutions", f"conv1 {direction}", f"tensor, {words}") in names
        assert ("steps", "2", f"tinyconv, graph, {words}") in names
        assert ("ceilings", f"matrix product, {words}", "numpy") in names
        assert ("layers", "fc2 backward", f"tinyconv, {words}") in names
    assert ("layers", "relu1 forward", "tinyconv, simple") in names
    agreed = [r for r in results if r.section == "agreement"]
    assert [r.notes for r in agreed] == [{"equal bits": True}] * 3


def test_pytorch_takes_part_where_it_is():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    bench, clock = gpu_report.bench_on(Device("cpu"), tiny=True, seed=4), HostClock()
    cases = [
        *gpu_report.agreement_cases(bench, bench.batch),
        *gpu_report.conv_cases(bench),
        *gpu_report.layer_cases(bench),
        *gpu_report.torch_step_cases(bench, (2,)),
    ]
    results = list(gpu_runner.run_cases(cases, clock, Budget(60)))
    assert [r for r in results if r.why] == []
    losses = [r.notes for r in results if r.section == "agreement"]
    for found, most in zip(losses, (1e-5, 1e-3, 1e-2), strict=True):
        assert found["largest relative difference"] < most
        assert len(found["ours"]) == len(found["theirs"]) == 20
    names = {(r.section, r.what, r.who) for r in results}
    assert ("convolutions", "conv1 both gradients", "PyTorch, TF32, channels_last") in names
    assert ("layers", "pool1 backward", "PyTorch, channels_last") in names
    assert ("layers", "norm1 forward", "PyTorch, BF16, channels_last") in names
    assert ("steps", "2", "PyTorch, TF32") in names
    assert ("steps", "2", "PyTorch, BF16, channels_last") in names


def one_conv(bench):
    return [case for case in gpu_report.conv_cases(bench) if case.what == "conv2 forward"][:1]


def test_a_wrong_result_is_found_before_anything_is_timed(monkeypatch):
    forward, timed = Im2colConv.forward, []

    def wrong(self, x, train=True):
        y = forward(self, x, train)
        if self.dtype == np.float32:
            y[0, 0, 0, 0] += 0.01
        return y

    bench = gpu_report.bench_on(Device("cpu"), tiny=True, seed=5)
    cases = one_conv(bench)
    monkeypatch.setattr(Im2colConv, "forward", wrong)
    result = gpu_runner.run_case(cases[0], timed.append, 60.0)
    assert result.why.startswith("failed: ValueError: y of a small image is wrong by 0.01")
    assert timed == []


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_that_are_not_rounded_are_found(precision, monkeypatch):
    bench = gpu_report.bench_on(Device("cpu"), tiny=True, seed=7)
    conv, shape = next(gpu_convs.convolutions(bench))
    conv = gpu_convs.random_conv(bench, conv, "host")
    step = gpu_convs.planned(bench, conv, precision)
    gpu_convs.check_against_host(bench, step, conv)
    monkeypatch.setattr(Bench, "rounded", lambda self, array, precision: array.copy())
    with pytest.raises(ValueError, match="y of a small image is wrong by"):
        gpu_convs.check_against_host(bench, step, conv)


def test_compare_is_relative_to_the_largest_element_and_refuses_nan():
    right = np.array([1000.0, 1.0])
    compare("it", right + 0.05, right)
    with pytest.raises(ValueError, match="it is wrong by 0.2, its largest element is 1e"):
        compare("it", right + 0.2, right)
    with pytest.raises(ValueError, match="wrong by nan"):
        compare("it", right * np.nan, right)


def test_compare_allows_for_the_rounding_of_what_is_stored_as_bfloat16():
    right = np.float32([1.0, 3.0])
    bits = to_bits(right)
    compare("it", bits, right + 0.02)
    compare("it", bits + np.uint16(1), right)
    with pytest.raises(ValueError, match="it is wrong by"):
        compare("it", bits + np.uint16(3), right)
    with pytest.raises(ValueError, match="it is wrong by"):
        compare("it", right, right + np.float32(0.02))


def test_an_old_gpu_is_measured_in_float32_alone(monkeypatch):
    bench = gpu_report.bench_on(Device("cpu"), tiny=True, seed=1)
    assert bench.precisions == ["fp32", "tf32", "bf16"]

    monkeypatch.setattr("layers.fast.precision.capability", lambda device: (7, 5))
    old = Device("cpu")
    old.is_cuda = True
    bench.device = old
    assert bench.precisions == ["fp32"]
    assert gpu_convs.rungs(bench) == [("direct", "fp32"), ("shared", "fp32"), ("tiled", "fp32")]


def test_large_arrays_repeat_what_is_drawn(monkeypatch):
    monkeypatch.setattr(gpu_bench, "DRAWN", 7)
    x = gpu_report.bench_on(Device("cpu"), tiny=True, seed=1).random(3, 5)
    assert np.array_equal(x.reshape(-1)[:7], x.reshape(-1)[7:14]) and len(np.unique(x)) == 7


def test_other_data_each_time_and_the_same_for_the_same_seed():
    draws = [
        gpu_report.bench_on(Device("cpu"), tiny=True, seed=seed).random(5) for seed in (1, 1, 2)
    ]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


# --- the command line


def test_without_a_gpu_one_line_status_2_and_nothing_written(tmp_path, capsys):
    for name in ("cpu", "cuda:0", "cuda:7", "gpu"):
        if name == "cuda:0" and not Device("cuda:0").is_simulated:
            continue
        out = tmp_path / "results"
        assert gpu_report.main(["--device", name, "--out", str(out)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("gpu_report.py: error: ") and printed.err.count("\n") == 1
        assert printed.out == "" and not out.exists()


def test_a_rehearsal_is_marked_and_writes_nothing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    for cases in ("step_cases", "conv_cases", "layer_cases"):  # they ran above
        monkeypatch.setattr(gpu_report, cases, lambda *_: [])
    before = sorted(gpu_report.RESULTS.iterdir())
    assert gpu_report.main(["--rehearse", "--device", "cpu", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert gpu_tables.WARNING in printed and "- seed: 1\n" in printed
    assert sorted(gpu_report.RESULTS.iterdir()) == before
