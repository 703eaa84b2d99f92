"""The doctor as its users run it: on this machine, on broken ones, and with wrong arguments."""

import argparse
import importlib
import importlib.metadata
import platform
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from packaging.requirements import Requirement
from programs import ROOT, run_program

import layers
from tinyconv.tools import doctor
from tinyconv.tools.command_line import main
from tinyconv.tools.doctor import FAILED, MISSING, OK, WARNING, Driver, Finding, Machine

# --- the command


def test_this_machine_can_train_on_its_host(capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the host can train"
    titles = [line[:15].strip() for line in lines[:-1] if line[:15].strip()]
    assert titles == [title for title, _, _ in doctor.checks(Machine("cpu"))]
    assert {"Python", "numba-cuda", "GPU driver", "CuPy", "NCCL"} <= set(titles)
    launch = next(line for line in lines if line.startswith("test launch"))
    assert " ok " in launch and "a compiled loop and a matrix product give the right" in launch


def test_a_missing_gpu_is_status_1_with_the_reason_and_the_command(
    monkeypatch, capsys, real_gpu, install
):
    monkeypatch.setattr(doctor, "ask_driver", lambda: Driver(problem="no NVIDIA driver", fix="f"))
    install({"numpy": "2.4.0"})
    assert main(["doctor", "--device", "cuda:7"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line[:15].strip() for line in lines if line[16:22] == "failed"]
    assert {"h5py", "GPU driver", "CuPy", "test launch"} <= set(failed)
    assert "numpy" not in failed and f"{'':24} -> pip install -e '.[cuda13]'" in lines
    assert lines[-1].startswith("cuda:7 cannot train: ")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_an_unknown_device_is_one_line_and_status_2(name, capsys):
    assert main(["doctor", "--device", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"device {name!r}: use" in error


def test_wrong_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--gpu"])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


# --- as a script, where tinyconv cannot be imported


def script(*arguments, python=(), path=""):
    """Run doctor.py with no GPU visible, in a folder that is no clone: status, rows, last line."""
    command = [*python, ROOT / "tinyconv" / "tools" / "doctor.py", *arguments]
    status, out, err = run_program(*command, cwd="/", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(path))
    if status == 2:
        return status, {}, err
    assert err == ""
    *lines, last = out.splitlines()
    return status, {line[:15].strip(): line[16:] for line in lines}, last


def test_importing_tinyconv_imports_no_tool():
    code = "import sys, tinyconv; print([n for n in sys.modules if n.startswith('tinyconv.tools')])"
    assert run_program("-c", code) == (0, "[]\n", "")


def test_the_script_needs_no_tinyconv_on_the_path():
    status, _, last = script("--device", "cuda:0", python=["-I"])
    assert status == 1 and last.startswith("cuda:0 cannot train: ")
    status, _, said = script("--device", "gpu")
    assert status == 2 and "Traceback" not in said and "use 'cpu'" in said


def test_packages_that_cannot_be_imported_are_rows_of_the_table(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')")
    (tmp_path / "h5py.py").write_text("raise OSError('libhdf5.so: cannot open')")
    status, rows, last = script("--device", "cpu", path=tmp_path)
    assert rows["numba"].startswith("failed") and "NumPy 2.4 or less" in rows["numba"]
    assert rows["h5py"].startswith("failed") and "OSError: libhdf5.so" in rows["h5py"]
    assert rows["numpy"].startswith("ok") and rows["test launch"].startswith("failed")
    assert status == 1 and "the host cannot train: numba: " in last


def test_without_packaging_the_rest_is_still_checked(tmp_path):
    (tmp_path / "packaging.py").write_text("raise ImportError('none')")
    status, rows, _ = script("--device", "cpu", path=tmp_path)
    assert status == 1 and rows["packaging"].startswith("failed")
    assert "pip install -e ." in rows[""] and rows["disk"].startswith("ok")


# --- verdicts

FINE = ("test launch", doctor.HOST, Finding(OK, "computes"))
BROKEN = ("test launch", doctor.HOST, Finding(FAILED, "no CuPy", "pip install cupy"))
NO_CUPY = ("CuPy", doctor.GPU, Finding(MISSING, "none", "install it"))
TWO_CUPYS = ("CuPy", doctor.GPU, Finding(FAILED, "two of them", "remove one"))
NO_H5PY = ("h5py", doctor.HOST, Finding(FAILED, "not installed", "pip install h5py"))
MIXED = ("CUDA versions", doctor.OPTIONAL, Finding(FAILED, "mixed", "install one"))
FIX = "(the fix is in the table)"
HOST_ONLY = "this machine can train, on the host: no GPU is used (see CuPy)"
NO_HOST = f"the host cannot train: h5py: not installed {FIX}"


@pytest.mark.parametrize(
    "device, used, rows, status, last",
    [
        # What is missing and not needed is no failure; it is one if a GPU was requested.
        ("auto", "cpu", [NO_CUPY, FINE], 0, HOST_ONLY),
        ("cuda:0", "", [NO_CUPY, BROKEN], 1, f"cuda:0 cannot train: CuPy: none {FIX}"),
        # A device that computes can train, whatever else is found.
        ("cuda:0", "cuda:0", [MIXED, FINE], 0, "cuda:0 can train"),
        ("auto", "cuda:0", [MIXED, FINE], 0, "this machine can train, on cuda:0"),
        # The host fails for reasons of its own.
        ("cpu", "cpu", [TWO_CUPYS, FINE], 0, "the host can train"),
        ("cpu", "cpu", [TWO_CUPYS, NO_H5PY, FINE], 1, NO_HOST),
    ],
)  # fmt: skip
def test_verdicts(monkeypatch, capsys, real_gpu, device, used, rows, status, last):
    def checks(machine):
        machine.used = used
        return [(title, need, lambda finding=finding: finding) for title, need, finding in rows]

    monkeypatch.setattr(doctor, "checks", checks)
    assert doctor.main(argparse.Namespace(device=device)) == status
    printed = capsys.readouterr().out
    assert printed.endswith(f"\n{last}\n")
    # How to install for a GPU is noise where none is asked for.
    assert ("-> install it" in printed) == (device == "cuda:0" and NO_CUPY in rows)
    assert ("-> pip install h5py" in printed) == (NO_H5PY in rows)


def test_a_check_that_raises_is_a_warning_and_the_others_follow(monkeypatch, capsys):
    def fails():
        raise RuntimeError("strange\n  machine")

    rows = [("disk", doctor.HOST, fails), (*FINE[:2], lambda: FINE[2])]
    monkeypatch.setattr(doctor, "checks", lambda machine: rows)
    assert doctor.main(argparse.Namespace(device="cpu")) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    problem = "could not be checked: RuntimeError: strange machine"
    assert first.split(maxsplit=2)[1:] == [WARNING, problem]
    assert second.startswith("test launch")


# --- packages


def test_the_requirements_are_those_of_setup_cfg():
    needs = {one.name: one for one in doctor.requirements()}
    assert {"Python", "numpy", "numba", "h5py", "pillow", "matplotlib", "tqdm"} < set(needs)
    assert "0.30.4" in needs["numba-cuda"].specifier and "0.31" not in needs["numba-cuda"].specifier
    assert platform.python_version() in needs["Python"].specifier
    assert "cupy-cuda13x" not in needs  # an extra


def test_an_installed_package_without_setup_cfg_has_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    lines = ["numpy<2.5,>=2.0", "h5py", 'cupy-cuda13x[ctk]; extra == "cuda13"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.10"})
    assert [str(one) for one in doctor.requirements()] == ["Python>=3.10", *lines[:2]]


@pytest.mark.parametrize(
    "version, found",
    [
        *((other, "not installed") for other in ({}, {"numba-cuda": None})),  # None: files left
        ("0.29.9", "0.29.9; tinyconv needs <0.31,>=0.30"),
        ("0.31", "0.31; tinyconv needs <0.31,>=0.30"),
        ("0.30rc1", "0.30rc1; tinyconv needs <0.31,>=0.30"),
        ("0.30.10", "0.30.10"),
        ("0.30.5rc1", "0.30.5rc1"),
    ],
)
def test_a_package_is_missing_out_of_range_or_ok(install, version, found):
    install(version if isinstance(version, dict) else {"numba-cuda": version})
    fix = "" if found == version else "pip install 'numba-cuda<0.31,>=0.30'"
    wanted = Finding(FAILED if fix else OK, found, fix)
    assert doctor.package(Requirement("numba-cuda>=0.30,<0.31")) == wanted


def test_a_package_that_cannot_be_imported_is_reported_with_its_message(monkeypatch):
    def fails(name):
        raise ImportError("numpy.dtype\n size changed")

    monkeypatch.setattr(importlib, "import_module", fails)
    finding = doctor.package(Requirement("h5py>=3.10"))
    assert finding.state == FAILED and "ImportError: numpy.dtype size changed" in finding.found
    assert finding.fix == "pip install --force-reinstall --no-deps 'h5py>=3.10'"


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    finding = doctor.package(Requirement("Python>=3.10"))
    assert finding[:2] == (FAILED, "3.9.18; tinyconv needs >=3.10")
    assert "python3.12 -m venv" in finding.fix


def test_optional_packages_never_fail(install):
    install({"nvidia-nccl-cu13": "2.28.3"})
    found = doctor.optional("x", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
    assert found == (OK, "nvidia-nccl-cu13 2.28.3", "")
    finding = doctor.optional("simulation", "greenlet", fix="pip install greenlet")
    assert finding == (MISSING, "greenlet: only needed for simulation", "pip install greenlet")


def test_long_errors_are_shortened():
    assert len(doctor.one_line(ValueError("x" * 999))) == 300


# --- disk and test launch


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9e9))
    assert doctor.disk() == (OK, f"{tmp_path}, 9.0 GB free", "")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    assert doctor.disk().state == WARNING and "--out FOLDER" in doctor.disk().fix


def test_the_host_and_the_simulator_compute(device):
    on = Machine(device.name)
    finding = doctor.launch(on)
    assert finding.state == (WARNING if device.is_simulated else OK)
    assert on.used == device.name
    assert "a matrix product give the right numbers" in finding.found


@pytest.mark.parametrize(
    "error, fix",
    [
        (RuntimeError("[222] cuLinkAddData: UNSUPPORTED_PTX_VERSION"), "nvidia-nvjitlink"),
        (RuntimeError("cannot cache function:\nno locator available"), "NUMBA_CACHE_DIR="),
        (ImportError("No module named 'h5py'"), "pip install -e ."),
        (ValueError("?"), ""),
    ],
)
def test_a_failed_launch_is_reported_with_its_fix(monkeypatch, install, error, fix):
    def device(name):
        raise error

    install({})
    monkeypatch.setattr(layers, "Device", device)
    finding = doctor.launch(Machine("cuda:0"))
    assert finding.state == FAILED and finding.found.startswith(doctor.one_line(error))
    assert fix in finding.fix and bool(fix) == bool(finding.fix)


def test_wrong_numbers_are_a_failure(monkeypatch):
    monkeypatch.setattr(layers.Linear, "forward", lambda self, x: np.zeros((3, 2), np.float32))
    finding = doctor.launch(Machine("cpu"))
    assert finding.state == FAILED and "expected [[10, -10], [65, 12], [26, 1]]" in finding.found
