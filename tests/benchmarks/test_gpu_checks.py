"""The cases of benchmarks/gpu_day.py: what is wrong is found, on the host and simulated."""

import json
from collections import Counter
from types import SimpleNamespace

import gpu_bench
import gpu_cases
import gpu_checks
import gpu_stages
import numpy as np
import pytest
from gpu_bench import Bench, compare
from runner import Dropped, Result

from layers import Conv2D, Device, Linear, LocalResponseNorm, ReLU, lrn
from layers.fast.bfloat16 import to_bits
from layers.fast.conv import tile_table
from layers.fast.host.im2col import Im2colConv
from tinyconv.data.augment import Augment

HOST = {"kernels": "fast", "algorithm": "host"}
CONV = [Conv2D(4, 6, 3, padding=1, groups=2), ReLU()]


def bench_on(name, seed=3):
    return gpu_bench.bench_and_clock("b", name, True, seed)[0]


def test_compare_is_relative_to_the_largest_element_and_refuses_nan():
    right = np.array([1000.0, 1.0])
    compare("it", right + 0.05, right)
    for error, found in ((0.2, "0.2, its largest element is 1e"), (np.nan, "nan")):
        with pytest.raises(ValueError, match=rf"it is wrong by {found}.* the first \(0,\)"):
            compare("it", right + error, right)
    # What is stored as bfloat16 has been rounded once more.
    right = np.float32([1.0, 3.0])
    bits = to_bits(right)
    compare("it", bits, right + 0.02)
    compare("it", bits + np.uint16(1), right)
    for ours in (bits + np.uint16(3), right + np.float32(0.02)):
        with pytest.raises(ValueError, match="it is wrong by"):
            compare("it", ours, right)


@pytest.mark.parametrize("result", ["y", "dx", "dw", "db"])
def test_a_wrong_result_is_found(result, monkeypatch):
    forward, backward = Im2colConv.forward, Im2colConv.backward

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

    bench = bench_on("cpu", seed=5)
    gpu_checks.check(bench, CONV, (2, 5, 4, 4), **HOST)
    monkeypatch.setattr(Im2colConv, "forward", wrong_forward)
    monkeypatch.setattr(Im2colConv, "backward", wrong_backward)
    with pytest.raises(ValueError, match=rf"^{result} is wrong by 0\."):
        gpu_checks.check(bench, CONV, (2, 5, 4, 4), **HOST)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("layers", [CONV, [Linear(7, 5), ReLU()]], ids=["conv", "linear"])
def test_factors_that_are_not_rounded_are_found(precision, layers, monkeypatch):
    bench = bench_on("cpu", seed=7)
    options = {"kernels": "fast", "precision": precision}
    shape = (2, 5, 4, 4) if layers is CONV else (3, 7)
    monkeypatch.setattr(gpu_checks, "BY_CUBLAS", gpu_bench.TOLERANCE)  # the host rounds
    gpu_checks.check(bench, layers, shape, **options)
    monkeypatch.setattr(Bench, "rounded", lambda self, array, _: array.astype(float))
    with pytest.raises(ValueError, match="y is wrong by"):
        gpu_checks.check(bench, layers, shape, **options)


def test_an_element_that_no_thread_writes_is_found(cuda_device, monkeypatch):
    """Without poison the zeros of a fresh array might be right."""
    bench = bench_on("cuda:0")
    run = {"kernels": "simple"}
    launch = lrn.lrn_forward_kernel

    class LeavesOutTheLast:
        def __getitem__(self, configuration):
            def few(x, y, scale, *rest):
                launch[configuration](x[:-1], y[:-1], scale[:-1], *rest)

            return few

    layers, shape = [LocalResponseNorm(3, alpha=0.5)], (2, 3, 2, 5)
    with gpu_checks.poisoned():
        gpu_checks.check(bench, layers, shape, **run)
    monkeypatch.setattr(lrn, "lrn_forward_kernel", LeavesOutTheLast())
    with gpu_checks.poisoned(), pytest.raises(ValueError, match="y is wrong by nan"):
        gpu_checks.check(bench, layers, shape, **run)


def test_crops_for_a_convolution_that_differ_from_two_passes_are_found(cuda_device, monkeypatch):
    bench, cut = bench_on("cuda:0"), Augment._cut
    gpu_checks.check_s2d_crops(bench, "tf32")

    def wrong_border(self, *arguments):
        x = cut(self, *arguments)
        x[0, 0, 0, 0] += x.shape[3] == 48
        return x

    monkeypatch.setattr(Augment, "_cut", wrong_border)
    with pytest.raises(ValueError, match="have other bits than by two passes"):
        gpu_checks.check_s2d_crops(bench, "tf32")


def test_the_launches_within_are_noted_by_name(cuda_device):
    bench = bench_on("cuda:0")
    with gpu_bench.launches() as made:
        gpu_checks.check(bench, [ReLU()], (1, 3), kernels="simple")
        gpu_checks.check(bench, [Linear(3, 2), ReLU()], (2, 3), kernels="fast")
    expected = {"relu_forward_kernel", "relu_backward_kernel", "bias_kernel", "product"}
    expected |= {"masked_gradient_kernel", "sum_parts_kernel"}
    assert {each.name for each in made} == expected
    assert {each.dtype for each in made} == {"float32", ""}


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        (["float32"] * 3, "float32"),
        (["float64"] * 3, "float64"),
        (["float32", "float64", "float32"], ""),
        (["float32"] * 2, ""),
    ],
)
def test_a_launch_belongs_to_the_case_that_has_its_types(kinds, dtype):
    arrays = [np.ones((2, 5), kind) for kind in kinds]
    rest = np.int64(5), 2, np.float32(2), 0.5, 0.75
    assert gpu_bench.dtype_of("lrn_forward_kernel", (*arrays, *rest)) == dtype
    assert gpu_bench.dtype_of("a_kernel_of_nobody", (*arrays, *rest)) == ""


def test_each_launch_is_timed_in_order(cuda_device):
    made = gpu_cases.launches_of_a_step(bench_on("cuda:0"), "fp32", 2)
    names = [name for name, seconds in made.notes()["launches"] if seconds > 0]
    assert names.count("product") == 4 and names[-1] == "sgd_kernel"
    assert names.index("softmax_rows_kernel") < names.index("masked_gradient_kernel")


def test_losses_that_part_are_found():
    agree = gpu_checks.Losses.agree
    assert agree([2.0, 1.0], [2.0, 1.001], 2e-3).notes()["largest difference"] < 1e-3
    for wrong in (1.01, np.nan):
        with pytest.raises(ValueError, match="the loss of step 2 differs by "):
            agree([2.0, wrong], [2.0, 1.0], 2e-3)


def test_an_old_gpu_is_measured_in_float32_alone(monkeypatch):
    bench = bench_on("cpu")
    assert bench.precisions == ["fp32", "tf32", "bf16"]
    monkeypatch.setattr("layers.fast.precision.capability", lambda device: (7, 5))
    bench.device = Device("cpu")
    bench.device.is_cuda = True
    assert bench.precisions == ["fp32"]
    assert [who for who, _ in gpu_bench.ways_of(bench, CONV)] == ["direct", "shared", "tiled"]


def test_data_repeat_what_is_drawn_and_differ_by_the_seed(monkeypatch):
    monkeypatch.setattr(gpu_bench, "DRAWN", 7)
    x, same, other = (bench_on("cpu", seed).random(3, 5) for seed in (1, 1, 2))
    assert np.array_equal(x.reshape(-1)[:7], x.reshape(-1)[7:14]) and len(np.unique(x)) == 7
    assert np.array_equal(x, same) and not np.array_equal(x, other)


def test_the_full_net_is_drawn_once_and_copied(monkeypatch):
    drawn = gpu_bench.one_tile_net()
    monkeypatch.setattr(gpu_bench, "drawn_net", lambda: drawn)
    net = gpu_bench.full_net()
    for ours, theirs in zip(net.parameters(), drawn.parameters(), strict=True):
        assert np.array_equal(ours.value, theirs.value) and ours.value is not theirs.value
    net.to("cpu", precision="bf16").forward(np.ones((1, 5, 4, 8), np.float32))


# --- compute-sanitizer, with a script in its place

MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at _ZN6layers7dropout14dropout_kernelB2v1B40c8tJTIcFHzwl2ILiE5ArrayIf+0x180
=========     by thread (1,0,0) in block (0,0,0)
=========     Access to 0x7f5604200404 is out of bounds
=========
========= Invalid __global__ read of size 4 bytes
=========     at _ZN6layers7dropout14dropout_kernelB2v1B40c8tJTIcFHzwl2ILiE5ArrayIf+0x180
=========     by thread (2,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at _ZN5tiled27tiled_forward_scalar_kernelB2v1
=========     and Read access at _ZN5tiled27tiled_forward_scalar_kernelB2v1+0x90
=========
========= Warning: Race reported between Write access at lrn::lrn_forward_kernel[abi:v1]+0x30
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
NAMELESS = """\
========= COMPUTE-SANITIZER
========= Target application terminated before first instrumented API call
=========
"""
KERNELS = {
    *("dropout_kernel", "bias_relu_dropout_kernel", "lrn_forward_kernel"),
    *("tiled_forward_scalar_kernel", "conv_forward_kernel"),
}


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (MEMCHECK, {"dropout_kernel": 2}),
        (RACECHECK, {"tiled_forward_scalar_kernel": 1, "lrn_forward_kernel": 1}),
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", {}),
        ("", {}),
    ],
)
def test_reports_are_counted_by_kernel(log, found):
    assert gpu_checks.reports(log, KERNELS) == (Counter(found), [])


def test_a_report_that_names_no_kernel_is_not_lost():
    nameless = "Target application terminated before first instrumented API call"
    assert gpu_checks.reports(NAMELESS, KERNELS) == (Counter(), [nameless])


@pytest.fixture
def under_tool(tmp_path, monkeypatch):
    """Calls `under_sanitizer` with a tool that writes `log` where it is told to, and ends so."""

    def run(log="", end="exit 0"):
        program = tmp_path / "compute-sanitizer"
        program.write_text(
            '#!/bin/sh\n[ "$1" = --tool ] && shift && [ "$1" = racecheck ] || exit 99\n'
            'while [ "$1" != --log-file ]; do shift; done\n'
            f"cat > \"$2\" <<'END'\n{log}END\n"
            'while [ "$1" != --only ]; do shift; done\n[ "$2" = hostile ] || exit 99\n'
            f"echo '{{\"section\": 1}}'; echo '{{\"section\": 2}}'\n{end}\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(gpu_checks.sass, "find_tool", lambda name: str(program))
        options = SimpleNamespace(seed=1, device="cuda:0", limit=60)
        bench = SimpleNamespace(on_gpu=True)
        return gpu_checks.under_sanitizer(bench, options, "racecheck").notes()

    return run


def test_where_nothing_is_found_the_checks_are_counted(under_tool):
    assert under_tool() == {"checks": 2}


@pytest.mark.parametrize(
    ("log", "end", "why"),
    [
        (RACECHECK, f"exit {gpu_checks.FOUND}", "2 reports: .*lrn_forward_kernel: 1"),
        (NAMELESS, "exit 0", "1 reports: Target application terminated before first instrument"),
        ("", f"exit {gpu_checks.FOUND}", "^0 reports"),
        ("", "echo long; echo no memory >&2; exit 1", "^exit status 1: no memory"),
        ("", "exit 3", "^exit status 3: "),
    ],
)
def test_what_a_tool_finds_or_breaks_is_a_failure(log, end, why, under_tool):
    with pytest.raises(ValueError, match=why):
        under_tool(log, end)


def test_without_the_tool_or_a_gpu_it_is_dropped(monkeypatch):
    for program, why in ((None, "compute-sanitizer is missing: pip"), ("/bin/true", "no GPU")):
        monkeypatch.setattr(gpu_checks.sass, "find_tool", lambda name, found=program: found)
        with pytest.raises(Dropped, match=why):
            gpu_checks.under_sanitizer(bench_on("cpu"), None, "memcheck")


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


def test_the_best_of_the_medians_joins_what_was_known(tmp_path, monkeypatch):
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"sm_80": {"a": LARGE}, "sm_90": {"a": LARGE, "z": SMALL}}))
    monkeypatch.setattr(gpu_stages, "capability", lambda device: (9, 0))
    gpu_stages.write_tiles(TIMED, bench_on("cpu"), path)
    expected = {"sm_80": {"a": LARGE}, "sm_90": {"a": SMALL, "b": LARGE, "z": SMALL}}
    assert tile_table.read(path) == expected
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a table of tiles"):
        gpu_stages.write_tiles(TIMED, bench_on("cpu"), path)


@pytest.mark.parametrize(
    ("device", "names"), [("cuda:0, NVIDIA H200", ["tf32 128", "bf16 1024"]), ("cuda:0, A100", [])]
)
def test_predictions_are_by_the_names_that_launches_are_timed_by(device, names, monkeypatch):
    def step(machine, precision, batch, recipe):
        assert machine == "H200" and recipe == "robust"
        kernels = lrn.lrn_forward_kernel, lrn.lrn_forward_kernel, None
        return [
            SimpleNamespace(launch=SimpleNamespace(kernel=kernel), seconds=1e-3 * batch)
            for kernel in kernels
        ]

    monkeypatch.setattr("gpu_model.step", step)
    monkeypatch.setattr("gpu_model.sass.missing_tools", list)
    monkeypatch.setattr(gpu_stages, "Device", lambda name: device)
    found = gpu_stages.predictions("cuda:0")
    assert list(found) == names
    if names:
        assert found["tf32 128"] == {"lrn_forward_kernel": 256.0, "product": 128.0}


@pytest.fixture
def one_tile(cuda_device):
    return gpu_bench.bench_and_clock("j", "cuda:0", True, 8)


def test_both_tiles_take_turns_for_every_product_of_a_step(one_tile):
    cases = list(gpu_cases.tile_cases(one_tile[0], (2, 3)))
    keys = list(dict.fromkeys(case.what for case in cases))
    assert KEY in keys and len(keys) == 2 * 2 * 2  # no dL/dx of the first layer
    of_one = [case.who for case in cases if case.what == KEY]
    assert of_one == [LARGE, SMALL] * gpu_cases.ROUNDS


def test_tiles_that_disagree_are_not_timed(one_tile, monkeypatch):
    forward = gpu_cases.tensor_forward

    def wrong(*arguments, tile, **options):
        forward(*arguments, tile=tile, **options)
        arguments[3][0, 0, 0, 0] += tile == SMALL

    monkeypatch.setattr(gpu_cases, "tensor_forward", wrong)
    case = next(case for case in gpu_cases.tile_cases(one_tile[0], (2,)) if case.what == KEY)
    with pytest.raises(
        ValueError, match="the tiles, or rounding before the product, give different bits"
    ):
        case.make()
