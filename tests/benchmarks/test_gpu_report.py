"""benchmarks/gpu_report.py: everything but the times, on the host and on the simulated device."""

import json
import subprocess
import sys
from types import SimpleNamespace

import gpu_cases
import gpu_report
import gpu_runner
import gpu_tables
import numpy as np
import pytest
from gpu_bench import compare
from gpu_runner import Budget, Case, GpuClock, HostClock, Job, Result

from layers import Conv2D, Device

# --- the runner


class Time:
    """A clock in seconds that only moves when it is told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class FakeClock:
    """Every run takes `one` second of `time`, and the host half of it."""

    def __init__(self, time, one=1.0):
        self.time, self.one, self.freed = time, one, 0

    def __call__(self, run):
        run()
        self.time.seconds += self.one
        return self.one, self.one / 2

    def free(self):
        self.freed += 1


def case(name, run=lambda: None, **work):
    return Case("layers", name, "we", lambda: Job(run, **work))


def run(cases, minutes=60.0, one=1.0):
    time = Time()
    clock = FakeClock(time, one)
    results = list(gpu_runner.run_cases(cases, clock, Budget(minutes, time)))
    assert clock.freed == sum(not r.why.startswith("dropped") for r in results)
    return results


def test_cases_run_in_order_warmed_up_and_repeated():
    calls = []
    cases = [case(name, lambda name=name: calls.append(name), moved=7) for name in "ab"]
    first, second = run(cases)
    times = gpu_runner.WARM_UP + gpu_runner.MOST_REPEATS
    assert calls == ["a"] * times + ["b"] * times
    assert first.what == "a" and first.moved == 7 and second.median == 1.0
    assert first.host_seconds == [0.5] * gpu_runner.MOST_REPEATS


def test_a_case_that_fails_is_reported_and_the_others_go_on():
    def breaks():
        raise RuntimeError("out of memory\nand a long story")

    def cannot_be_made():
        raise ValueError("wrong by 3")

    before, made, broken, after = run(
        [case("a"), Case("layers", "b", "we", cannot_be_made), case("c", breaks), case("d")]
    )
    assert made.why == "failed: ValueError: wrong by 3" and not made.seconds
    assert broken.why == "failed: RuntimeError: out of memory" and not broken.seconds
    assert before.seconds and after.seconds and not before.why and not after.why


def test_short_of_time_repeats_are_dropped_first_and_then_cases():
    # A minute for six cases of a second: ten seconds each, two of them for warming up.
    results = run([case(name) for name in "abcdef"], minutes=1)
    assert all(gpu_runner.LEAST_REPEATS <= len(r.seconds) < 30 for r in results)
    # Ten seconds each, and only a minute: there is no time for all of them.
    results = run([case(name) for name in "abcdef"], minutes=1, one=10.0)
    kept = [bool(r.seconds) for r in results]
    assert kept == sorted(kept, reverse=True) and 0 < sum(kept) < 6
    assert all(len(r.seconds) == gpu_runner.LEAST_REPEATS for r in results if r.seconds)
    assert {r.why for r in results if not r.seconds} == {"dropped: out of time"}


def test_a_case_without_a_run_has_notes_and_no_times():
    (result,) = run([Case("agreement", "a", "we", lambda: Job(notes=lambda: {"found": 1}))])
    assert result.notes == {"found": 1} and not result.seconds and not result.why


def test_a_part_of_a_budget_ends_before_the_whole():
    time = Time()
    budget = Budget(2.0, time)
    part = budget.part(0.25)
    time.seconds += 20
    assert (budget.left(), part.left()) == (100.0, 10.0)


def test_the_gpu_clock_flushes_waits_and_reads_its_events():
    calls = []

    class Event:
        def record(self):
            calls.append("record")

        def synchronize(self):
            calls.append("synchronize")

    buffer = SimpleNamespace(fill=lambda value: calls.append("flush"))
    sizes = []
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(attributes={"L2CacheSize": 2**20}),
        Event=Event,
        get_elapsed_time=lambda start, end: 2.5,
        runtime=SimpleNamespace(deviceSynchronize=lambda: calls.append("wait")),
    )
    cupy = SimpleNamespace(cuda=cuda, empty=lambda size, dtype: sizes.append(size) or buffer)
    clock = GpuClock(cupy)
    seconds, queued = clock(lambda: calls.append("run"))
    assert calls == ["flush", "wait", "record", "run", "record", "synchronize"]
    assert seconds == 2.5e-3 and 0 <= queued < 1
    assert sizes == [2**21] and "1 MiB" in clock.flushed


# --- the cases


def few_repeats(monkeypatch):
    monkeypatch.setattr(gpu_runner, "WARM_UP", 1)
    monkeypatch.setattr(gpu_runner, "MOST_REPEATS", 1)
    # The other rungs have tests of their own; theirs is the time of this one.
    monkeypatch.setattr(gpu_cases, "RUNGS", ("direct",))


def test_everything_runs_on_tiny_shapes_and_agrees(device, monkeypatch, tmp_path):
    few_repeats(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", None)
    bench, clock = gpu_report.bench_on(device, tiny=True, seed=3), HostClock()
    said = []
    results = gpu_report.run_all(bench, clock, Budget(60), (2,), lambda part: [], said.append)
    assert said == results
    assert [r for r in results if r.why] == []
    names = {(r.section, r.what, r.who) for r in results}
    assert len(names) == len(results)
    rung = "direct" if device.is_cuda else "host"
    for direction in gpu_cases.DIRECTIONS:
        assert ("convolutions", f"conv2 {direction}", rung) in names
    assert ("layers", "norm1 backward", "tinyconv, layer alone") in names
    assert ("layers", "fc3+relu3+drop3 forward", "tinyconv, as in the net") in names
    assert ("steps", "2", "tinyconv, graph") in names
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


def test_pytorch_takes_part_where_it_is(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    few_repeats(monkeypatch)
    bench, clock = gpu_report.bench_on(Device("cpu"), tiny=True, seed=4), HostClock()
    cases = [
        *gpu_report.agreement_cases(bench, 3),
        *gpu_report.conv_cases(bench),
        *gpu_report.layer_cases(bench),
        *gpu_report.torch_step_cases(bench, (2,), compiled=False),
    ]
    results = list(gpu_runner.run_cases(cases, clock, Budget(60)))
    assert [r for r in results if r.why] == []
    (losses,) = (r for r in results if r.section == "agreement")
    assert losses.notes["largest relative difference"] < 1e-5
    assert len(losses.notes["ours"]) == len(losses.notes["theirs"]) == 20
    names = {(r.section, r.what, r.who) for r in results}
    assert ("convolutions", "conv1 both gradients", "PyTorch, TF32, channels_last") in names
    assert ("layers", "pool1 backward", "PyTorch, channels_last") in names
    assert ("steps", "2", "PyTorch, TF32") in names


def one_conv(bench):
    return [case for case in gpu_report.conv_cases(bench) if case.what == "conv2 forward"][:1]


def test_a_wrong_result_is_found_before_anything_is_timed(monkeypatch):
    forward, timed = Conv2D.forward, []

    def wrong(self, x, train=True):
        y = forward(self, x, train)
        if self.dtype == np.float32:
            y[0, 0, 0, 0] += 0.01
        return y

    bench = gpu_report.bench_on(Device("cpu"), tiny=True, seed=5)
    cases = one_conv(bench)
    monkeypatch.setattr(Conv2D, "forward", wrong)
    result = gpu_runner.run_case(cases[0], timed.append, 60.0)
    assert result.why.startswith("failed: ValueError: y of a small image is wrong by 0.01")
    assert timed == []


def test_compare_is_relative_to_the_largest_element_and_refuses_nan():
    right = np.array([1000.0, 1.0])
    compare("it", right + 0.05, right)
    with pytest.raises(ValueError, match="it is wrong by 0.2, its largest element is 1e"):
        compare("it", right + 0.2, right)
    with pytest.raises(ValueError, match="wrong by nan"):
        compare("it", right * np.nan, right)


def test_other_data_each_time_and_the_same_for_the_same_seed():
    draws = [
        gpu_report.bench_on(Device("cpu"), tiny=True, seed=seed).random(5) for seed in (1, 1, 2)
    ]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


# --- the second process


def second(monkeypatch, printed, capability="90"):
    asked = []

    def stand_in(command, env, **options):
        asked.append((command, env["CUPY_TF32"]))
        return SimpleNamespace(stdout=printed, returncode=3)

    monkeypatch.setattr(subprocess, "run", stand_in)
    cuda = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability=capability))
    device = SimpleNamespace(name="cuda:0", xp=SimpleNamespace(cuda=cuda))
    return gpu_report.with_tf32(device, 17)(Budget(2.0, Time())), asked


def test_the_cases_with_tf32_come_from_a_process_of_their_own(monkeypatch):
    row = Result("steps", "128", "tinyconv, graph, TF32", [0.5]).as_dict()
    results, asked = second(monkeypatch, f"a warning\n{json.dumps([row])}\n")
    assert results == [Result("steps", "128", "tinyconv, graph, TF32", [0.5])]
    ((command, tf32),) = asked
    assert tf32 == "1" and command[2:] == [
        *("--tf32-part", "--minutes", "2.0", "--seed", "17", "--device", "cuda:0")
    ]


def test_a_process_that_breaks_is_a_failed_case(monkeypatch):
    for printed in ("", "no JSON\n", "[1]\n"):
        (result,), _ = second(monkeypatch, printed)
        assert result.why == "failed: the process for it ended with status 3"


def test_no_tf32_before_compute_capability_8(monkeypatch):
    assert second(monkeypatch, "", capability="75") == ([], [])


# --- the report


def test_shares_are_of_the_measured_ceilings_and_missing_cases_are_named():
    facts = {"device": "a GPU", "rehearsal": False}
    results = [
        Result("ceilings", "copy bandwidth", "cupy", [2.0], moved=4 * 10**12),
        Result("ceilings", "matrix product", "cupy", [1.0] * 30, operations=10 * 10**12),
        Result("ceilings", "matrix product, TF32", "cupy", [1.0] * 30, operations=40 * 10**12),
        Result("convolutions", "conv1 filter gradient", "tiled", [1.0] * 30, operations=10**12),
        Result("convolutions", "conv1 both gradients", "tiled", [1.5] * 30, operations=2 * 10**12),
        Result(
            "convolutions", "conv1 forward", "PyTorch, TF32", [1.0] * 30, operations=10 * 10**12
        ),
        Result("layers", "relu1 forward", "we", [1.0, 1.0, 4.0], moved=10**12),
        Result("steps", "128", "we", [0.5] * 30, [0.1] * 30, images=128, notes={"replayed": False}),
        Result("steps", "1,024", "we", why="failed: MemoryError: too much"),
    ]
    report = gpu_tables.markdown(facts, results)
    assert gpu_tables.WARNING not in report
    for row in (
        "| copy bandwidth | cupy | 2,000.000 | 2,000.000 to 2,000.000 | 1 | 2,000.0 GB/s |",
        "| conv1 filter gradient | tiled | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 1.00 | 10% |",
        "| conv1 input gradient, by difference | tiled | 500.000 | 500.000 to 500.000 | 1 | 2.00 "
        "| 20% |",
        "| conv1 forward | PyTorch, TF32 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 | 25% |",
        "| relu1 forward | we | 1,000.000 | 1,000.000 to 4,000.000 | 3 | 1,000.0 | 50% |",
        "| 128 | we | 500.000 | 500.000 to 500.000 | 30 | 256 | 100.000 |  | no: launched one by "
        "one |",
        "| 1,024 | we | failed: MemoryError: too much |  |  |  |  |  |  |",
        "- steps: 1,024, we: failed: MemoryError: too much.",
    ):
        assert row in report.splitlines(), row
    assert "relu1 forward (we: 3)" in report


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
    few_repeats(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", None)  # it would take a minute to compile
    before = sorted(gpu_report.RESULTS.iterdir())
    assert gpu_report.main(["--rehearse", "--device", "cpu", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert gpu_tables.WARNING in printed and "- seed: 1\n" in printed
    assert sorted(gpu_report.RESULTS.iterdir()) == before
