"""`python -m tinyconv doctor [--device NAME]`: can this machine train, and if not, why?

One line per check: ok, warning, failed or missing, what was found, and below it the command that
fixes it. Missing packages that the device does not need are not failures. Exit status 0 if the
device can train, 1 if it cannot, 2 for wrong usage. If tinyconv cannot be imported, run
`python tinyconv/tools/doctor.py`. For details: `numba -s`, and
`python -c "import cupy; cupy.show_config()"`.
"""

# Only the standard library and packaging are imported here, and the rest within the checks: each
# package that cannot be imported is then a row of the table.
from __future__ import annotations

import argparse
import configparser
import ctypes
import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

try:
    from packaging.requirements import Requirement
except ImportError:  # then that is a row of the table
    Requirement = None  # type: ignore[assignment,misc]

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds `layers/` and `tinyconv/`, and in a clone `setup.cfg`."""

OK, WARNING, FAILED, MISSING = "ok", "warning", "failed", "missing"

HOST, GPU, OPTIONAL = "host", "gpu", "optional"
"""What a check is needed for: all training; training on a GPU; neither."""


class Finding(NamedTuple):
    """The result of a check; state: ok, warning, failed or missing; fix: a command, or ""."""

    state: str
    found: str
    fix: str = ""


Check = tuple[str, str, Callable[[], Finding]]


class Gpu(NamedTuple):
    """A GPU as the driver describes it; memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


class Driver(NamedTuple):
    """NVIDIA's driver: the CUDA version it supports and its GPUs, or the problem and its fix."""

    version: tuple[int, int] = (0, 0)
    gpus: tuple[Gpu, ...] = ()
    problem: str = "the driver lists no GPU"
    fix: str = "nvidia-smi -L"


class Machine:
    """The device asked for; used: the device of the test launch, once it has run."""

    def __init__(self, device: str = "auto") -> None:
        self.device, self.used = device, ""

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU was requested, and not the simulator (as `layers/device.py` reads it)."""
        simulated = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
        return self.device.startswith("cuda") and not simulated

    @cached_property
    def driver(self) -> Driver:
        """The driver's answers."""
        return ask_driver()

    @property
    def newest_cuda(self) -> int:
        """The newest CUDA that driver and GPUs support, 12 or 13; without a driver 13."""
        # CUDA 13 compiles for compute capability 7.5 (Turing) and newer.
        old_gpu = any(gpu.capability < (7, 5) for gpu in self.driver.gpus)
        return 12 if old_gpu or (0, 0) < self.driver.version < (13, 0) else 13


def one_line(error: BaseException) -> str:
    """An exception's type and message, shortened to a line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 300 else text[:297] + "..."


def installed(*names: str) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in names}
    # A package of which only some files are left has no version.
    return {name: each.version for name, each in found.items() if each and each.version}


def listed(versions: dict[str, str]) -> str:
    """Names with versions, in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# --- packages

MODULES = {"numba-cuda": "", "Python": "", "pillow": "PIL.Image", "matplotlib": "matplotlib.figure"}
"""What to import of a package, if not its name; numba-cuda is left to the test launch."""


def requirements() -> list[Requirement]:
    """Python and the packages of setup.cfg in a clone, else those of the installed tinyconv."""
    if (ROOT / "setup.cfg").is_file():
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        python, lines = (config["options"][f"{x}_requires"] for x in ("python", "install"))
    else:
        python = metadata.metadata("tinyconv")["Requires-Python"]
        lines = "\n".join(metadata.requires("tinyconv") or [])
    every = [Requirement(line) for line in (f"Python{python}", *lines.split("\n")) if line]
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]


def package(needed: Requirement) -> Finding:
    """Whether Python or a package is installed, in range and importable."""
    version, fix = installed(needed.name).get(needed.name, ""), f"pip install '{needed}'"
    if needed.name == "Python":
        version = platform.python_version()
        fix = "python3.12 -m venv .venv && . .venv/bin/activate && pip install -e ."
    if not version:
        return Finding(FAILED, "not installed", fix)
    if not needed.specifier.contains(version, prereleases=True):
        return Finding(FAILED, f"{version}; tinyconv needs {needed.specifier}", fix)
    try:
        if module := MODULES.get(needed.name, needed.name):
            importlib.import_module(module)
    except Exception as error:
        fix = f"pip install --force-reinstall --no-deps '{needed}'"
        return Finding(FAILED, f"{version}, and importing it fails: {one_line(error)}", fix)
    return Finding(OK, version if needed.name != "Python" else f"{version}, {sys.executable}")


def optional(purpose: str, *names: str, fix: str = "") -> Finding:
    """Whether one of the packages is installed; training on one device needs none of them."""
    if versions := installed(*names):
        return Finding(OK, listed(versions))
    return Finding(MISSING, f"{' or '.join(names)}: only needed for {purpose}", fix)


# --- driver and GPUs

INSTALL = "install NVIDIA's driver (nvidia.com/drivers); nvidia-smi shows that it works"

DRIVER_FIXES = {
    34: "unset LD_LIBRARY_PATH",
    100: "nvidia-smi -L",
    803: "restart the machine: the running driver is older than the installed one",
}
"""By CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_NO_DEVICE and CUDA_ERROR_SYSTEM_DRIVER_MISMATCH."""


def ask_driver() -> Driver:
    """Version and GPUs from the driver's library; no context is created, no memory allocated."""
    try:
        library: Any = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return Driver(problem="no NVIDIA driver", fix=INSTALL)

    def ask(name: str, *arguments: Any, answer: Any = ctypes.c_int) -> Any:
        """What the function writes to its first argument; an error of the driver is raised."""
        value = answer()
        if status := getattr(library, name)(ctypes.byref(value), *arguments):
            raise OSError(status, name)
        return value.value

    version, gpus = (0, 0), []
    try:
        number = ask("cuDriverGetVersion")
        version = (number // 1000, number % 1000 // 10)
        if status := library.cuInit(0):
            raise OSError(status, "cuInit")
        for index in range(ask("cuDeviceGetCount")):
            device, name = ask("cuDeviceGet", index), ctypes.create_string_buffer(256)
            library.cuDeviceGetName(name, len(name), device)
            # 75 and 76 are the compute capability, in cuda.h.
            major, minor = (ask("cuDeviceGetAttribute", each, device) for each in (75, 76))
            memory = ask("cuDeviceTotalMem_v2", device, answer=ctypes.c_size_t)
            gpus.append(Gpu(name.value.decode(errors="replace"), (major, minor), memory))
        return Driver(version, tuple(gpus))
    except OSError as error:
        status = error.errno or 0
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if status == 100 and hidden is not None:
        problem = f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs"
        return Driver(version, (), problem, "unset CUDA_VISIBLE_DEVICES")
    text = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(text))
    problem = f"the driver returns {text.value.decode() if text.value else f'error {status}'}"
    return Driver(version, (), problem, DRIVER_FIXES.get(status, INSTALL))


def driver(machine: Machine) -> Finding:
    """The newest CUDA version that the driver supports, and its GPUs."""
    (major, minor), gpus, problem, fix = machine.driver
    if not gpus:
        return Finding(MISSING, problem, fix)
    found = f"CUDA {major}.{minor}"
    for index, gpu in enumerate(gpus):
        capability = f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        found += f"; cuda:{index} {gpu.name}, {capability}, {gpu.memory / 1e9:,.1f} GB"
    if machine.wants_gpu and (name := machine.device.partition(":")[2]) and int(name) >= len(gpus):
        return Finding(FAILED, f"{found}; no cuda:{name}", f"--device cuda:{len(gpus) - 1}")
    return Finding(OK, found)


# --- CuPy and NVIDIA's libraries

CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")

LIBRARIES = tuple(
    f"nvidia-{name}{suffix}"
    for name in ("cuda-nvrtc", "nvvm", "cuda-nvcc", "nvjitlink", "cublas")
    for suffix in ("", "-cu12")
)
"""Packages of what Numba and CuPy load; those without a suffix are of CUDA 13."""


def install_cuda(machine: Machine, *remove: str) -> str:
    """The command that installs the extra for this driver and these GPUs.

    First it uninstalls `remove` and the packages of another CUDA version.
    """
    major = machine.newest_cuda
    other = [name for name in installed(*CUPY) if name in remove or name != f"cupy-cuda{major}x"]
    libraries = installed(*LIBRARIES).items()
    other += [name for name, version in libraries if version.split(".")[0] != str(major)]
    uninstall = f"pip uninstall -y {' '.join(other)} && " if other else ""
    return f"{uninstall}pip install -e '.[cuda{major}]'"


def cupy(machine: Machine) -> Finding:
    """Whether one CuPy is importable, and fits NVIDIA's libraries, the driver and the GPUs."""
    packages = installed(*CUPY)
    if not packages:
        return Finding(MISSING, "not installed", install_cuda(machine))
    found, fix = listed(packages), install_cuda(machine, *packages)
    if len(packages) > 1:
        return Finding(FAILED, f"{found}: they overwrite each other's files", fix)
    try:
        importlib.import_module("cupy")
    except Exception as error:
        return Finding(FAILED, f"{found}, and importing it fails: {one_line(error)}", fix)
    libraries, fix = installed(*LIBRARIES) or installed("cuda-bindings"), install_cuda(machine)
    majors = {int(version.split(".")[0]) for version in libraries.values()}
    found += "".join(f", libraries of CUDA {major}" for major in sorted(majors))
    majors |= {int(major) for major in re.findall(r"cuda(\d+)x", found)}
    newest = min(machine.newest_cuda, machine.driver.version[0] or machine.newest_cuda)
    if max(majors, default=0) > newest:
        note = f"{found}: this driver and these GPUs support CUDA {newest} at most"
        return Finding(FAILED, note, fix)
    if len(majors) > 1:
        return Finding(WARNING, f"{found}: they should be of one version", fix)
    return Finding(OK, found)


# --- does it compute?


def disk() -> Finding:
    """Free space for the files of a run."""
    # Weights and velocities of 61 million parameters, 4 bytes each, are 0.49 GB: two checkpoints
    # and the best are kept while the next one is written.
    free, needed = shutil.disk_usage(".").free, 4 * 0.49e9
    found = f"{os.getcwd()}, {free / 1e9:,.1f} GB free"
    if free < needed:
        note = f"{found}; checkpoints of the full net need {needed / 1e9:.1f} GB"
        return Finding(WARNING, note, "train_alexnet.py --out FOLDER, on another disk")
    return Finding(OK, found)


def launch(machine: Machine) -> Finding:
    """A loop (on a GPU, a kernel) and a matrix product on the device, with known results."""
    try:
        from layers import Device, Linear, ReLU

        device = Device(machine.device).use()
        machine.used = device.name
        relu, linear = ReLU().to(device), Linear(4, 2).to(device)
        # Small whole numbers: exact in float32 and in TF32 as well.
        linear.weight.value[...] = device.array([[1, 2, 3, 4], [-4, 3, -2, 1]], "float32")
        x = device.array([[1, -2, 3, -4], [-5, 6, 7, 8], [0, -1, 2, 5]], "float32")
        y = device.to_host(linear.forward(relu.forward(x))).tolist()
    except Exception as error:
        found, fix = one_line(error), ""
        if isinstance(error, ImportError):
            fix = "pip install -e ."
        elif "UNSUPPORTED_PTX_VERSION" in str(error):
            found += " (the driver is older than the PTX of Numba's compiler: a newer driver, or)"
            suffix = "-cu12" if installed("nvidia-nvjitlink-cu12") else ""
            fix = f"pip install --upgrade nvidia-nvjitlink{suffix}"
        elif "no locator available" in str(error):  # no writable folder for compiled loops
            fix = f"export NUMBA_CACHE_DIR={Path(tempfile.gettempdir()) / 'numba-cache'}"
        elif machine.wants_gpu and "pip install" not in found:  # such as a missing library
            fix = f"{install_cuda(machine)}  # see numba -s"
        return Finding(FAILED, found, fix)
    if y != (expected := [[10, -10], [65, 12], [26, 1]]):
        return Finding(FAILED, f"{device} computes {y}, expected {expected}")
    what = "a kernel" if device.is_cuda else "a compiled loop"
    found = f"{device}: {what} and a matrix product give the right numbers"
    if device.is_simulated:
        return Finding(WARNING, f"{found}; the simulator is far too slow to train")
    return Finding(OK, found)


# --- the table


def checks(machine: Machine) -> list[Check]:
    """(title, what it is needed for, check) in the order of the table."""
    if Requirement is None:
        missing = Finding(FAILED, "not installed: versions are not checked", "pip install -e .")
        packages: list[Check] = [("packaging", HOST, lambda: missing)]
    else:
        packages = [(one.name, HOST, partial(package, one)) for one in requirements()]
    nccl = partial(optional, "several GPUs", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
    greenlet = partial(optional, "kernels without a GPU", "greenlet")
    return [
        *packages,
        ("GPU driver", GPU, partial(driver, machine)),
        ("CuPy", GPU, partial(cupy, machine)),
        ("NCCL", OPTIONAL, nccl),
        ("MPI", OPTIONAL, partial(optional, "several machines", "mpi4py")),
        ("simulator", OPTIONAL, partial(greenlet, fix="pip install -e '.[simulator]'")),
        ("tinyconv", HOST, lambda: Finding(OK, str(ROOT))),
        ("disk", HOST, disk),
        ("test launch", HOST, partial(launch, machine)),
    ]


def verdict(machine: Machine, findings: list[tuple[str, str, Finding]]) -> tuple[bool, str]:
    """Whether the device can train, and the last line of the table.

    A device that passes the test launch and has what the host needs can train, whatever else fails.
    """
    asked = {"auto": "this machine", "cpu": "the host"}.get(machine.device, machine.device)
    failed = [(title, need, one.found) for title, need, one in findings if one.state == FAILED]
    if any(need == HOST for _, need, _ in failed):
        title, found = next((t, f) for t, n, f in failed if machine.wants_gpu or n == HOST)
        return False, f"{asked} cannot train: {title}: {found} (the fix is in the table)"
    if machine.device != "auto":
        return True, f"{asked} can train"
    if machine.used != "cpu":
        return True, f"{asked} can train, on {machine.used}"
    lacking = [title for title, need, finding in findings if need == GPU and finding.state != OK]
    why = f" (see {', '.join(lacking)})" if lacking else ""
    return True, f"{asked} can train, on the host: no GPU is used{why}"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, or cuda:0")


def main(options: argparse.Namespace) -> int:
    """Print the table; 0 if the device can train, else 1. ValueError for an unknown device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device {options.device!r}: use 'cpu', 'cuda:0' or 'auto'")
    machine, findings = Machine(options.device), []
    for title, need, check in checks(machine):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                finding = check()
        except Exception as error:
            finding = Finding(WARNING, f"could not be checked: {one_line(error)}")
        if need == GPU and machine.wants_gpu and finding.state == MISSING:
            finding = finding._replace(state=FAILED)
        findings.append((title, need, finding))
        print(f"{title:15} {finding.state:8} {finding.found}", flush=True)
        # Without a GPU, or with --device cpu, how to install for a GPU would be noise.
        if finding.fix and (need, finding.state) != (GPU, MISSING):
            print(f"{'':24} -> {finding.fix}", flush=True)
    can_train, summary = verdict(machine, findings)
    print(summary)
    return 0 if can_train else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for the test launch: `layers` need not be installed
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    try:
        sys.exit(main(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))
