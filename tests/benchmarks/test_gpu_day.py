"""benchmarks/gpu_day.py: the whole visit rehearsed, and cut off at any moment."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import gpu_day
import pytest
from gpu_day import run_all, shares_of
from gpu_report import SECTIONS, WARNING, Report, verdict
from machine import gpu_count
from runner import Result

from tinyconv.lab.cases import CASES

SCRIPT = Path(gpu_day.__file__)


def read(folder):
    """The two files of the one report in a folder: the results, and the text."""
    (numbers,) = folder.glob("*.json")
    content = json.loads(numbers.read_text())
    text = numbers.with_suffix(".md").read_text()
    assert text.endswith("\n") and "## What failed or is missing" in text
    return content, [Result(**row) for row in content["results"]], text


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A process that has run everything; where it wrote."""
    folder = tmp_path_factory.mktemp("visit")
    command = [sys.executable, str(SCRIPT), "--rehearse", "--seed", "11", "--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True), folder


def test_the_whole_visit_is_rehearsed_and_everything_is_right(rehearsal):
    done, folder = rehearsal
    content, results, text = read(folder)
    assert done.returncode == 0, [r for r in results if r.why]
    first, last = done.stdout.splitlines()
    kernels = content["kernels"]
    table = {f"{case.name} {dtype}" for case in CASES.values() for dtype in case.dtypes}
    assert set(kernels) == table and len(kernels) == len(table) > len(CASES)
    assert first == f"{len(kernels)} of {len(kernels)} kernels are right in all of their checks"
    assert f"**{first}.**" in text and WARNING in text
    assert last == str(next(folder.glob("*.md")))
    dropped = {r.section for r in results if r.why}
    assert dropped <= {"sanitizer"} and not any(r.why.startswith("failed") for r in results)
    sections = {section for _, section in gpu_day.STAGES.values()}
    assert {r.section for r in results} == sections | {"layers"}
    assert all(f"## {title}\n" in text for title, _ in SECTIONS.values())
    assert "- seed: 11\n" in text and "## Each launch of a step, tf32 2" in text
    assert len({(r.section, r.what, r.who) for r in results}) == len(results)
    who = {r.who for r in results if r.section == "convolutions"}
    assert {"direct", "shared", "tiled", "tensor, TF32", "tensor, BF16"} <= who
    assert ("PyTorch, BF16, channels_last" in who) == (find_spec("torch") is not None)


@pytest.mark.parametrize(("stages", "after"), [("ab", 1), ("ab", 40), ("ceh", 3), ("fgj", 9)])
def test_killed_at_any_moment_the_report_so_far_is_whole(stages, after, tmp_path):
    seed = str(4_000_000_000 + after)  # tells this visit's processes from others
    command = [sys.executable, str(SCRIPT), "--rehearse", "--stages", stages]
    command += ["--out", str(tmp_path)]
    command += ["--seed", seed]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    said = [process.stderr.readline() for _ in range(after)]
    assert all(said) and running_with(seed)
    process.kill()
    process.wait()
    process.stderr.close()
    _, results, text = read(tmp_path)
    assert len(results) >= after and text.count("## ") >= 1
    assert {gpu_day.STAGES[stage][1] for stage in stages} >= {r.section for r in results} - {
        "layers"
    }
    deadline = time.monotonic() + 30
    while running_with(seed):  # the processes of the stage notice that theirs has gone
        assert time.monotonic() < deadline
        time.sleep(0.2)


def running_with(seed):
    """Processes of a stage with this seed."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"--child" in line and seed.encode() in line:
            found.append(folder.name)
    return found


# --- a stage whose processes die; the fake one speaks the protocol, and has no CUDA to lose

FAKE = """
import json, os, signal, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def send(**message):
    print(json.dumps(message), flush=True)
share, shares, skip = (int(options[f"--{name}"]) for name in ("share", "shares", "skip"))
for name in "abcdefgh"[share::shares][skip:]:
    send(begin=["kernels", name, "fake"])
    if name == "b":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "d":
        time.sleep(60)
    if name == "e":
        sys.exit("CUDA_ERROR_ILLEGAL_ADDRESS")
    send(section="kernels", what=name, who="fake", seconds=[], host_seconds=[], operations=0,
         moved=0, images=0, notes={"kernels": [name + "_kernel"]}, why="")
send(complete=True)
"""


@pytest.mark.parametrize("shares", [1, 3])
def test_a_process_that_dies_or_hangs_costs_one_case(shares, tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    report = Report(tmp_path / "report", False)
    command = [sys.executable, str(tmp_path / "fake.py")]
    run_all(shares_of("b", report, command, 50, 3, shares), shares)
    outcome = {r.what: r.why for r in report.results}
    assert len(report.results) == 8
    assert outcome == {
        **dict.fromkeys("acfgh", ""),
        "b": "failed: the process was killed by SIGSEGV",
        "d": "failed: killed after 3 s without an answer",
        "e": "failed: the process ended with status 1",
    }
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in (tmp_path / "report.log").read_text()
    _, results, _ = read(tmp_path)
    assert len(results) == 8


def test_a_stage_ends_with_its_time(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    report, started = Report(tmp_path / "report", False), time.monotonic()
    command = [sys.executable, str(tmp_path / "fake.py")]
    run_all(shares_of("b", report, command, limit=3, silent=1e9), 1)
    assert time.monotonic() - started < 20
    assert report.results[-1].why == "failed: the stage's time was over"


def test_a_process_that_cannot_begin_is_not_started_again(tmp_path):
    report = Report(tmp_path / "report", False)
    command = [sys.executable, "-c", "raise ImportError('no CuPy')"]
    run_all(shares_of("f", report, command, 50, 1e9), 1)
    (result,) = report.results
    assert (result.section, result.why) == (
        "convolutions",
        "failed: the process ended with status 1",
    )
    assert "no CuPy" in (tmp_path / "report.log").read_text()


# --- what a reader sees


def check(what, kernels, why=""):
    return Result("kernels", what, "fast", notes={"kernels": kernels}, why=why)


def test_the_verdict_names_what_is_wrong_and_how():
    right = [check("lrn", ["lrn", "product"]), check("pool", ["pool"])]
    assert verdict(right, ["lrn", "pool"]) == ("2 of 2 kernels are right in all of their checks")
    wrong = [*right, check("lrn of AlexNet", ["lrn"], "failed: ValueError: y is wrong by 3")]
    assert verdict(wrong, ["lrn", "pool", "sgd"]) == (
        "WRONG: 1 of 3 checks failed. lrn of AlexNet, fast: failed: ValueError: y is wrong by 3. "
        "1 of 3 kernels are right in all of their checks; not launched: sgd"
    )
    many = [check(f"lrn {i}", ["lrn"], "failed: no") for i in range(7)]
    assert "; and 3 more. 0 of 1" in verdict(many, ["lrn"])
    assert verdict([], ["lrn"]) == "no verdict: the kernels have not been checked"


def test_shares_are_of_the_measured_ceilings_and_missing_cases_are_named(tmp_path):
    report = Report(tmp_path / "report", False, device="a GPU")
    report.predicted = {"tf32 128": {"lrn": 1.5}}
    report.results = [
        Result("ceilings", "copy bandwidth", "cupy", [2.0], moved=4 * 10**12),
        Result("ceilings", "matrix product", "cupy", [1.0] * 30, operations=10 * 10**12),
        Result("ceilings", "matrix product, TF32", "cupy", [1.0] * 30, operations=40 * 10**12),
        Result("convolutions", "conv1 forward", "tiled", [1.0] * 30, operations=10**12),
        Result("convolutions", "conv2 forward", "tensor, BF16", [1.0] * 30, operations=10**13),
        Result("convolutions", "conv1 forward", "PyTorch, TF32", [1.0] * 30, operations=10**13),
        Result("layers", "relu1 forward", "we", [1.0, 1.0, 4.0], moved=10**12),
        Result(
            *("steps", "128", "we, TF32", [0.5] * 30, [0.1] * 30),
            operations=10**13,
            images=128,
            notes={"pieces": 7, "peak bytes": 2**21},
        ),
        Result("steps", "1,024", "we", why="failed: MemoryError: too | much"),
        Result(
            *("launches", "tf32 128", "fast"),
            notes={"launches": [("lrn", 0.001), ("sgd", 0.0005), ("lrn", 0.002)]},
        ),
    ]
    text = report.markdown()
    assert WARNING not in text
    rows = [
        "| copy bandwidth | cupy | 2,000.000 | 2,000.000 to 2,000.000 | 1 |  | 2,000.0 |",
        "| 128 | we, TF32 | 500.000 | 500.000 to 500.000 | 30 | 256 | 100.000 | 20.00 | 50% "
        "| pieces: 7; peak MiB: 2 |",
        "| 1,024 | we |  |  |  |  |  |  |  | failed: MemoryError: too / much |",
        "| conv1 forward | tiled | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 1.00 | 10% |",
        "| conv1 forward | PyTorch, TF32 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 | 25% |",
        "| conv2 forward | tensor, BF16 | 1,000.000 | 1,000.000 to 1,000.000 | 30 | 10.00 |  |",
        "| relu1 forward | we | 1,000.000 | 1,000.000 to 4,000.000 | 3 | 1,000.0 | 50% |",
        "| lrn | 2 | 3.000 | 1.500 |",
        "| sgd | 1 | 0.500 |  |",
        "| all | 3 | 3.500 |  |",
        "- steps: 1,024, we: failed: MemoryError: too | much.",
    ]
    assert [line for line in text.splitlines() if line in rows] == rows


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU")
@pytest.mark.parametrize("arguments", [[], ["--device", "cuda:7"], ["--device", "cpu"]])
def test_without_a_gpu_one_line_status_2_and_nothing_written(arguments, tmp_path, capsys):
    assert gpu_day.main(["--out", str(tmp_path / "new"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("gpu_day.py: error: ") and printed.err.count("\n") == 1
    assert printed.out == "" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("letters", ["", "ax"])
def test_unknown_stages_are_refused(letters, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_day.main(["--stages", letters])
    assert end.value.code == 2 and "use letters of abcdefghijk" in capsys.readouterr().err
