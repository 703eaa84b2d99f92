"""Emulated intrinsics: modules register themselves, and the simulator knows none by name."""

import ast
import importlib
import re
import sys
import textwrap

import numpy as np
import pytest
from numba import cuda
from simulated import ROOT, line_of, run_script

from layers import simulator
from layers.simulator import SimulatorDeadlockError, SimulatorError, intrinsics

REGISTERED = """
    from layers.simulator import register_intrinsics, running

    register_intrinsics(__name__)

    def exchange(x, i, j):
        x[i], x[j] = x[j], x[i]

    def fail(x):
        raise ValueError("this instruction fails")

    def sum_of_warp(value):
        return running().collective("sum_of_warp", value, lambda parts: [sum(parts)] * len(parts))

    def inner(value):
        return sum_of_warp(value)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Imports a module from outside the project, with or without its registration."""
    monkeypatch.setattr(intrinsics, "FILES", set(intrinsics.FILES))
    monkeypatch.setattr(intrinsics, "MODULES", list(intrinsics.MODULES))
    monkeypatch.syspath_prepend(tmp_path)

    def load(name, register=True):
        source = textwrap.dedent(REGISTERED)
        if not register:
            source = source.replace("register_intrinsics(__name__)", "")
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load


@cuda.jit
def use(module, x, kind):
    i = cuda.threadIdx.x
    if kind == 0:
        module.exchange(x, 2 * i, 2 * i + 1)  # exchanges
    if kind == 1:
        module.fail(x)  # fails
    if kind == 2:
        x[i] = module.inner(i)  # meets
    if kind == 3 and i != 5:
        module.inner(i)  # waits


def test_errors_name_the_line_that_calls_the_intrinsic(outside):
    for register in (True, False):
        module = outside(f"outside_{register}", register)
        for kind, mark, failing in ((0, "# exchanges", "x[i], x[j]"), (1, "# fails", "raise")):
            with pytest.raises(SimulatorError) as caught:
                use[1, 4](module, np.zeros(5), kind)
            if register:
                assert (caught.value.file, caught.value.line) == (__file__, line_of(use, mark))
            else:
                lines = textwrap.dedent(REGISTERED).splitlines()
                line = next(n for n, text in enumerate(lines, 1) if failing in text)
                assert (caught.value.file, caught.value.line) == (module.__file__, line)


def test_accesses_belong_to_the_line_that_calls_the_intrinsic(outside):
    for register in (True, False):
        module = outside(f"outside_{register}", register)
        x = np.arange(8)
        with simulator.record() as traces:
            use[1, 4](module, x, 0)
        assert x.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
        assert len(traces[0].accesses) == 16
        lines = {(each.file, each.line) for each in traces[0].instructions}
        if register:
            assert lines == {(__file__, line_of(use, "# exchanges"))}
        else:
            assert {file for file, _ in lines} == {module.__file__}


def test_a_collective_is_identified_by_the_call_in_the_kernel(outside):
    x = np.zeros(32, int)
    use[1, 32](outside("outside_collective"), x, 2)
    assert (x == sum(range(32))).all()
    with pytest.raises(SimulatorDeadlockError) as caught:
        use[1, 32](outside("outside_collective"), x, 3)
    (wait,) = caught.value.waits
    assert (wait.call, wait.file) == ("sum_of_warp()", __file__)
    assert wait.line == line_of(use, "# waits") and len(wait.threads) == 31


def test_pdb_steps_over_an_intrinsic(tmp_path):
    (tmp_path / "outside_pdb.py").write_text(textwrap.dedent(REGISTERED))
    script = tmp_path / "debugged.py"
    script.write_text(
        textwrap.dedent("""
            import numpy as np
            from numba import cuda
            from layers import simulator
            from outside_pdb import exchange

            simulator.install()

            @cuda.jit
            def kernel(x):
                breakpoint()
                y = x[0]
                exchange(x, 0, 1)
                x[2] = y

            x = np.arange(3)
            kernel[1, 1](x)
            print("result", x.tolist())
        """)
    )
    # From Python 3.13 on `breakpoint()` stops at its own line, before that at the next.
    typed = [*["n"] * (sys.version_info >= (3, 13)), "s", "s", "c"]
    shown = run_script(script, typed="\n".join(typed) + "\n").split("(Pdb) ")
    assert "-> exchange(x, 0, 1)" in shown[-3]
    assert "-> x[2] = y" in shown[-2]
    assert shown[-1].startswith("result [1, 0, 0]")


def test_registering_again_changes_nothing(outside):
    outside("outside_once")
    before = list(intrinsics.MODULES), set(intrinsics.FILES)
    intrinsics.register_intrinsics("outside_once")
    assert before == (intrinsics.MODULES, intrinsics.FILES)
    assert intrinsics.is_skipped("outside_once") and not intrinsics.is_skipped("outside_once_more")
    assert "outside_once" in intrinsics.skip_patterns()


@pytest.mark.parametrize("name", ["no_such_module", "sys"])
def test_only_a_module_with_a_file_can_be_registered(name):
    with pytest.raises(ValueError, match=f"no module '{name}' with a source file"):
        intrinsics.register_intrinsics(name)


# --- the simulator imports and names nothing above it

FOLDER = ROOT / "layers" / "simulator"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_simulator_knows_no_file_above_it(file):
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            assert package != "tinyconv"
            assert package != "layers" or rest.split(".")[0] == "simulator"
    assert not re.search(r"\blayers[./](?!simulator\b)\w", text)
    assert "tinyconv" not in text and "parents[" not in text
    own = {path.name for path in FILES}
    files = [*(ROOT / "layers").rglob("*.py"), *(ROOT / "tinyconv").rglob("*.py")]
    above = {path.name for path in files if path.parent != FOLDER} - own
    assert {"ptx.py", "mma.py", "device.py"} <= above
    assert not above.intersection(re.findall(r"\w+\.py\b", text))
