"""Every program of docs/lab.md prints what stands under it.

    NUMBA_ENABLE_CUDASIM=1 PYTHONPATH=tests/helpers python tests/docs/test_lab.py

writes into the document what its programs print now.
"""

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

import pytest
from simulated import ROOT

DOCUMENT = ROOT / "docs" / "lab.md"
PROGRAM = re.compile(r"^```python\n(.*?)^```\n\n^```\n(.*?)^```\n", re.S | re.M)
PROGRAMS = PROGRAM.findall(DOCUMENT.read_text(encoding="utf-8"))


def printed(program: str) -> str:
    """What a program prints that stands in lab.py, in the folder from which it is started."""
    here = os.getcwd()
    output = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(output):
        file = Path(folder).resolve() / "lab.py"
        file.write_text(program, encoding="utf-8")
        os.chdir(folder)
        try:
            exec(compile(program, file, "exec"), {"__name__": "__main__"})
        finally:
            os.chdir(here)
    return output.getvalue()


@pytest.fixture(autouse=True)
def checked_launches() -> None:
    """Instead of the one in tests/conftest.py: the document shows kernels with faults."""


@pytest.mark.parametrize("program, below", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_print_what_stands_under_them(program, below):
    assert printed(program) == below


def test_every_program_was_found():
    assert len(PROGRAMS) == DOCUMENT.read_text(encoding="utf-8").count("```python") == 3


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    filled = PROGRAM.sub(lambda m: f"```python\n{m[1]}```\n\n```\n{printed(m[1])}```\n", text)
    DOCUMENT.write_text(filled, encoding="utf-8")
