"""The doctor as its users call it: on this machine, on broken ones, and with mistakes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinyconv.__main__ import main
from tinyconv.tools import doctor, doctor_cuda
from tinyconv.tools.doctor_checks import ABSENT, OK, WARNING, WRONG, Finding, Machine
from tinyconv.tools.doctor_driver import Driver

ROOT = Path(doctor.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Whatever is installed here: no driver, no CuPy."""
    everything = doctor.installed_versions
    monkeypatch.setattr(doctor_cuda, "ask_driver", lambda: Driver(problem="no NVIDIA driver"))
    monkeypatch.setattr(
        doctor,
        "installed_versions",
        lambda: {k: v for k, v in everything().items() if not k.startswith("cupy")},
    )


def diagnose(monkeypatch, capsys, findings, device="auto", used="cpu", *, as_json=False):
    """What is printed, and the status, for checks that give `findings`."""

    def checks(machine):
        machine.used = used
        return [(title, need, lambda f=finding: f) for title, need, finding in findings]

    monkeypatch.setattr(doctor, "checks", checks)
    status = doctor.main(argparse.Namespace(device=device, json=as_json))
    return status, capsys.readouterr().out


def test_this_machine_can_train_on_its_host(capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the host can train"
    titles = [line[:15].strip() for line in lines[:-1] if line[:15].strip()]
    assert titles == [title for title, _, _ in doctor.checks(Machine("cpu"))]
    launch = next(line for line in lines if line.startswith("test launch"))
    assert " ok " in launch and "a compiled loop and a matrix product give the right" in launch


def test_json_says_the_same_and_nothing_else(capsys):
    assert main(["doctor", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["can_train"] is True and result["used"] == result["device"] == "cpu"
    rows = {row["check"]: row for row in result["checks"]}
    assert rows["NumPy"]["state"] == "ok" and rows["NumPy"]["needed_by"] == "host"
    assert rows["driver"]["state"] == "absent"
    assert {row["state"] for row in rows.values()} <= {"ok", "warning", "wrong", "absent"}


def test_a_gpu_that_is_not_there_is_status_1_with_the_reason_and_the_command(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")  # a real one is meant
    status = main(["doctor", "--device", "cuda:7"])
    printed = capsys.readouterr().out
    assert status == 1
    assert "pip install -e '.[cuda13]'" in printed
    assert printed.splitlines()[-1].startswith("cuda:7 cannot train: driver: no NVIDIA driver")
    wrong = [line.split()[0] for line in printed.splitlines() if line[16:21] == "wrong"]
    assert wrong[:3] == ["driver", "GPUs", "CuPy"]


def test_in_a_process_of_its_own_without_the_simulator():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    run = [sys.executable, "-m", "tinyconv", "doctor", "--device", "cuda:0"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("cuda:0 cannot train: ")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_a_device_that_makes_no_sense_is_one_line_and_status_2(name, capsys):
    assert main(["doctor", "--device", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"device {name!r}: use" in error


def test_wrong_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--gpu"])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


# --- verdicts

FINE = ("test launch", doctor.HOST, Finding(OK, "computes"))
BROKEN = ("test launch", doctor.HOST, Finding(WRONG, "no CuPy", "pip install cupy"))


def test_what_is_absent_and_not_needed_is_not_wrong(monkeypatch, capsys):
    rows = [("CuPy", doctor.GPU, Finding(ABSENT, "none", "install it")), FINE]
    status, printed = diagnose(monkeypatch, capsys, rows)
    assert status == 0
    assert "install it" not in printed  # noise where no GPU is
    assert printed.endswith("this machine can train, on the host: no GPU is used (see CuPy)\n")


def test_the_same_is_wrong_where_a_gpu_was_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    rows = [
        ("CuPy", doctor.GPU, Finding(ABSENT, "none", "install it")),
        ("NCCL", doctor.OPTIONAL, Finding(ABSENT, "none")),
        BROKEN,
    ]
    status, printed = diagnose(monkeypatch, capsys, rows, "cuda:0", "")
    assert status == 1
    lines = printed.splitlines()
    assert lines[0].split() == ["CuPy", "wrong", "none"] and lines[1].strip() == "-> install it"
    assert lines[2].split()[1] == "absent"
    assert lines[-1] == "cuda:0 cannot train: CuPy: none (what mends it stands above)"


def test_a_device_that_computes_can_train_whatever_else_is_found(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    rows = [("CUDA versions", doctor.OPTIONAL, Finding(WRONG, "mixed", "one of them")), FINE]
    status, printed = diagnose(monkeypatch, capsys, rows, "cuda:0", "cuda:0")
    assert status == 0 and printed.endswith("\ncuda:0 can train\n")
    status, printed = diagnose(monkeypatch, capsys, rows, "auto", "cuda:0")
    assert status == 0 and printed.endswith("\nthis machine can train, on cuda:0\n")


def test_a_fault_of_the_gpu_is_no_reason_why_the_host_cannot_train(monkeypatch, capsys):
    rows = [
        ("CuPy", doctor.GPU, Finding(WRONG, "two of them")),
        ("h5py", doctor.HOST, Finding(WRONG, "not installed", "pip install h5py")),
        FINE,
    ]
    status, printed = diagnose(monkeypatch, capsys, rows, "cpu")
    assert status == 1
    assert "\nthe host cannot train: h5py: not installed (what" in printed


def test_a_check_that_fails_is_a_line_and_the_others_go_on(monkeypatch, capsys):
    def checks(machine):
        def fails():
            raise RuntimeError("strange\n  machine")

        return [("folder", doctor.HOST, fails), FINE]

    monkeypatch.setattr(doctor, "checks", checks)
    assert doctor.main(argparse.Namespace(device="cpu", json=False)) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=2)[1:] == [WARNING, "could not be looked at: strange machine"]
    assert second.startswith("test launch")


def test_without_any_list_of_requirements_the_rest_is_still_told(monkeypatch, capsys):
    def missing():
        raise OSError("no setup.cfg")

    monkeypatch.setattr(doctor, "required_versions", missing)
    assert doctor.main(argparse.Namespace(device="cpu", json=False)) == 0
    assert "NumPy           ok" in capsys.readouterr().out


# --- a tinyconv that cannot be imported


@pytest.fixture
def broken(tmp_path):
    """The doctor's files in a package whose import fails at numba; runs `python -m tinyconv`."""
    tools = tmp_path / "tinyconv" / "tools"
    tools.mkdir(parents=True)
    for path in (*Path(doctor.__file__).parent.glob("doctor*.py"), tools / "__init__.py"):
        shutil.copy(Path(doctor.__file__).with_name(path.name), tools)
    shutil.copy(ROOT / "tinyconv" / "__init__.py", tmp_path / "tinyconv")
    (tmp_path / "tinyconv" / "alexnet.py").write_text("import numba")  # the first to be imported
    (tmp_path / "tinyconv" / "__main__.py").write_text("")
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')")
    (tmp_path / "layers.py").write_text("import numba")
    shutil.copy(ROOT / "setup.cfg", tmp_path) if (ROOT / "setup.cfg").exists() else None

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )

    return run


def test_a_numba_that_cannot_be_imported_is_a_line_of_the_table(broken):
    done = broken("-m", "tinyconv", "doctor")
    assert done.returncode == 1 and done.stderr == ""
    line = next(line for line in done.stdout.splitlines() if line.startswith("numba  "))
    assert "wrong" in line and "importing it fails: Numba needs NumPy 2.4 or less" in line
    assert "h5py            ok" in done.stdout
    assert "this machine cannot train: numba: " in done.stdout.splitlines()[-1]
    assert broken("-X", "dev", "-m", "tinyconv", "doctor", "--json").stdout.startswith("{")


def test_wrong_usage_and_other_commands_there(broken):
    done = broken("-m", "tinyconv", "doctor", "--device", "gpu")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for others in (("-m", "tinyconv", "check"), ("-c", "import tinyconv", "doctor")):
        done = broken(*others)
        assert done.returncode == 1 and "ImportError: Numba needs" in done.stderr
