"""The exercises: unsolved they say where the gap is, solved they pass, and wrong they say why."""

import os
import signal
import subprocess
import sys
import time

import pytest
from simulated import ROOT
from solutions import FILES, FOLDER, WRONG, filled, wronged

from tinyconv.lab import compiler, exercise, exercise_command
from tinyconv.tools.command_line import main


@pytest.fixture(autouse=True)
def exercises_of_the_clone(monkeypatch):
    monkeypatch.setattr(exercise_command, "FOLDER", FOLDER)


@pytest.fixture
def marked(tmp_path, monkeypatch, capsys):
    """A function: exit status and output of `exercise` on a file with this text."""
    monkeypatch.chdir(tmp_path)

    def run(number, text):
        file = tmp_path / FILES[number].name
        file.write_text(text, encoding="utf-8")
        status = main(["exercise", str(file)])
        out, err = capsys.readouterr()
        assert not err
        return status, out

    return run


@pytest.mark.parametrize("arguments", [[], ["3"]])
def test_an_installation_without_them_says_where_they_are(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exercise_command, "FOLDER", tmp_path)
    assert main(["exercise", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "has no exercises: they are in a clone" in error


def test_there_are_seventeen(capsys):
    assert list(FILES) == list(range(1, 18))
    assert main(["exercise"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18 and lines[3].startswith(" 4  Max pooling")
    for number, file in FILES.items():
        task = file.read_text(encoding="utf-8").partition('"""\n')[0].splitlines()
        assert task[0].startswith(f'"""Exercise {number}. ') and task[0].endswith((".", "?"))
        assert 6 <= len(task) <= 16, file.name
        assert "def specification(" in file.read_text(encoding="utf-8") or number in (15, 17)


@pytest.mark.parametrize("number", [n for n in FILES if n != 17])
def test_an_unsolved_exercise_names_its_gap(number, marked):
    text = FILES[number].read_text(encoding="utf-8")
    status, said = marked(number, text)
    assert status == 1
    assert said.startswith(f"exercise {number}: fill the gap, then run it again\n    ")
    line = int(said.split(".py:")[1].partition(":")[0])
    assert "..." in text.splitlines()[line - 1]


@pytest.mark.parametrize("number", FILES)
def test_a_solution_passes(number, marked, compiles, tmp_path):
    begin = time.process_time()
    status, said = marked(number, filled(number))
    assert status == 0, said
    assert f"exercise {number}: passed" in said and "NOT YET" not in said
    assert "float64" not in said
    if number not in (15, 17):
        page = tmp_path / "runs" / "exercises" / f"{FILES[number].stem}.html"
        assert page.exists() and "runs/exercises/" in said
    assert time.process_time() - begin < 3  # and two seconds to start: five in all


@pytest.mark.parametrize(
    ("number", "old", "new", "wanted"), WRONG, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(WRONG)]
)
def test_a_wrong_solution_is_told_what_is_wrong(number, old, new, wanted, marked, monkeypatch):
    monkeypatch.setattr(compiler, "enabled", "compile" in wanted[0])
    status, said = marked(number, wronged(number, old, new))
    assert status == 1 and f"exercise {number}: not yet" in said
    for text in wanted:
        assert text in said


def test_ctrl_c_in_an_endless_loop_names_the_line_of_the_kernel(tmp_path):
    text = wronged(8, "        distance //= 2\n", "        print('loop', flush=True)\n")
    lines = text.splitlines()
    top = next(n for n, line in enumerate(lines, 1) if "while distance" in line)
    file = tmp_path / "08_sum.py"
    file.write_text(text, encoding="utf-8")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    # Where the tests run in the background, SIGINT is ignored, and so is it in their processes.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "import sys; from tinyconv.tools.command_line import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "exercise", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "loop\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the compiler's process, too
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and said.count("\n") == 1, said
    assert said.startswith(f"tinyconv exercise: interrupted at {file}:")
    number, source = said.rpartition(f"{file}:")[2].rstrip().split(": ", 1)
    assert top <= int(number) <= top + 4 and source == lines[int(number) - 1].strip()


@pytest.mark.full
def test_a_slow_launch_says_which_line_runs(marked, monkeypatch):
    """The loop ends after two seconds."""
    monkeypatch.setattr(exercise, "PATIENCE", 0.3)
    monkeypatch.setattr(time, "end_of_loop", time.monotonic() + 2, raising=False)
    first = "    i = cuda.grid(1)\n"
    loop = "    while time.monotonic() < time.end_of_loop:\n        x[0] = x[0]\n"
    text = filled(1).replace(first, first + loop).replace("import os\n", "import os\nimport time\n")
    number = next(n for n, line in enumerate(text.splitlines(), 1) if "x[0] = x[0]" in line)
    _, said = marked(1, text)
    assert said.count("still running after 0.3 s at ") == 1
    assert f":{number}: x[0] = x[0]" in said or f":{number - 1}: while" in said
    assert "does a loop never end? Ctrl-C stops it" in said


def test_a_quick_launch_is_not_called_slow(marked, monkeypatch):
    monkeypatch.setattr(exercise, "PATIENCE", 0.3)
    _, said = marked(1, filled(1))
    time.sleep(0.4)
    assert "still running" not in said


def test_each_exercise_has_five_wrong_solutions():
    assert [n for n in FILES if sum(number == n for number, *_ in WRONG) < 5] == []


def test_what_computes_in_float64_is_explained(marked, compiles):
    status, said = marked(1, wronged(1, "x.dtype.type(0)", "0"))
    assert status == 0 and "computes in float64" in said
    assert "hint: a whole number with a float32 gives a float64" in said


def test_a_page_is_drawn_only_of_a_launch_that_ended(marked):
    _, said = marked(2, wronged(2, "if i < x.size:\n        ", ""))
    assert "IndexError" in said and "step by step" not in said
    _, said = marked(2, wronged(2, "x[i] * x[i]", "x[i] + x[i]"))
    assert "step by step: runs/exercises/02_guard.html" in said.replace("\\", "/")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["99"], "exercises are numbered 1 to 17"),
        (["other.py"], "there is no exercise other.py"),
        (["broken.py"], "broken.py:2: "),
        (["empty.py"], "marks nothing"),
    ],
)
def test_what_is_no_exercise_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\ny = (\n", encoding="utf-8")
    (tmp_path / "empty.py").write_text("x = 1\n", encoding="utf-8")
    assert main(["exercise", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_pages_that_cannot_be_written_do_no_harm(marked, monkeypatch):
    monkeypatch.setattr(exercise.Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    status, said = marked(1, filled(1))
    assert status == 0 and "step by step" not in said
