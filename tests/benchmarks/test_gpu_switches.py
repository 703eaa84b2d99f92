"""benchmarks/gpu_switches.py: both values of each switch, and results that are wrong."""

import ast
import inspect
import sys
from pathlib import Path

import gpu_bench
import gpu_cases
import gpu_switches
import numpy as np
import pytest
from gpu_report import SWITCHES, switch_table
from runner import HostClock, Result, run_cases

from layers.fast import conv
from layers.fast.conv import ptx, tensor_core, tensor_gradients, tile_table

L1, TAPS_FIRST, CARVEOUT = SWITCHES
DEFAULTS = (
    *(tensor_core.tensor_forward, tensor_core.tensor_input_gradient),
    tensor_gradients.tensor_filter_gradient,
)


@pytest.fixture
def bench(cuda_device):
    return gpu_bench.bench_and_clock("k", "cuda:0", True, 8)[0]


def test_every_constant_that_a_gpu_is_to_decide_is_measured():
    found = []
    for path in Path(conv.__path__[0]).parent.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for constant, text in zip(body, body[1:], strict=False):
            said = " ".join(ast.unparse(text).replace("\\n", " ").split())
            if isinstance(constant, ast.Assign) and "For a GPU to decide" in said:
                found.append(f"{path.stem}.{constant.targets[0].id}")
    assert sorted(found) == sorted(SWITCHES)


@pytest.mark.parametrize("switch", SWITCHES)
def test_one_switch_is_turned_in_modules_of_its_own(switch):
    before = {name: module for name, module in sys.modules.items() if "fast.conv" in name}
    functions = gpu_switches.switched(switch)
    assert {name: module for name, module in sys.modules.items() if "fast.conv" in name} == before
    assert conv.tensor_core is tensor_core and conv.tile_table is tile_table
    assert [f.__name__ for f in functions] == [f.__name__ for f in DEFAULTS]
    for ours, default in zip(functions, DEFAULTS, strict=True):
        assert ours is not default
        for function, turned in ((default, ""), (ours, switch)):
            assert values_in(function) == {name: name != turned for name in SWITCHES}


def values_in(function):
    """The switches as this function's kernels, order of the taps, and launches have them."""
    space = function.__globals__
    copies = {closure_of(kernel)["copy"] for kernel in space["KERNELS"].values()}
    assert copies in ({ptx.cp_async_l1}, {ptx.cp_async})
    taps = {space["taps_first"](np.empty((1, 16), np.float32), 1, 2)}
    # The filters are rearranged in another module.
    rearranges = next(space[n] for n in ("filters_to_s2d", "image_to_s2d") if n in space)
    taps.add(rearranges.__globals__["taps_first"](np.empty((1, 16), np.float32), 1, 2))
    assert taps in ({16}, {0})
    carveout = space["ask_for_shared_memory"].__globals__["CARVEOUT"]
    return {L1: copies == {ptx.cp_async_l1}, TAPS_FIRST: taps == {16}, CARVEOUT: carveout}


def closure_of(kernel):
    return inspect.getclosurevars(getattr(kernel, "py_func", None) or kernel.fn).nonlocals


def test_each_share_has_one_switch_and_tf32_comes_first(bench):
    cases = list(gpu_switches.switch_cases(bench, 2))
    for number, switch in enumerate(SWITCHES):
        share = cases[number :: len(SWITCHES)]
        products = [f"{switch}, {p}: conv1 {d}" for p in ("TF32", "BF16") for d in DIRECTIONS]
        assert [case.what for case in share] == [name for name in products for _ in range(2)]
        assert [case.who for case in share] == ["True", "False"] * len(products)


DIRECTIONS = "forward", "filter gradient"  # no dL/dx of the first layer


def test_in_bf16_too_both_values_are_right(bench):
    cases = gpu_switches.switch_cases(bench, 1, ("bf16",))
    cases = [case for case in cases if case.what == f"{L1}, BF16: conv1 forward"]
    results = [r for r in run_cases(cases, HostClock(), 1e9) if isinstance(r, Result)]
    assert [(r.who, r.why) for r in results] == [("True", ""), ("False", "")]


@pytest.mark.parametrize(
    ("switch", "error", "message"),
    [
        (L1, 0, None),
        (L1, 1e-7, "tensor_tile.L1 = False gives other bits than the default"),
        (TAPS_FIRST, 1e-7, None),
        (TAPS_FIRST, 1e-2, "the result with tensor_tile.TAPS_FIRST turned is wrong by"),
        (CARVEOUT, 1e-7, "tile_table.CARVEOUT = False gives other bits"),
        (CARVEOUT, None, "tile_table.CARVEOUT = False gives other bits"),
    ],
)
def test_other_results_are_found(switch, error, message, bench, monkeypatch):
    def wrong(x, w, b, y, *_, **__):
        if error is not None:  # else nothing is written
            y[...] = 1
            y[0, 0, 0, 0] += error

    monkeypatch.setattr(gpu_cases, "tensor_forward", lambda x, w, b, y, *_, **__: y.fill(1))
    monkeypatch.setattr(gpu_switches, "switched", lambda _: (wrong, None, None))
    layer, shape, direction = next(gpu_cases.products_of(bench))
    make = gpu_switches.with_switch
    arguments = bench, layer, (2, *shape), direction, "tf32", switch, True
    if message is None:
        assert make(*arguments).run is not None
    else:
        with pytest.raises(ValueError, match=message):
            make(*arguments)


def test_sums_are_of_products_with_both_values():
    rows = [
        *timed("L1, TF32: a", True, 0.002, 0.001, 0.004),
        *timed("L1, TF32: a", False, 0.001),
        *timed("L1, TF32: b", True, 0.003),
        *timed("L1, TF32: b", False, 0.0035),
        *timed("L1, TF32: c", True, 1.0),
        *timed("L1, TF32: c", False),
        *timed("L1, BF16: a", True, 0.001),
        *timed("L1, BF16: a", False, 0.002),
        *timed("M, TF32: a", True),
        *timed("N, TF32: a", True),
        *timed("N, TF32: a", False),
    ]
    assert switch_table(rows).splitlines()[2:] == [
        "| L1, TF32 | True | False | 2 of 3 | 5.000 | 4.500 | False, by 10.0% |",
        "| L1, BF16 | True | False | 1 of 1 | 1.000 | 2.000 | True, by 50.0% |",
        "| M, TF32 | True |  | 0 of 1 |  |  |  |",
        "| N, TF32 | True | False | 0 of 1 |  |  |  |",
    ]


def timed(what, value, *seconds):
    return [Result("switches", what, str(value), list(seconds), why="" if seconds else "dropped")]
