"""What runs in the simulator and on no GPU is named, with the compiler's words at its line."""

import shutil
import threading
from concurrent.futures import Future

import numpy as np
import planted
import pytest
from numba import cuda, float32
from simulated import line_of

from layers import simulator
from tinyconv.lab import compiler
from tinyconv.lab.cases import CASES, launches
from tinyconv.lab.checks import check_kernel

X = np.ones(8, np.float32)


@cuda.jit(device=True)
def tripled(value):
    return value * 3


@cuda.jit
def fine(x, y):
    i = cuda.threadIdx.x
    y[i] = tripled(x[i])


@cuda.jit
def asks_a_dictionary(x, y):
    i = cuda.threadIdx.x
    names = {1: 2}
    y[i] = x[i] * names[1]  # here


@cuda.jit
def makes_a_string(x, y):
    i = cuda.threadIdx.x
    text = f"{i}"  # here
    y[i] = x[i] + len(text)


@cuda.jit
def allocates(x, y):
    i = cuda.threadIdx.x
    part = np.zeros(3)  # here
    y[i] = x[i] + part[0]


@cuda.jit
def knows_too_much(x, y):
    i = cuda.threadIdx.x
    y[i] = x.data[i]  # here


@cuda.jit
def size_of_shared_memory_in_a_variable(x, y):
    i = cuda.threadIdx.x
    tile = cuda.shared.array(x.size, float32)  # here
    tile[i] = x[i]
    y[i] = tile[i]


@cuda.jit
def in_double(x, y):
    i = cuda.threadIdx.x
    value = x[i] + float32(0.5)
    y[i] = value * 0.1 + 1  # here


FAULTY = (
    asks_a_dictionary,
    makes_a_string,
    allocates,
    knows_too_much,
    size_of_shared_memory_in_a_variable,
)


@pytest.mark.parametrize("kernel", FAULTY, ids=lambda kernel: kernel.__name__)
def test_what_no_gpu_could_run_is_an_issue_at_its_line(kernel, compiles):
    report = check_kernel(kernel, 1, 8, (X, np.zeros_like(X)), ("y",), orders=0)
    (issue,) = report.issues  # the simulator finds nothing
    assert issue.kind == "compile" and issue.lines[0].line == line_of(kernel, "# here")
    assert "the compiler makes no code for a GPU" in str(report) and "1 found" in str(report)


def test_a_kernel_that_compiles_with_its_device_functions(compiles):
    report = check_kernel(fine, 1, 8, (X, np.zeros_like(X)), ("y",), orders=0)
    assert report.ok and report.not_compiled is None and "not compiled" not in str(report)


def test_what_it_computes_in_float64_is_told_by_line(compiles):
    report = check_kernel(in_double, 1, 8, (X, np.zeros_like(X)), ("y",), orders=0)
    assert report.ok
    assert [line.line for line in report.doubles] == [line_of(in_double, "# here")]


def test_an_argument_without_a_type(compiles):
    report = check_kernel(planted.unguarded_edge, 1, 4, (X, {0: 1}), orders=0)
    assert report.issues[0].kind == "compile"
    assert "an argument has no type there" in report.issues[0].message


def test_kernels_of_the_table_compile_with_their_intrinsics(compiles):
    launch = next(iter(launches("tensor_bf16")))
    assert launch.check(orders=0).ok
    case = CASES["lrn_forward_kernel"]
    types = case.argument_types("float32")
    assert compiler.submit_types(case.kernel, types) is compiler.submit_types(case.kernel, types)


def test_without_a_compiler_the_report_says_so(compiles, monkeypatch):
    monkeypatch.setattr(compiler, "_ask", lambda kernel, types: compiler.Verdict(
        {"unable": f"no compiler for GPUs is installed: {compiler.HINT}"}, kernel))  # fmt: skip
    report = check_kernel(planted.stencil, 1, 8, (X, np.zeros_like(X)), orders=0)
    assert report.ok and "nothing found (not compiled: no compiler for GPUs" in str(report)
    assert compiler._is_missing("libNVVM cannot be found")


def test_a_compiler_that_dies_is_no_fault_of_the_kernel(compiles, monkeypatch):
    def ended(pipe):
        return None

    monkeypatch.setattr(compiler, "receive", ended)
    monkeypatch.setattr(compiler, "send", lambda pipe, content: None)
    verdict = compiler._ask(planted.append, b"")
    assert verdict.unable and not verdict.issues


def test_a_request_is_complete_before_the_kernel_runs(compiles, monkeypatch):
    """While it runs its globals are the simulator's, which are not those of the compiler."""

    class Late:
        """A worker that is busy until the answer is needed."""

        def submit(self, function, *arguments):
            future = Future()
            future.result = lambda: function(*arguments)
            return future

    monkeypatch.setattr(compiler, "_worker", Late)
    answers = []
    monkeypatch.setattr(simulator.scheduler.Launch, "run", lambda self: (
        self.patch_cuda(self.fn), answers.append(pending.result())))  # fmt: skip
    pending = compiler.submit(planted.append_atomically, (X, X, X.astype(np.int32)))
    original = planted.append_atomically.fn.__globals__["cuda"]
    planted.append_atomically[1, 8](X, X, X)
    planted.append_atomically.fn.__globals__["cuda"] = original
    assert answers[0].unable is None


def test_a_global_that_cannot_go_to_another_process(compiles):
    lock = threading.Lock()
    kernel = cuda.jit(lambda x: lock.acquire())
    assert "TypeError" in compiler.submit(kernel, (X,)).result().unable


def test_the_folder_in_which_it_began_may_go(compiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiler._process.cache_clear()
    assert compiler.submit(planted.twice_in_turn, (X, X)).result().unable is None
    monkeypatch.undo()
    shutil.rmtree(tmp_path)
    monkeypatch.setattr(compiler, "enabled", True)
    assert not compiler.submit(planted.missing_writer, (X, X)).result().issues
