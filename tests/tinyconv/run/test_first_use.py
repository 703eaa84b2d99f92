"""How a program begins: any text can be printed, and Ctrl-C is one line at any moment."""

import io
import os
import signal
import sys

import pytest
from marks import long
from programs import environment, run_program

from tinyconv.run.first_use import compilation_announced


def interrupted(tmp_path, script, module, **more):
    """Run a script in which the import of `module` receives SIGINT: (exit status, stderr)."""
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "here.py").write_text("x = 1\n")
    # A finder that is asked for every module stands where the signal arrives.
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also in the background
        "class Finder:\n    @staticmethod\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    more["PYTHONPATH"] = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    status, _, said = run_program(tmp_path / "script.py", **more)
    return status, said


@pytest.mark.parametrize(
    "module", ["layers.conv", long("numba.core"), long("tinyconv.run.training"), long("here")]
)
def test_ctrl_c_while_importing_is_one_line(tmp_path, module):
    found = interrupted(tmp_path, "import sys\nimport tinyconv\nfrom here import x\n", module)
    assert found == (-signal.SIGINT, "interrupted while importing\n")


def test_of_several_ranks_one_says_it(tmp_path):
    for name in "PMI_RANK", "OMPI_COMM_WORLD_RANK":
        found = interrupted(tmp_path, "import tinyconv\n", "layers.conv", **{name: "1"})
        assert found == (-signal.SIGINT, "")


def test_ctrl_c_in_the_code_of_a_script_is_a_traceback_as_ever(tmp_path):
    script = "import signal\nimport tinyconv\nx = 1\nsignal.raise_signal(signal.SIGINT)\n"
    status, said = interrupted(tmp_path, script, "")
    assert status == -signal.SIGINT and said.startswith("Traceback") and "line 4" in said


def test_ctrl_c_in_a_program_is_one_line(capsys):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a debugger may have left its own
    with pytest.raises(SystemExit) as error, compilation_announced():
        signal.raise_signal(signal.SIGINT)
    assert error.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1251"])
def test_any_text_can_be_printed(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with compilation_announced():
        print("猫 ×", flush=True)
    assert written.getvalue().startswith(b"\\u732b ")
