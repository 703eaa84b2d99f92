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
import shlex
import shutil
import subprocess
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
    problem: str = ""
    fix: str = ""


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


# --- packages

MODULES = {"numba-cuda": "", "pillow": "PIL.Image", "matplotlib": "matplotlib.figure"}
"""What to import of a package, if not its name; numba-cuda is left to the test launch."""


def installed(*names: str) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {name: version for name, version in found.items() if version}  # None: leftover files


def listed(versions: dict[str, str]) -> str:
    """Names with versions, in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def requirements() -> list[Requirement]:
    """Python and the packages of setup.cfg in a clone, else those of the installed tinyconv."""
    if (ROOT / "setup.cfg").is_file():
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        python = config["options"]["python_requires"]
        lines = config["options"]["install_requires"].split("\n")
    else:
        python = metadata.metadata("tinyconv")["Requires-Python"]
        lines = metadata.requires("tinyconv") or []
    every = [Requirement(line) for line in (f"Python{python}", *filter(None, lines))]
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]


def package(needed: Requirement) -> Finding:
    """Whether Python or a package is installed, in range and importable."""
    if needed.name == "Python":
        version, module = platform.python_version(), ""
        fix = "python3.12 -m venv .venv && . .venv/bin/activate && pip install -e ."
    else:
        version = installed(needed.name).get(needed.name, "")
        module = MODULES.get(needed.name, needed.name)
        fix = f"pip install '{needed}'"
    if not version:
        return Finding(FAILED, "not installed", fix)
    if not needed.specifier.contains(version, prereleases=True):
        return Finding(FAILED, f"{version}; tinyconv needs {needed.specifier}", fix)
    try:
        if module:
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

DRIVER_FIXES = {
    34: "unset LD_LIBRARY_PATH",
    100: "nvidia-smi -L",
    803: "restart the machine: the running driver is older than the installed one",
}
"""By CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_NO_DEVICE and CUDA_ERROR_SYSTEM_DRIVER_MISMATCH."""


def ask_driver() -> Driver:
    """Version and GPUs from the driver's library; no context is created, no memory allocated."""
    install = "install NVIDIA's driver (nvidia.com/drivers); nvidia-smi shows that it works"
    try:
        library: Any = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return Driver(problem="no NVIDIA driver", fix=install)
    number, count = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    version = (number.value // 1000, number.value % 1000 // 10)
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if status == 100 and hidden is not None:
        problem = f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs"
        return Driver(version, problem=problem, fix="unset CUDA_VISIBLE_DEVICES")
    if status:
        name = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        problem = f"the driver returns {name.value.decode() if name.value else f'error {status}'}"
        return Driver(version, problem=problem, fix=DRIVER_FIXES.get(status, install))
    return Driver(version, tuple(_describe(library, index) for index in range(count.value)))


def _describe(library: Any, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(0), ctypes.c_size_t(0), ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # compute capability in cuda.h
    library.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def driver(machine: Machine) -> Finding:
    """The newest CUDA version that the driver supports, and its GPUs."""
    (major, minor), gpus = machine.driver.version, machine.driver.gpus
    if not gpus:
        problem = machine.driver.problem or "the driver lists no GPU"
        return Finding(MISSING, problem, machine.driver.fix or "nvidia-smi -L")
    found = f"CUDA {major}.{minor}"
    for index, gpu in enumerate(gpus):
        capability = f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        found += f"; cuda:{index} {gpu.name}, {capability}, {gpu.memory / 1e9:,.1f} GB"
    index = int(machine.device.partition(":")[2] or "0")
    if machine.wants_gpu and index >= len(gpus):
        return Finding(FAILED, f"{found}; no cuda:{index}", f"--device cuda:{len(gpus) - 1}")
    return Finding(OK, found)


# --- CuPy and NVIDIA's libraries

CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")

LIBRARIES = ("nvrtc", "nvvm", "nvJitLink", "cublas")
"""What Numba and CuPy load, by the names of cuda-pathfinder."""

CACHED = {".pyc", ".nbi", ".nbc"}
"""Files in __pycache__, Python's and Numba's."""

LIBRARY_PACKAGES = tuple(
    f"nvidia-{name}{suffix}"
    for name in ("cuda-nvrtc", "nvvm", "cuda-nvcc", "nvjitlink", "cublas")
    for suffix in ("", "-cu12")
)
"""The packages that contain them; those without a suffix are of CUDA 13."""

NOT_FOUND = """
import sys
from cuda.pathfinder import load_nvidia_dynamic_lib
for name in sys.argv[1:]:
    try:
        load_nvidia_dynamic_lib(name)
    except Exception:
        print(name)
"""


def major_of(version: str) -> int:
    """A version's first number."""
    return int(version.split(".")[0])


def install_cuda(machine: Machine, *remove: str) -> str:
    """The command that installs the extra for this driver and these GPUs.

    First it uninstalls `remove` and the packages of another CUDA version.
    """
    major = machine.newest_cuda
    other = [name for name in installed(*CUPY) if name in remove or name != f"cupy-cuda{major}x"]
    libraries = installed(*LIBRARY_PACKAGES)
    other += [name for name, version in libraries.items() if major_of(version) != major]
    uninstall = f"pip uninstall -y {' '.join(other)} && " if other else ""
    return f"{uninstall}pip install -e '.[cuda{major}]'"


def cupy(machine: Machine) -> Finding:
    """Whether one package of CuPy is installed, and importable."""
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
    return Finding(OK, found)


def libraries(machine: Machine) -> Finding:
    """Whether the libraries of the CUDA toolkit are found, wherever they are installed."""
    # In another process, because finding a library loads it.
    command = [sys.executable, "-c", NOT_FOUND, *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lacking = done.stdout.split() if done.returncode == 0 else LIBRARIES
    if lacking:
        return Finding(MISSING, f"{', '.join(lacking)} not found", install_cuda(machine))
    return Finding(OK, listed(installed(*LIBRARY_PACKAGES)) or f"found {', '.join(LIBRARIES)}")


def versions_agree(machine: Machine) -> Finding:
    """Whether NVIDIA's libraries, CuPy, the driver and the GPUs are of compatible versions."""
    known = machine.driver.version
    packages = installed(*LIBRARY_PACKAGES) or installed("cuda-bindings")
    majors = {major_of(version) for version in packages.values()}
    words = [f"libraries {major}" for major in sorted(majors)]
    for major in re.findall(r"cuda(\d+)x", " ".join(installed(*CUPY))):
        majors.add(int(major))
        words.append(f"CuPy {major}")
    found = ", ".join([*words, f"driver {known[0]}.{known[1]}" if known[0] else "no driver"])
    if not known[0] or not majors:
        return Finding(MISSING, found)
    if (supported := min(known[0], machine.newest_cuda)) < max(majors):
        note = f"{found}: this driver and these GPUs support CUDA {supported} at most"
        return Finding(FAILED, note, install_cuda(machine))
    if len(majors) > 1:
        return Finding(WARNING, f"{found}: they should be of one version", install_cuda(machine))
    return Finding(OK, found)


# --- does it compute?


def leftovers() -> Finding:
    """Folders of caches that an uninstalled tinyconv has left: Python may take them for it."""
    found = []
    for folder in (Path(entry) / name for entry in sys.path for name in ("layers", "tinyconv")):
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        cached = (path.suffix in CACHED and path.parent.name == "__pycache__" for path in files)
        if files and all(cached):
            found.append(shlex.quote(str(folder)))
    if found:
        note = f"caches of an uninstalled tinyconv hide this one: {', '.join(found)}"
        return Finding(WARNING, note, f"rm -r {' '.join(found)}")
    return Finding(OK, f"{ROOT}")


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
        return _compute(machine)
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
        return Finding(FAILED, found, fix)


def _compute(machine: Machine) -> Finding:
    from layers import Device, Linear, ReLU

    device = Device(machine.device).use()
    machine.used = device.name
    relu, linear = ReLU().to(device), Linear(4, 2).to(device)
    # Small whole numbers: exact in float32 and in TF32 as well.
    linear.weight.value[...] = device.array([[1, 2, 3, 4], [-4, 3, -2, 1]], "float32")
    x = device.array([[1, -2, 3, -4], [-5, 6, 7, 8], [0, -1, 2, 5]], "float32")
    y = device.to_host(linear.forward(relu.forward(x))).tolist()
    expected = [[10, -10], [65, 12], [26, 1]]
    if y != expected:
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
        found = "not installed: versions are not checked"
        missing = partial(Finding, FAILED, found, "pip install -e .")
        packages: list[Check] = [("packaging", HOST, missing)]
    else:
        packages = [(one.name, HOST, partial(package, one)) for one in requirements()]
    nccl = partial(optional, "several GPUs", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
    mpi = partial(optional, "several machines", "mpi4py")
    simulator = partial(
        optional, "kernels without a GPU", "greenlet", fix="pip install -e '.[simulator]'"
    )
    return [
        *packages,
        ("GPU driver", GPU, partial(driver, machine)),
        ("CuPy", GPU, partial(cupy, machine)),
        ("CUDA libraries", GPU, partial(libraries, machine)),
        ("CUDA versions", OPTIONAL, partial(versions_agree, machine)),
        ("NCCL", OPTIONAL, nccl),
        ("MPI", OPTIONAL, mpi),
        ("simulator", OPTIONAL, simulator),
        ("tinyconv", HOST, leftovers),
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
