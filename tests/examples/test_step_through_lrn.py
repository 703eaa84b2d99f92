"""The debugging session of docs/lrn.md, typed again, and the other ways out of the script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="the simulator needs greenlet")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "step_through_lrn.py"
PROMPT = "(Pdb) "


def run(*arguments, typed="", prelude=""):
    """The finished process; `prelude` is Python that runs in it before the script does."""
    start = f"import runpy, sys; sys.argv = sys.argv[1:]; {prelude}\n"
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-c", start, str(SCRIPT), *arguments],
        input="".join(f"{line}\n" for line in typed),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def answers(*arguments, typed):
    """What the script printed first, and what after each line that was typed."""
    done = run(*arguments, typed=typed)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(PROMPT)


def in_the_document():
    text = (ROOT / "docs" / "lrn.md").read_text(encoding="utf-8")
    return re.search(r"<!-- transcript:.*?-->\n```\n(.*?)```\n", text, re.S)[1]


def comparable(text):
    """Without what may differ: folders, line numbers, trailing spaces."""
    text = text.replace(f"{ROOT}{os.sep}", "")
    text = re.sub(r"(\.py)\(\d+\)", r"\1(...)", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def test_the_transcript_in_the_document_is_what_happens():
    transcript = in_the_document()
    typed = re.findall(r"^\(Pdb\) (.*)$", transcript, re.M)
    assert len(typed) > 10
    first, *rest = answers(typed=typed)
    session = first + "".join(
        f"{PROMPT}{line}\n{answer.lstrip()}" for line, answer in zip(typed, rest, strict=True)
    )
    assert comparable(transcript) == comparable(session)


def test_what_is_printed_is_the_threads_own():
    typed = ["n"] * 6 + ["p row, i", "p low, half", *["n"] * 5, "p total", "c"]
    _, *said = answers("--thread", "4", typed=typed)  # row 1, channel 0: its window is 2, 1
    assert said[6].strip() == "(1, 0)"
    assert said[7].strip() == "(0, 1)"
    assert "5.0" in said[13]
    assert "y[1, 3]             0.000000   0.000000   0e+00" in said[14]


def test_stepping_in_passes_over_the_simulator():
    _, *said = answers(typed=["s", "s", "s", "q"])
    assert all("lrn_forward_kernel()" in answer for answer in said[:3])
    assert "index // x.shape[1]" in said[1]


def test_a_thread_without_an_element_goes_home():
    _, *said = answers("--thread", "8", typed=["n", "p index, x.size", "n", "n", "c"])
    assert said[1].strip() == "(8, 8)"
    assert "-> return" in said[2] and "--Return--" in said[3]


def test_after_the_last_line_comes_the_next_thread():
    _, *said = answers("--thread", "127", typed=["r", "n", "c"])  # there is none: back in Python
    assert "forward()" in said[1] and "return y" in said[1]
    assert "Every thread has run" in said[2]
    _, *said = answers("--thread", "9", typed=["r", "n", "n", "p cuda.threadIdx.x", "c"])
    assert said[3].strip() == "10"


@pytest.mark.parametrize("typed", [["q"], []])
def test_leaving_early(typed):
    _, *said = answers(typed=typed)
    assert said[-1].strip() == "stopped; the kernel has not finished"


def test_a_thread_that_is_not_in_the_block():
    done = run("--thread", "128")
    assert done.returncode == 2
    assert "threads 0 to 127" in done.stderr


def test_without_greenlet_one_line_says_so():
    done = run(prelude="sys.modules['greenlet'] = None")
    assert done.returncode == 2
    assert "pip install greenlet" in done.stderr
    assert len(done.stderr.splitlines()) == 1
