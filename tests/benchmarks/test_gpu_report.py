"""benchmarks/gpu_report.py and its cases: all but the times, on the host and a simulated device."""

import json
import sys

import gpu_cases
import gpu_layers
import gpu_report
import gpu_runner
import gpu_steps
import gpu_tables
import gpu_tiles
import numpy as np
import pytest
from gpu_cases import Bench, compare
from gpu_runner import HostClock, Result, run_case, run_sections
from mini_net import mini_net

from layers import Device
from layers.fast.bfloat16 import to_bits
from layers.fast.conv import tile_table
from layers.fast.host.im2col import Im2colConv


def bench_on(device, seed=3):
    return gpu_report.bench_on(device, tiny=True, seed=seed)


def run(*makers, say=lambda result: None):
    return run_sections([(1, maker) for maker in makers], HostClock(), 60, say)


def run_everything(bench, say=lambda result: None):
    return run_sections(gpu_report.sections(bench, (2,)), HostClock(), 60, say)


def names_of(results):
    assert [r for r in results if r.why] == []
    names = {(r.section, r.what, r.who) for r in results}
    assert len(names) == len(results)
    return names


def test_everything_runs_on_tiny_shapes_and_agrees(device, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    if device.is_cuda:
        # Tiles and tensor cores take part below, with a smaller net.
        monkeypatch.setattr(gpu_layers, "RUNGS", {"direct": ["fp32"]})
        monkeypatch.setattr(Bench, "precisions", ["fp32"])
    bench, said = bench_on(device), []
    results = run_everything(bench, said.append)
    assert said == results
    names = names_of(results)
    rung = "direct" if device.is_cuda else "host"
    for direction in gpu_layers.DIRECTIONS:
        assert ("convolutions", f"conv2 {direction}", rung) in names
    assert ("layers", "norm1 backward", "tinyconv, simple") in names
    assert ("layers", "fc3+relu3+drop3 forward", "tinyconv") in names
    assert ("steps", "2", "tinyconv, two columns on this GPU") in names
    assert (("steps", "2", "tinyconv, BF16") in names) != device.is_cuda
    assert not any("conv" in what for section, what, _ in names if section == "layers")
    (step,) = (r for r in results if r.who == "tinyconv, graph")
    assert step.notes["replayed"] == device.is_cuda
    agreed = [r.notes for r in results if r.section == "agreement"]
    assert agreed == [{"equal bits": True}] * device.is_cuda

    facts = gpu_report.description(bench, HostClock(), 3, rehearsal=True)
    assert facts["pytorch"] == "not installed for this device"
    gpu_report.write(tmp_path / "new" / "report.md", facts, results)
    content = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [Result(**row) for row in content["results"]] == results
    report = (tmp_path / "new" / "report.md").read_text()
    assert gpu_tables.WARNING in report and facts["device"] in report
    for name, (title, _, _) in gpu_tables.SECTIONS.items():
        assert (f"## {title}" in report) == (name != "tiles")


def test_tensor_cores_take_part_in_both_precisions(cuda_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(gpu_layers, "RUNGS", {"tensor": ["tf32", "bf16"]})
    monkeypatch.setattr(gpu_report, "tiny_net", mini_net)
    monkeypatch.delitem(gpu_steps.OURS, "tinyconv, two columns on this GPU")  # no two halves
    results = run_everything(bench_on(cuda_device, seed=6))
    names = names_of(results)
    for words in ("TF32", "BF16"):
        for direction in gpu_layers.DIRECTIONS:
            assert ("convolutions", f"conv1 {direction}", f"tensor, {words}") in names
        assert ("steps", "2", f"tinyconv, graph, {words}") in names
        assert ("ceilings", f"matrix product, {words}", "numpy") in names
        assert ("layers", "fc2 backward", f"tinyconv, {words}") in names
    agreed = [r for r in results if r.section == "agreement"]
    assert [r.notes for r in agreed] == [{"equal bits": True}] * 3


def test_pytorch_takes_part_where_it_is(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    bench = bench_on(Device("cpu"), seed=4)
    results = run(
        lambda: gpu_steps.agreement_cases(bench),
        lambda: gpu_layers.conv_cases(bench),
        lambda: gpu_layers.layer_cases(bench),
        lambda: gpu_steps.torch_step_cases(bench, (2,)),
    )
    names = names_of(results)
    losses = [r.notes for r in results if r.section == "agreement"]
    for found, most in zip(losses, (1e-5, 1e-3, 1e-2), strict=True):
        assert found["largest relative difference"] < most
        assert len(found["ours"]) == len(found["theirs"]) == 20
    assert ("convolutions", "conv1 both gradients", "PyTorch, TF32, channels_last") in names
    assert ("convolutions", "conv2 filter gradient", "PyTorch, BF16, channels_last") in names
    assert ("layers", "pool1 backward", "PyTorch, channels_last") in names
    assert ("layers", "norm1 forward", "PyTorch, BF16, channels_last") in names
    assert ("steps", "2", "PyTorch, TF32") in names
    monkeypatch.setitem(gpu_steps.LOSS_TOLERANCE, "bf16", 1e-9)
    *_, bf16 = run(lambda: gpu_steps.agreement_cases(bench))
    assert bf16.why.startswith("failed: ValueError: the loss of step 1 differs by ")


@pytest.mark.parametrize("result", ["y", "dx", "dw", "db"])
def test_a_wrong_result_is_found_before_anything_is_timed(result, monkeypatch):
    forward, backward, timed = Im2colConv.forward, Im2colConv.backward, []

    def wrong_forward(self, x, train=True):
        y = forward(self, x, train)
        y[0, 0, 0, 0] += 0.01 * (result == "y" and self.dtype == np.float32)
        return y

    def wrong_backward(self, dy):
        dx = backward(self, dy)
        w, b = self.layers[0].parameters()
        wrong = {"dx": dx, "dw": w.grad, "db": b.grad}.get(result)
        if wrong is not None and self.dtype == np.float32:
            wrong.reshape(-1)[1] += 0.01 * np.abs(wrong).max()
        return dx

    bench = bench_on(Device("cpu"), seed=5)
    case = next(case for case in gpu_layers.conv_cases(bench) if case.what == "conv2 forward")
    monkeypatch.setattr(Im2colConv, "forward", wrong_forward)
    monkeypatch.setattr(Im2colConv, "backward", wrong_backward)
    found = run_case(case, timed.append, 60.0)
    assert found.why.startswith(f"failed: ValueError: {result} of two inputs is wrong by 0.")
    assert timed == []


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_that_are_not_rounded_are_found(precision, monkeypatch):
    bench = bench_on(Device("cpu"), seed=7)
    conv, shape = next(gpu_layers.convolutions(bench))
    part = gpu_layers.conv_part(bench, conv, shape, "host", precision)
    gpu_layers.check_part(bench, part)
    monkeypatch.setattr(Bench, "rounded", lambda self, array, _: array.astype(float))
    with pytest.raises(ValueError, match="y of two inputs is wrong by"):
        gpu_layers.check_part(bench, part)


def test_compare_is_relative_to_the_largest_element_and_refuses_nan():
    right = np.array([1000.0, 1.0])
    compare("it", right + 0.05, right)
    for error, found in ((0.2, "0.2, its largest element is 1e"), (np.nan, "nan")):
        with pytest.raises(ValueError, match=f"it is wrong by {found}"):
            compare("it", right + error, right)
    # What is stored as bfloat16 has been rounded once more.
    right = np.float32([1.0, 3.0])
    bits = to_bits(right)
    compare("it", bits, right + 0.02)
    compare("it", bits + np.uint16(1), right)
    for ours in (bits + np.uint16(3), right + np.float32(0.02)):
        with pytest.raises(ValueError, match="it is wrong by"):
            compare("it", ours, right)


def test_an_old_gpu_is_measured_in_float32_alone(monkeypatch):
    bench = bench_on(Device("cpu"))
    assert bench.precisions == ["fp32", "tf32", "bf16"]
    monkeypatch.setattr("layers.fast.precision.capability", lambda device: (7, 5))
    bench.device = Device("cpu")
    bench.device.is_cuda = True
    assert bench.precisions == ["fp32"]
    assert gpu_layers.rungs(bench) == [("direct", "fp32"), ("shared", "fp32"), ("tiled", "fp32")]


def test_data_repeat_what_is_drawn_and_differ_by_the_seed(monkeypatch):
    monkeypatch.setattr(gpu_cases, "DRAWN", 7)
    x, same, other = (bench_on(Device("cpu"), seed).random(3, 5) for seed in (1, 1, 2))
    assert np.array_equal(x.reshape(-1)[:7], x.reshape(-1)[7:14]) and len(np.unique(x)) == 7
    assert np.array_equal(x, same) and not np.array_equal(x, other)


def test_the_full_net_is_drawn_once_and_copied(monkeypatch):
    drawn = mini_net()
    monkeypatch.setattr(gpu_report, "drawn_net", lambda: drawn)
    net = gpu_report.full_net()
    for ours, theirs in zip(net.parameters(), drawn.parameters(), strict=True):
        assert np.array_equal(ours.value, theirs.value) and ours.value is not theirs.value
    net.to("cpu", precision="bf16").forward(np.ones((1, 5, 4, 8), np.float32))


# --- tables


def test_shares_are_of_the_measured_ceilings_and_missing_cases_are_named():
    facts = {"device": "a GPU", "rehearsal": False, "repeats": 30}
    results = [
        Result("ceilings", "copy bandwidth", "cupy", [2.0], moved=4 * 10**12),
        Result("ceilings", "matrix product", "cupy", [1.0] * 30, operations=10 * 10**12),
        Result("ceilings", "matrix product, TF32", "cupy", [1.0] * 30, operations=40 * 10**12),
        Result("convolutions", "conv1 forward", "tiled", [1.0] * 30, operations=10**12),
        Result("convolutions", "conv2 forward", "tensor, BF16", [1.0] * 30, operations=10**13),
        Result("convolutions", "conv1 forward", "PyTorch, TF32", [1.0] * 30, operations=10**13),
        Result("layers", "relu1 forward", "we", [1.0, 1.0, 4.0], moved=10**12),
        Result(
            *("steps", "128", "we, TF32", [0.5] * 30, [0.1] * 30),
            operations=10**13,
            images=128,
            notes={"replayed": False, "peak bytes": 2**21},
        ),
        Result("steps", "1,024", "we", why="failed: MemoryError: too much"),
    ]
    report = gpu_report.markdown(facts, results)
    assert gpu_tables.WARNING not in report
    rows = [
        "| copy bandwidth | cupy | 2,000.000 | 2,000.000 to 2,000.000 | 1 | 2,000.0 |  |",
        "| 128 | we, TF32 | 500.000 | 500.000 to 500.000 | 30 | 256 | 20.00 | 50% | 100.000 | 2 "
        "| no: launched one by one |",
        "| 1,024 | we | failed: MemoryError: too much |  |  |  |  |  |  |  |  |",
        "| conv1 forward | tiled | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 1.00 | 10% |",
        "| conv1 forward | PyTorch, TF32 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 | 25% |",
        "| conv2 forward | tensor, BF16 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 |  |",
        "| relu1 forward | we | 1,000.000 | 1,000.000 to 4,000.000 | 3 | 1,000.0 | 50% |",
        "- steps: 1,024, we: failed: MemoryError: too much.",
    ]
    assert [line for line in report.splitlines() if line in rows] == rows
    assert "relu1 forward (we: 3)" in report


# --- tiles

KEY = "bf16 forward 2x5x4x8 3x2x2x8 stride 1 before 0 groups 1"
LARGE, SMALL = tile_table.TILES


def found(what, large, small=None):
    times = {LARGE: large, SMALL: small}
    return [Result("tiles", what, tile, each) for tile, each in times.items() if each]


TIMED = [
    *found("a", large=[3.0, 1.0, 2.0], small=[2.5]),
    *found("a", large=[9.0], small=[1.5, 1.5]),
    *found("b", large=[1.0], small=[1.0]),
    *found("c", large=[1.0]),
    Result("tiles", "c", SMALL, why="failed: ValueError: other bits"),
]


def test_the_best_of_the_medians_joins_what_was_known(tmp_path):
    assert gpu_report.best_medians(TIMED) == {
        "a": {LARGE: 2.0, SMALL: 1.5},
        "b": {LARGE: 1.0, SMALL: 1.0},
    }
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"sm_80": {"a": LARGE}, "sm_90": {"a": LARGE, "z": SMALL}}))
    path.write_text(gpu_report.with_tiles(TIMED, "sm_90", path))
    expected = {"sm_80": {"a": LARGE}, "sm_90": {"a": SMALL, "b": LARGE, "z": SMALL}}
    assert tile_table.read(path) == expected
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a table of tiles"):
        gpu_report.with_tiles(TIMED, "sm_90", path)


@pytest.fixture
def mini_bench(cuda_device, monkeypatch):
    monkeypatch.setattr(gpu_report, "tiny_net", mini_net)
    return bench_on(cuda_device, seed=8)


def test_both_tiles_take_turns_for_every_product_of_a_step(mini_bench):
    cases = list(gpu_tiles.tile_cases(mini_bench, (2, 3)))
    keys = list(dict.fromkeys(case.what for case in cases))
    assert KEY in keys and len(keys) == 2 * 2 * 2  # no dL/dx of the first layer
    of_one = [case.who for case in cases if case.what == KEY]
    assert of_one == [LARGE, SMALL] * gpu_tiles.ROUNDS


def test_tiles_that_disagree_are_not_timed(mini_bench, monkeypatch):
    forward = gpu_tiles.tensor_forward

    def wrong(*arguments, tile, **options):
        forward(*arguments, tile=tile, **options)
        arguments[3][0, 0, 0, 0] += tile == SMALL

    monkeypatch.setattr(gpu_tiles, "tensor_forward", wrong)
    case = next(case for case in gpu_tiles.tile_cases(mini_bench, (2,)) if case.what == KEY)
    result = run_case(case, HostClock(), 60.0)
    assert result.why == "failed: ValueError: the two tiles give different bits"


# --- the command line


@pytest.mark.parametrize(
    "arguments", [[], ["--autotune"], ["--autotune", "--rehearse", "--device", "cpu"]]
)
@pytest.mark.parametrize("name", ["cpu", "cuda:0", "cuda:7", "gpu"])
def test_without_a_gpu_one_line_status_2_and_nothing_written(name, arguments, tmp_path, capsys):
    if name == "cuda:0" and not Device("cuda:0").is_simulated:
        pytest.skip("there is a GPU")
    out = tmp_path / "results"
    assert gpu_report.main(["--device", name, "--out", str(out), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("gpu_report.py: error: ") and printed.err.count("\n") == 1
    assert printed.out == "" and not out.exists()


def test_rehearsals_are_marked_and_write_nothing(mini_bench, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    for cases in ("step_cases", "conv_cases", "layer_cases"):  # they ran above
        monkeypatch.setattr(gpu_report, cases, lambda *_: [])
    monkeypatch.setattr(gpu_tiles, "PRECISIONS", ("bf16",))
    before = sorted(gpu_report.RESULTS.iterdir()), tile_table.PATH.read_text()
    assert gpu_report.main(["--rehearse", "--device", "cpu", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert gpu_tables.WARNING in printed and "- seed: 1\n" in printed
    assert gpu_report.main(["--rehearse", "--autotune", "--seed", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    timed = [row.split(" | ")[:2] for row in rows if row.startswith("| bf16")]
    assert [[f"| {KEY}", tile] for tile in (LARGE, SMALL)] == timed[:2] and len(timed) == 4
    assert (sorted(gpu_report.RESULTS.iterdir()), tile_table.PATH.read_text()) == before


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """The host takes its place in `main`, with the tiny sizes."""
    bench = bench_on(Device("cpu"))

    class Gpu(Device):
        is_simulated = False

        def __init__(self, name):
            vars(self).update(vars(bench.device), is_cuda=True)

    facts = gpu_report.description(bench, HostClock(), 1, rehearsal=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(gpu_report, "Device", Gpu)
    monkeypatch.setattr(gpu_report, "GpuClock", lambda xp: HostClock())
    monkeypatch.setattr(gpu_report, "description", lambda *_: facts)
    monkeypatch.setattr(gpu_report, "bench_on", lambda *_: bench)
    monkeypatch.setattr(gpu_report, "settle", lambda *_: "tf32")
    monkeypatch.setattr(gpu_report, "capability", lambda device: (9, 0))


def test_a_report_that_is_cut_off_leaves_what_it_has_found(as_if_on_a_gpu, monkeypatch, tmp_path):
    def dies(*arguments):
        yield gpu_runner.Case("steps", "2", "tinyconv", lambda: sys.exit("killed"))

    monkeypatch.setattr(gpu_report, "step_cases", dies)
    with pytest.raises(SystemExit, match="killed"):
        gpu_report.main(["--out", str(tmp_path)])
    (numbers,) = tmp_path.glob("*.json")
    results = json.loads(numbers.read_text())["results"]
    assert [r["what"] for r in results][:2] == ["copy bandwidth", "matrix product"]
    assert "| copy bandwidth | numpy | " in numbers.with_suffix(".md").read_text()


def test_tuning_writes_a_report_and_the_table(as_if_on_a_gpu, monkeypatch, tmp_path, capsys):
    def fails():
        raise ValueError("other bits")

    def tiles(*arguments):
        for tile, run in ((LARGE, lambda: None), (SMALL, lambda: None), (SMALL, fails)):
            yield gpu_runner.Case("tiles", "a", tile, lambda run=run: gpu_runner.Job(run))

    monkeypatch.setattr(gpu_report, "tile_cases", tiles)
    monkeypatch.setattr(gpu_report, "PATH", tmp_path / "tiles.json")
    gpu_report.PATH.write_text("{}")
    assert gpu_report.main(["--autotune", "--out", str(tmp_path)]) == 1  # a case has failed
    assert json.loads(gpu_report.PATH.read_text())["sm_90"].keys() == {"a"}
    report, table = capsys.readouterr().out.splitlines()
    assert report.endswith("-tiles.md") and table == str(gpu_report.PATH)
    assert "failed: ValueError: other bits" in (tmp_path / report).read_text()
