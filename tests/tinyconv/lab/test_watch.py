"""One's own kernels, checked where they are launched: context, decorator, and scripts."""

import sys
import types

import numpy as np
import planted
import pytest
from numba import cuda, float32
from simulated import line_of

from layers import simulator
from tinyconv.lab import watch
from tinyconv.lab.watch import first_launch, laboratory, named_script, run_script
from tinyconv.tools.command_line import main

X = np.arange(planted.N, dtype=np.float32)


@cuda.jit
def columns_of(x, y):
    tile = cuda.shared.array((32, 32), float32)
    i = cuda.threadIdx.x
    for row in range(32):
        tile[i, row] = x[i, row]
    cuda.syncthreads()
    y[i] = tile[i, 0]


def test_a_launch_in_the_context_runs_is_checked_and_priced(capsys):
    x, y = np.random.default_rng(0).random((2, 32, 32), np.float32)
    with laboratory() as reports:
        columns_of[1, 32](x, y[0])
    assert reports[0].ok and (y[0] == x[:, 0]).all()
    printed = capsys.readouterr().out
    assert "columns_of, grid (1, 1, 1), block (32, 1, 1)" in printed and "nothing found" in printed
    assert "32 sectors for each read of x at " in printed and "32 lanes in a queue" in printed
    assert (
        f"test_watch.py:{line_of(columns_of, 'tile[i, row]')}: tile[i, row] = x[i, row]" in printed
    )
    assert "that must move" in printed and ".html" not in printed


def test_faults_are_printed_once_and_the_script_continues(capsys):
    y = np.zeros_like(X)
    with laboratory(orders=0) as reports:
        for _ in range(3):
            planted.missing_barrier[1, planted.N](X, y)
        planted.stencil[1, planted.N](X, y)
    assert [len(report.issues) for report in reports] == [1, 1, 1, 1]
    printed = capsys.readouterr().out
    assert printed.count("race: [") == 1
    # The edges of y are left out, and y is an output, as it is never read.
    assert reports[3].issues[0].kind == "missing" and reports[3].issues[0].count == 2


@pytest.mark.parametrize(
    ("kernel", "size", "found"),
    [(planted.unguarded_edge, 40, "index"), (planted.output_unwritten, 64, None)],
)
def test_what_is_written_and_never_read_is_an_output(kernel, size, found):
    with laboratory(orders=0) as (reports):
        kernel[1, planted.N](X[:size], np.zeros(size, np.float32))
    assert [issue.kind for issue in reports[0].issues] == ([found] if found else [])
    with laboratory(["y"], orders=0) as reports:
        planted.output_unwritten[1, planted.N](X, np.zeros_like(X))
    assert [issue.kind for issue in reports[0].issues] == ["unwritten"]


def test_a_decorated_kernel(capsys, tmp_path):
    @watch.watch(orders=1, drawn=tmp_path / "pages")
    @cuda.jit
    def double(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = 2 * x[i]

    y = np.zeros(5, np.float32)
    double[1, 32](X[:5], y)
    assert y.tolist() == [0, 2, 4, 6, 8] and double.__name__ == "double"
    printed = capsys.readouterr().out
    assert "1 other orders: nothing found" in printed
    assert f"all its steps: {tmp_path / 'pages' / 'double.html'}" in printed
    assert "double" in (tmp_path / "pages" / "double.html").read_text("utf-8")
    assert isinstance(watch.watch(double), watch.Watched)


def test_a_notebook_shows_the_page(monkeypatch, capsys):
    shown = []
    shell = types.SimpleNamespace(kernel=1)
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    show = types.SimpleNamespace(HTML=str, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", show)
    y = np.zeros_like(X)
    with laboratory():
        planted.lanes_synced[1, planted.N](X, y)
    (page,) = shown
    assert page.startswith("<iframe srcdoc=") and "lanes_synced" in page and "<script" not in page
    monkeypatch.setattr(watch, "page_of", lambda trace, kernel: 1 / 0)
    with laboratory(drawn=False):
        planted.lanes_synced[1, planted.N](X, y)


def test_what_is_too_large_is_not_drawn(capsys, tmp_path):
    x = np.zeros(30_000, np.float32)
    with laboratory(orders=0, drawn=tmp_path):
        planted.unguarded_edge[300, 100](x, x.copy())
    assert "no page: unguarded_edge touches 60,000 elements" in capsys.readouterr().out


def test_on_a_gpu_launches_are_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(simulator, "installed", False)
    monkeypatch.setattr(simulator, "install", lambda: "off (set NUMBA_...)")
    with laboratory() as reports:
        pass
    assert reports == []
    assert "launches are not checked: the simulator is off" in capsys.readouterr().out


# --- scripts

SCRIPT = """\
import sys
import numpy as np
from numba import cuda

@cuda.jit
def fails(x):
    x[cuda.grid(1)] = 1

@cuda.jit
def scale(x, y, by):
    i = cuda.grid(1)
    if i < x.size:
        y[i] = by * x[i]

@cuda.jit
def sums(x, y):
    i = cuda.grid(1)
    y[i] = x[i, 0] + x[i, 1]

x = np.arange(6, dtype=np.float32)
assert sys.argv == [__file__]
fails[1, 7](np.zeros(6))
scale[1, 32](x, np.zeros_like(x), 3)
sums[1, 3](x.reshape(3, 2), np.zeros(3, np.float32))
print("the end")
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(SCRIPT, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my.py"


def test_all_launches_of_a_script_are_checked(script, capsys):
    assert main(["check", "my.py"]) == 1
    printed = capsys.readouterr().out
    assert "IndexError: x[6] of shape (6,)" in printed and "my.py:7: x[cuda.grid(1)] = 1" in printed
    assert "  hint: which threads have no element? They have to return before" in printed
    assert "the end" in printed and "3 launches, 1 found" in printed
    assert main(["check", "my.py:sums", "--orders", "1"]) == 2  # another kernel ends it
    script.write_text(SCRIPT.replace("fails[1, 7]", "fails[1, 6]"), "utf-8")
    assert main(["check", "my.py:sums", "--orders", "1"]) == 0
    assert "1 launch, nothing found" in capsys.readouterr().out


def test_a_scripts_kernel_is_measured_and_drawn(script, capsys):
    assert main(["traffic", "my.py:sums"]) == 0
    printed = capsys.readouterr().out
    assert "18: y[i] = x[i, 0] + x[i, 1]" in printed and "the end" not in printed
    assert main(["draw-kernel", "my.py:scale"]) == 0
    assert "scale" in (script.parent / "scale.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "other.py"], "there is no file other.py"),
        (["check", "my.py:other"], "SimulatorIndexError"),
        (["traffic", "my.py:other"], "my.py launches no kernel other"),
        (["check", "my.py", "--shape", "1,2"], "--shape is for the layers of this project"),
        (["traffic", "my.py", "--shape", "1,2"], "--shape is for the layers of this project"),
        (["draw-kernel", "my.py", "--shape", "1,2"], "--shape is for the layers of this project"),
        (["step", "my.py", "--shape", "1,2"], "--shape is for the layers of this project"),
        (["draw-kernel", "broken.py:x"], "broken.py:2: NameError: name 'y' is not defined"),
    ],
)
def test_what_is_wrong_with_a_script_is_one_line(arguments, said, script, capsys):
    (script.parent / "broken.py").write_text("x = 1\ny\n", "utf-8")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_script_is_found_by_its_name(script):
    assert named_script("lrn") is None and named_script("lrn_forward_kernel") is None
    assert named_script("my.py:sums")[1] == "sums" and named_script("my.py")[1] is None
    assert first_launch(*named_script("my.py:scale")).args[2] == 3
    (script.parent / "stops.py").write_text("raise SystemExit(3)\n", "utf-8")
    run_script(script.parent / "stops.py")
