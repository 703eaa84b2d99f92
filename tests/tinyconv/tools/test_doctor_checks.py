"""Installed packages: absent, out of range, broken; and the ranges themselves."""

import importlib.metadata
import platform
import shutil
from types import SimpleNamespace

import pytest

from tinyconv.tools import doctor_checks
from tinyconv.tools.doctor_checks import (
    Machine,
    in_range,
    installed_versions,
    mpi,
    numbers,
    one_line,
    package,
    python,
    required_versions,
    simulator,
)


@pytest.mark.parametrize(
    "version, wanted, fits",
    [
        ("0.30", ">=0.30,<0.31", True),
        ("0.30.4", "<0.31,>=0.30", True),
        ("0.31.0", ">=0.30,<0.31", False),
        ("0.9", ">=0.30,<0.31", False),
        ("2.0.0", ">=2.0,<2.5", True),
        ("2", ">=2.0.0", True),
        ("2.5", ">=2.0,<2.5", False),
        ("2.5.0", ">=2.0,<2.5", False),
        ("2.10.1", ">=2.9", True),
        ("3.16.0rc1", ">=3.10", True),
        ("1.0", "", True),
        ("unknown", ">=1", False),
    ],
)
def test_ranges(version, wanted, fits):
    assert in_range(version, wanted) is fits


def test_numbers_of_a_version():
    assert numbers("13.0.88") == (13, 0, 88) and numbers("2.0rc1") == (2,) and numbers("x") == ()


def test_one_line_of_an_error():
    assert one_line(ValueError("a\n   b")) == "a b" and one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 999))) == 300


def test_the_requirements_are_those_of_setup_cfg():
    needs = required_versions()
    assert in_range("0.30.4", needs["numba-cuda"]) and not in_range("0.31", needs["numba-cuda"])
    assert in_range(platform.python_version(), needs["python"])
    assert {"numpy", "numba", "h5py", "pillow", "matplotlib", "tqdm"} <= set(needs)
    assert "cupy-cuda13x" not in needs  # an extra


def test_an_installed_package_without_setup_cfg_has_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_checks, "ROOT", tmp_path)
    lines = ["numpy<2.5,>=2.0", "h5py", 'cupy-cuda13x[ctk]; extra == "cuda13"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.10"})
    assert required_versions() == {"python": ">=3.10", "numpy": "<2.5,>=2.0", "h5py": ""}


def test_installed_versions_are_by_normal_names_and_survive_leftovers(monkeypatch):
    def distribution(name, version="1"):
        return SimpleNamespace(metadata={"Name": name}, version=version)

    listed = [distribution("Numba_CUDA", "0.30.4"), distribution(None), distribution("numba.cuda")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: listed)
    assert installed_versions() == {"numba-cuda": "0.30.4"}


def machine(**installed):
    versions = {name.replace("_", "-"): version for name, version in installed.items()}
    needs = {"h5py": ">=3.10", "numba-cuda": ">=0.30,<0.31", "python": ">=3.10"}
    return Machine("cpu", versions, needs)


def test_a_package_that_is_absent_or_out_of_range_is_wrong_with_the_command():
    finding = package("h5py", "h5py", machine())
    assert (finding.state, finding.found) == ("wrong", "not installed")
    assert finding.mend == "pip install 'h5py>=3.10'"
    finding = package("numba-cuda", None, machine(numba_cuda="0.31.2"))
    assert finding.state == "wrong" and finding.found == "0.31.2; tinyconv needs >=0.30,<0.31"
    assert finding.mend == "pip install 'numba-cuda>=0.30,<0.31'"
    assert package("numba-cuda", None, machine(numba_cuda="0.30.4")).state == "ok"


@pytest.mark.parametrize(
    "error", [ImportError("numpy.dtype size changed"), OSError("libhdf5.so"), ValueError("?")]
)
def test_a_package_that_cannot_be_imported_is_told_with_its_message(monkeypatch, error):
    def fails(name):
        raise error

    monkeypatch.setattr(doctor_checks.importlib, "import_module", fails)
    finding = package("h5py", "h5py", machine(h5py="3.16.0"))
    assert finding.state == "wrong" and str(error) in finding.found
    assert finding.mend == "pip install --force-reinstall --no-deps 'h5py>=3.10'"


def test_h5py_names_its_hdf5():
    assert ", HDF5 " in package("h5py", "h5py", machine(h5py="3.16.0")).found


def test_an_old_python_is_wrong(monkeypatch):
    assert python(machine()).state == "ok"
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    finding = python(machine())
    assert finding.state == "wrong" and "tinyconv needs >=3.10" in finding.found
    assert "python3.12 -m venv" in finding.mend


def test_the_simulator_and_mpi_are_never_wrong(monkeypatch):
    assert simulator(machine()).state == "absent"
    assert simulator(machine()).mend == "pip install -e '.[simulator]'"
    assert simulator(machine(greenlet="3.5")).state == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/mpirun")
    assert mpi(machine(mpi4py="4.1")).state == "ok"
    assert mpi(machine()).state == "absent"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor_checks.ctypes.util, "find_library", lambda name: None)
    assert "library not found" in mpi(machine(mpi4py="4.1")).found
