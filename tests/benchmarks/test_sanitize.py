"""benchmarks/sanitize.py, as much of it as can be tested without a GPU."""

import sys
from collections import Counter

import planted
import pytest
import sanitize
import textbook

from layers import simulator
from tinyconv.lab import cases
from tinyconv.lab.cases import CASES, GROUPS
from tinyconv.lab.cases import launches as case_launches
from tinyconv.lab.cases.case import CaseLaunch, KernelCase

MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at _ZN6layers7dropout14dropout_kernelB2v1B40c8tJTIcFHzwl2ILiE5ArrayIf+0x180
=========     by thread (1,0,0) in block (0,0,0)
=========     Access to 0x7f5604200404 is out of bounds
=========
========= Invalid __global__ read of size 4 bytes
=========     at _ZN6layers7dropout14dropout_kernelB2v1B40c8tJTIcFHzwl2ILiE5ArrayIf+0x180
=========     by thread (2,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at _ZN5tiled27tiled_forward_scalar_kernelB2v1
=========     and Read access at _ZN5tiled27tiled_forward_scalar_kernelB2v1+0x90
=========
========= Warning: Race reported between Write access at lrn::lrn_forward_kernel[abi:v1]+0x30
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
NAMELESS = """\
========= COMPUTE-SANITIZER
========= Target application terminated before first instrumented API call
=========
"""
KERNELS = {
    *("dropout_kernel", "bias_relu_dropout_kernel", "lrn_forward_kernel"),
    *("tiled_forward_scalar_kernel", "conv_forward_kernel"),
}


@pytest.fixture(scope="module")
def launches():
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    with pytest.MonkeyPatch.context() as patch:  # one shape of each will do

        def first(name, dtype):
            return case_launches(name, GROUPS[name].shapes[0], dtype)

        patch.setattr(cases, "launches", first)
        return [
            sanitize.Launch(each.name, each.grid, each.block, each.args)
            for each in sanitize.every_launch()
        ]


def test_no_kernel_of_the_project_is_missing(launches):
    assert {launch.kernel for launch in launches} == set(CASES)


def test_launches_are_made_again_from_a_file(launches, tmp_path, capsys):
    few = [launch for launch in launches if launch.kernel in ("lrn_forward_kernel", "sgd_kernel")]
    file = tmp_path / "launches"
    file.write_bytes(sanitize.pickle.dumps(few))
    sanitize.run_the_launches(str(file))
    assert capsys.readouterr().out.split() == [launch.kernel for launch in few]


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (MEMCHECK, {"dropout_kernel": 2}),
        (RACECHECK, {"tiled_forward_scalar_kernel": 1, "lrn_forward_kernel": 1}),
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", {}),
        ("", {}),
    ],
)
def test_reports_are_counted_by_kernel(log, found):
    assert sanitize.reports(log, KERNELS) == (Counter(found), [])


def test_a_report_that_names_no_kernel_is_not_lost():
    nameless = "Target application terminated before first instrumented API call"
    assert sanitize.reports(NAMELESS, KERNELS) == (Counter(), [nameless])


# --- with a script in place of compute-sanitizer


LAUNCHES = [sanitize.Launch(name, (1,), (32,), ()) for name in ["sgd_kernel"] * 2 + ["relu_kernel"]]


def tool(tmp_path, log="", printed="", end="exit 0"):
    """A program that writes `log` where it is told to, prints `printed` and ends so."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --tool ] && shift && [ "$1" = racecheck ] || exit 99\n'
        'while [ "$1" != --log-file ]; do shift; done\n'
        f"cat > \"$2\" <<'END'\n{log}END\n"
        f"cat <<'END'\n{printed}\nEND\n{end}\n"
    )
    program.chmod(0o755)
    return str(program)


ALL = "sgd_kernel\nsgd_kernel\nrelu_kernel"


def test_nothing_found(tmp_path):
    said, details = sanitize.sanitized(tool(tmp_path, printed=ALL), "racecheck", LAUNCHES)
    assert said == {"sgd_kernel": "ok", "relu_kernel": "ok"} and details == ""


def test_something_found(tmp_path):
    log = RACECHECK.replace("lrn_forward_kernel", "relu_kernel")
    program = tool(tmp_path, log, ALL, f"exit {sanitize.FOUND}")
    said, details = sanitize.sanitized(program, "racecheck", LAUNCHES)
    assert said == {"sgd_kernel": "ok", "relu_kernel": "1 found"}
    assert details.startswith("racecheck, exit status 86\n") and "Warning: Race" in details


def test_a_process_that_breaks_leaves_kernels_that_did_not_run(tmp_path):
    program = tool(tmp_path, printed="sgd_kernel", end="echo no memory >&2; exit 1")
    said, details = sanitize.sanitized(program, "racecheck", LAUNCHES)
    assert said == {"sgd_kernel": "did not run", "relu_kernel": "did not run"}
    assert details == "racecheck, exit status 1\nno memory"


def test_a_launch_that_hangs_is_killed_with_all_that_belongs_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitize, "MINUTES", 0.01)
    program = tool(tmp_path, printed="sgd_kernel\nsgd_kernel", end="sleep 60 & wait")
    said, details = sanitize.sanitized(program, "racecheck", LAUNCHES)
    assert said == {"sgd_kernel": "ok", "relu_kernel": "did not run"}
    assert details.endswith("killed after 0.01 minutes")


def test_of_a_flood_of_reports_the_beginning_is_shown(tmp_path):
    program = tool(tmp_path, 300 * RACECHECK, ALL, "exit 86")
    _, details = sanitize.sanitized(program, "racecheck", LAUNCHES)
    lines = details.splitlines()
    assert len(lines) == sanitize.LINES + 1 and lines[-1] == "... and 1901 lines more"


def test_reports_without_a_kernel_make_it_fail(tmp_path):
    said, details = sanitize.sanitized(tool(tmp_path, NAMELESS, ALL), "racecheck", LAUNCHES)
    assert set(said.values()) == {"ok"} and "terminated before" in details


# --- the command line


def test_without_a_gpu_or_the_tool_one_line(monkeypatch, capsys):
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    for gpus, line in ((0, "no GPU found; --rehearse runs without one"), (1, "is missing: pip")):
        monkeypatch.setattr(sanitize, "gpu_count", lambda gpus=gpus: gpus)
        assert sanitize.main(["--sanitizer", "no-such-program"]) == 2
        printed = capsys.readouterr()
        assert line in printed.err and printed.err.count("\n") == 1 and not printed.out


def faulty():
    x, y = textbook.copy(planted.N).args
    case = KernelCase(planted.missing_barrier, fills="y")
    return CaseLaunch("a fault", case, (1, 1, 1), (planted.N, 1, 1), (x, y))


def test_a_rehearsal_checks_the_launches_in_the_simulator(monkeypatch, capsys):
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    good = list(case_launches("relu", (1, 1)))
    for everything, status in ((good, 0), ([*good, faulty()], 1)):
        monkeypatch.setattr(sanitize, "every_launch", lambda everything=everything: everything)
        assert sanitize.main(["--rehearse"]) == status
        printed = capsys.readouterr().out
        assert "| relu_forward_kernel | 1 | ok |" in printed.splitlines()
        assert ("| missing_barrier | 1 | 1 found |" in printed) == (status == 1)
        assert ("race" in printed) == (status == 1)


def test_a_table_has_a_column_for_each_tool(monkeypatch, capsys):
    if not simulator.installed:
        pytest.skip("launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    monkeypatch.setattr(sanitize, "gpu_count", lambda: 1)
    monkeypatch.setattr(sanitize, "every_launch", lambda: list(case_launches("relu", (1, 1))))
    asked = []

    def scripted(program, tool, launches):
        asked.append((program, tool, [launch.kernel for launch in launches]))
        return {launch.kernel: tool[:3] for launch in launches}, ""

    monkeypatch.setattr(sanitize, "sanitized", scripted)
    assert sanitize.main(["--sanitizer", sys.executable]) == 0
    kernels = ["relu_forward_kernel", "relu_backward_kernel"]
    assert asked == [(sys.executable, tool, kernels) for tool in sanitize.TOOLS]
    assert capsys.readouterr().out.splitlines() == [
        "| kernel | launches | memcheck | racecheck | synccheck |",
        "|---|---:|---|---|---|",
        "| relu_forward_kernel | 1 | mem | rac | syn |",
        "| relu_backward_kernel | 1 | mem | rac | syn |",
    ]
