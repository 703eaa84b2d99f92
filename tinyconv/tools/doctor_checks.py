"""The doctor's findings, and its checks of what is installed.

Nothing is imported at the top of these files but Python's own modules: what is broken here must
still be told. Each check is a function of the Machine that returns a Finding; `doctor.py` has
their list, `doctor_host.py` and `doctor_cuda.py` have the others.
"""

from __future__ import annotations

import configparser
import ctypes.util
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds `layers/` and `tinyconv/`, and in a clone `setup.cfg`."""

OK, WARNING, WRONG, ABSENT = "ok", "warning", "wrong", "absent"


@dataclass(frozen=True)
class Finding:
    """One line of the table; state: ok, warning, wrong or absent; mend: a command, or nothing."""

    state: str
    found: str
    mend: str = ""


@dataclass
class Machine:
    """What several checks need: the device asked for, and what is installed.

    installed: versions by the distributions' names, in the registry's spelling (lower case, with
    hyphens); needs: version ranges by the same names, as setup.cfg has them ("" for any);
    used: the device of the test launch, once it is done.
    """

    device: str = "auto"
    installed: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    used: str = ""

    @property
    def wants_gpu(self) -> bool:
        """A real GPU was asked for: neither the host, nor the simulator, nor whatever there is."""
        return self.device.startswith("cuda") and not simulated()


def simulated() -> bool:
    """Whether kernels are to run in the simulator; as `layers/device.py` reads it."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def one_line(error: BaseException) -> str:
    """What an exception says, shortened to a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


# --- versions


def installed_versions() -> dict[str, str]:
    """Versions of everything that is installed; a distribution without a readable name is none."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        try:
            found.setdefault(_spelled(distribution.metadata["Name"]), distribution.version)
        except Exception:  # leftovers of a broken installation
            continue
    return found


def required_versions() -> dict[str, str]:
    """What tinyconv requires: setup.cfg's list in a clone, else that of the installed package."""
    if (ROOT / "setup.cfg").is_file():
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        python = config.get("options", "python_requires", fallback="")
        lines = config.get("options", "install_requires", fallback="").splitlines()
    else:
        python = importlib.metadata.metadata("tinyconv")["Requires-Python"] or ""
        lines = importlib.metadata.requires("tinyconv") or []
    needs = {"python": python}
    for line in lines:
        parts = re.fullmatch(r"\s*([\w.-]+)\s*([<>=!~][^;#]*)?", line)
        if parts:  # not a comment, nor a requirement of an extra
            needs[_spelled(parts[1])] = (parts[2] or "").strip()
    return needs


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without zeros at the end: "2.0rc1" -> (2,)."""
    found = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def in_range(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as ">=0.30,<0.31"; only >= and < are needed here."""
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        limit = numbers(clause.lstrip("<>="))
        if clause.startswith(">=") and numbers(version) < limit:
            return False
        if clause.startswith("<") and numbers(version) >= limit:
            return False
    return True


def _spelled(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- packages


def python(machine: Machine) -> Finding:
    """Python's version."""
    wanted = machine.needs.get("python", "")
    found = f"{platform.python_version()}, {sys.executable}"
    if in_range(platform.python_version(), wanted):
        return Finding(OK, found)
    mend = "python3.12 -m venv .venv && . .venv/bin/activate && pip install -e ."
    return Finding(WRONG, f"{found}; tinyconv needs {wanted}", mend)


def package(name: str, module: str | None, machine: Machine) -> Finding:
    """A package that tinyconv cannot do without: installed, in range, and importable.

    module: what to import; None leaves that to the test launch.
    """
    wanted, version = machine.needs.get(name, ""), machine.installed.get(name)
    mend = f"pip install '{name}{wanted}'"
    if version is None:
        return Finding(WRONG, "not installed", mend)
    if not in_range(version, wanted):
        return Finding(WRONG, f"{version}; tinyconv needs {wanted}", mend)
    if module is None:
        return Finding(OK, version)
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        mend = f"pip install --force-reinstall --no-deps '{name}{wanted}'"
        return Finding(WRONG, f"{version}, and importing it fails: {one_line(error)}", mend)
    return Finding(OK, version + _built_on(imported))


def _built_on(imported: Any) -> str:
    """The library inside a package, where its version decides what can be read."""
    hdf5 = getattr(getattr(imported, "version", None), "hdf5_version", None)
    return f", HDF5 {hdf5}" if isinstance(hdf5, str) else ""


def simulator(machine: Machine) -> Finding:
    """greenlet, for kernels without a GPU."""
    if version := machine.installed.get("greenlet"):
        return Finding(OK, f"greenlet {version}")
    return Finding(
        ABSENT,
        "no greenlet; only looking at kernels without a GPU needs it",
        "pip install -e '.[simulator]'",
    )


def mpi(machine: Machine) -> Finding:
    """mpi4py and an MPI library; neither is needed on one machine."""
    version = machine.installed.get("mpi4py")
    library = shutil.which("mpirun") or ctypes.util.find_library("mpi")
    found = f"mpi4py {version or 'not installed'}, library {library or 'not found'}"
    if version and library:
        return Finding(OK, found)
    return Finding(ABSENT, f"{found}; only several machines at once would need it")
