"""`python -m tinyconv step`: it stops in the thread that owns the output, in any kernel."""

import io
import pdb
import re
import sys

import numpy as np
import planted
import pytest
from simulated import ROOT, line_of

from layers import max_pool
from layers.fast.conv import shared_memory
from tinyconv.lab.cases import CASES, launches
from tinyconv.lab.stepping import call_with_breakpoint, step
from tinyconv.tools.command_line import main


@pytest.fixture
def typed(monkeypatch, capsys):
    """A function: run something while these lines are typed; what it prints, cut at the prompts."""

    def run(lines, function, *arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = function(*arguments)
        out, err = capsys.readouterr()
        assert not err
        return status, out.split("(Pdb) ")

    return run


def test_the_owner_of_an_output_of_max_pooling(typed):
    lines = [*["n"] * 7, "p n, p, q, c", "c"]
    status, said = typed(lines, main, ["step", "max_pool", "--output", "1,2,3,0"])
    assert status == 0
    assert said[0].startswith("MaxPool2D 3, stride 2, 2×7×9×8\n")
    assert "y[1, 2, 3, 0] is written by\nthread (56, 0, 0) of block (1, 0, 0)" in said[0]
    assert "x[1, 4, 6, 0], x[1, 4, 7, 0]" in said[0] and "and 3 more\n" in said[0]
    assert "layers/max_pool.py:" in said[0] and "run this line and show the next" in said[0]
    assert said[8].strip() == "(1, 2, 3, 0)"


@pytest.mark.full
def test_stepping_over_barriers_stays_in_the_thread(typed):
    line = line_of(shared_memory.shared_forward_kernel, "total += ")
    lines = [f"until {line}", "p ty, tx, k", "n", "n", "p ty, tx, k", "q"]
    status, said = typed(lines, main, ["step", "shared_forward_kernel", "--output", "1,2,3,0"])
    assert status == 0 and "16 elements of the shared array of line" in said[0]
    assert f"shared_memory.py({line})shared_forward_kernel()" in said[1]
    assert said[2] == said[5] == "(11, 0, 0)\n"
    assert said[-1].strip() == "stopped; the kernel has not finished"


@pytest.mark.parametrize("name", ["lrn_backward_kernel", "sgd", "crop", "lrn_rows_forward_kernel"])
def test_any_kernel_of_the_project(name, typed):
    status, said = typed(["p cuda.threadIdx.x", "c"], main, ["step", name])
    assert status == 0 and "is written by\nthread (" in said[0] and said[1].strip().isdigit()


def test_a_kernel_of_ones_own(typed, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(
        "import numpy as np\nfrom numba import cuda as gpu\n\n@gpu.jit\ndef halve(x):\n"
        "    i = gpu.grid(1)\n    if i < x.size:\n        x[i] /= 2\n\n"
        "halve[2, 4](np.arange(7.0))\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    status, said = typed(["n", "n", "p i, x[i]", "n", "p x[i]", "c"], main,
                         ["step", "my.py:halve", "--output", "5"])  # fmt: skip
    assert status == 0 and "x[5] is written by\nthread (1, 0, 0) of block (1, 0, 0)" in said[0]
    # Run once before it is stepped through, and restored.
    assert said[3].strip() == "(5, 5.0)" or "(5, np.float64(5.0))" in said[3]
    assert "2.5" in said[5]


def test_a_kernel_that_fails_can_be_stepped_through_up_to_there(typed):
    x, y = np.ones((2, 40), np.float32)
    with pytest.raises(IndexError):
        typed(["c"], step, planted.unguarded_edge, 1, 64, (x, y), "y", (3,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lrm"], "no layer or kernel is called 'lrm': did you mean lrn"),
        (["tensor"], "no layer or kernel is called 'tensor': choose from tensor_tf32, tensor_tf32"),
        (["lrn", "--output", "a"], "--output is numbers such as 1,2,3,0, not 'a'"),
        (["lrn", "--output", "1,2,3,0"], "y has the shape (18, 16): there is no element 1,2,3,0"),
        (["max_pool", "--output", "2,0,0,0"], "but 0,0,0,0 to 1,2,3,7 (--shape SHAPE makes"),
        (["max_pool", "--output=-1,0,0,0"], "there is no element -1,0,0,0"),
        (["max_pool", "--array", "z"], "has no array 'z', only x, y, winner"),
        (["lrn", "--array", "dx", "--output", "18,0"], "dx has the shape (18, 16): there is no"),
        (["max_pool", "--array", "x"], "no thread of max_pool_forward_kernel writes x[0, 0, 0, 0]"),
        (["max_pool", "--shape", "1"], "--shape of max_pool is positive numbers"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, said, capsys):
    assert main(["step", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_start_md_names_the_line_after_the_maximum_is_known():
    start = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    lines = (ROOT / "layers" / "max_pool.py").read_text(encoding="utf-8").splitlines()
    number = int(re.search(r"`until (\d+)`", start)[1])
    assert lines[number - 1].strip() == "value = x[n, h, w, c]"


def test_an_unknown_option_is_said_with_the_usage_of_the_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["step", "lrn", "--orders", "3"])
    said = capsys.readouterr().err
    assert said.startswith("usage: tinyconv step") and "arguments: --orders 3" in said


def test_a_launch_that_writes_nothing():
    with pytest.raises(ValueError, match="this launch writes no array"):
        step(planted.writes_nothing, 1, 1, (np.zeros(1), np.ones(1)))


@pytest.mark.parametrize("name", ["max_pool_forward_kernel", "shared_forward_kernel"])
def test_pdb_takes_a_kernels_name(name, typed):
    """`b kernel, condition`, as examples/step_through_lrn.py says."""
    kernel = CASES[name].kernel
    launch = next(each for group in ("max_pool", "shared") for each in launches(group)
                  if each.name == name)  # fmt: skip

    def run():
        debugger = pdb.Pdb(skip=["layers.simulator*", "numba*"])
        debugger.set_trace()
        kernel[launch.grid, launch.block](*launch.args)
        debugger.clear_all_breaks()
        debugger.set_quit()

    condition = "cuda.threadIdx.x == 3 and cuda.threadIdx.y == 0 and cuda.blockIdx.x == 0"
    lines = [f"b kernel, {condition}", "c", "p cuda.threadIdx.x, cuda.blockIdx.x", "clear 1", "c"]
    _, said = typed(lines, run)
    assert "Breakpoint 1 at " in said[1] and f"{name}()" in said[2] or "kernel()" in said[2]
    assert said[3].strip() == "(3, 0)"


def test_afterwards_nothing_is_traced_and_no_breakpoint_is_left():
    kernel, x = max_pool.max_pool_forward_kernel, np.ones((1, 3, 3, 1), np.float32)
    y, winner = np.zeros((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1, 1), np.int32)
    call_with_breakpoint(kernel, "False", kernel[1, 32], x, y, winner, 3, 2)
    assert y[0, 0, 0, 0] == 1 and sys.gettrace() is None and not pdb.Pdb().get_all_breaks()
