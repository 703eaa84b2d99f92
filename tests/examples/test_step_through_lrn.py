"""The debugging session of docs/lrn.md, typed again, and the other ways out of the script."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="the simulator needs greenlet")
if not hasattr(os, "fork"):
    pytest.skip("needs POSIX processes", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "step_through_lrn.py"
PROMPT = "(Pdb) "


# Importing, and Numba's first call of a function, take a second: one process does both, and forks
# for each session. What is typed, and what is printed, are files in the folder that it is told.
SERVER = """
import json, os, pdb, runpy, sys
import numpy
from layers.random_bits import random_words_host
random_words_host(*map(numpy.uint64, range(4)))

for line in sys.stdin:
    folder, *sys.argv = json.loads(line)
    if not (child := os.fork()):
        for number, name in enumerate(("typed", "printed", "errors")):
            how = os.O_RDWR | os.O_CREAT
            os.dup2(os.open(os.path.join(folder, name), how), number)
        sys.stdin = open(0, encoding="utf-8")
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function: the script's status and what it printed, given arguments and typed lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:

        def session(*arguments, typed=()):
            folder = tmp_path_factory.mktemp("session")
            (folder / "typed").write_text("".join(f"{line}\n" for line in typed), "utf-8")
            process.stdin.write(json.dumps([str(folder), str(SCRIPT), *arguments]) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            return status, *((folder / n).read_text("utf-8") for n in ("printed", "errors"))

        yield session


@pytest.fixture
def answers(run):
    """A function: what the script printed first, and what after each line that was typed."""

    def session(*arguments, typed):
        status, printed, errors = run(*arguments, typed=typed)
        assert status == 0, errors
        return printed.split(PROMPT)

    return session


def in_the_document():
    text = (ROOT / "docs" / "lrn.md").read_text(encoding="utf-8")
    return re.search(r"<!-- transcript:.*?-->\n```\n(.*?)```\n", text, re.S)[1]


def comparable(text):
    """Without what may differ: folders, line numbers, trailing spaces."""
    text = text.replace(f"{ROOT}{os.sep}", "")
    text = re.sub(r"(\.py)\(\d+\)", r"\1(...)", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def test_the_transcript_in_the_document_is_what_happens(answers):
    transcript = in_the_document()
    typed = re.findall(r"^\(Pdb\) (.*)$", transcript, re.M)
    assert len(typed) > 10
    first, *rest = answers(typed=typed)
    session = first + "".join(
        f"{PROMPT}{line}\n{answer.lstrip()}" for line, answer in zip(typed, rest, strict=True)
    )
    assert comparable(transcript) == comparable(session)


def test_what_is_printed_is_the_threads_own(answers):
    typed = ["n"] * 6 + ["p row, i", "p low, half", *["n"] * 5, "p total", "c"]
    _, *said = answers("--thread", "4", typed=typed)  # row 1, channel 0: its window is 2, 1
    assert said[6].strip() == "(1, 0)"
    assert said[7].strip() == "(0, 1)"
    assert "5.0" in said[13]
    assert "y[1, 3]             0.000000   0.000000   0e+00" in said[14]


def test_stepping_in_passes_over_the_simulator(answers):
    _, *said = answers(typed=["s", "s", "s", "q"])
    assert all("lrn_forward_kernel()" in answer for answer in said[:3])
    assert "index // x.shape[1]" in said[1]


def test_a_thread_without_an_element_goes_home(answers):
    _, *said = answers("--thread", "8", typed=["n", "p index, x.size", "n", "n", "c"])
    assert said[1].strip() == "(8, 8)"
    assert "-> return" in said[2] and "--Return--" in said[3]


def test_after_the_last_line_comes_the_next_thread(answers):
    _, *said = answers("--thread", "127", typed=["r", "n", "c"])  # there is none: back in Python
    assert "forward()" in said[1] and "return y" in said[1]
    assert "All threads have run" in said[2]
    _, *said = answers("--thread", "9", typed=["r", "n", "n", "p cuda.threadIdx.x", "c"])
    assert said[3].strip() == "10"


@pytest.mark.parametrize("typed", [["q"], []])
def test_leaving_early(typed, answers):
    _, *said = answers(typed=typed)
    assert said[-1].strip() == "stopped; the kernel has not finished"


def test_a_thread_that_is_not_in_the_block(run):
    status, _, errors = run("--thread", "128")
    assert status == 2
    assert "threads 0 to 127" in errors


def test_without_greenlet_one_line_says_so():
    start = "import runpy, sys; sys.modules['greenlet'] = None; "
    start += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)  # the script sees to it
    command = [sys.executable, "-c", start]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install greenlet" in done.stderr
    assert len(done.stderr.splitlines()) == 1
