"""The doctor's checks of what a GPU needs: driver, CuPy, NVIDIA's libraries, and that they agree.

CuPy and Numba are tried behind `layers/device.py`, like everywhere in the project.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cached_property
from typing import Any

from tinyconv.tools.doctor_checks import (
    ABSENT,
    OK,
    WARNING,
    WRONG,
    Finding,
    Machine,
    numbers,
    one_line,
)
from tinyconv.tools.doctor_driver import Driver, ask_driver

# --- NVIDIA's libraries

CUDA13_FROM = (7, 5)
"""The lowest compute capability that CUDA 13 still compiles for (Turing)."""

LIBRARIES = {
    "nvrtc": ("NVRTC", ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")),
    "nvvm": ("NVVM", ("nvidia-nvvm", "nvidia-cuda-nvcc-cu12")),
    "nvJitLink": ("nvJitLink", ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12")),
    "cublas": ("cuBLAS", ("nvidia-cublas", "nvidia-cublas-cu12")),
}
"""By the names of cuda-pathfinder: what to call them, and the packages that bring them."""

FIND = """
import json, sys
from cuda.pathfinder import load_nvidia_dynamic_lib
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = load_nvidia_dynamic_lib(name).abs_path or "found"
    except Exception:
        pass
print(json.dumps(found))
"""


def find_libraries() -> dict[str, str] | None:
    """Where the system finds each library; None if cuda-pathfinder, which looks, does not run.

    In a process of its own: finding them loads them.
    """
    done = subprocess.run(
        [sys.executable, "-c", FIND, *LIBRARIES], capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


class Cuda:
    """What the checks below share, each found out when it is first asked for."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @cached_property
    def driver(self) -> Driver:
        """The driver's answers."""
        return ask_driver()

    @cached_property
    def cupy_packages(self) -> list[str]:
        """The installed packages that are CuPy: there should be one."""
        return sorted(
            name
            for name in self.machine.installed
            if re.fullmatch(r"cupy(-cuda\d+x?|-rocm[\d-]+)?", name)
        )

    @cached_property
    def opened(self) -> Any:
        """The GPU as a Device, or the exception that it raised."""
        try:
            from layers import Device

            return Device(self.machine.device if self.machine.wants_gpu else "cuda:0")
        except Exception as error:
            return error

    @property
    def works(self) -> bool:
        """Whether CuPy and Numba both have the GPU."""
        return not isinstance(self.opened, Exception) and not self.opened.is_simulated

    def version_of(self, library: str) -> str | None:
        """Version of the package that brings a library of LIBRARIES."""
        installed = self.machine.installed
        return next((installed[name] for name in LIBRARIES[library][1] if name in installed), None)

    @property
    def majors(self) -> list[int]:
        """CUDA's major versions of the installed libraries; without any, of the bindings."""
        installed = self.machine.installed
        packages = [name for _, names in LIBRARIES.values() for name in names if name in installed]
        versions = [installed[name] for name in packages or ["cuda-bindings"] if name in installed]
        return sorted({major for version in versions for major in numbers(version)[:1]})

    @property
    def cupy_major(self) -> int | None:
        """CUDA's major version that CuPy's package was built for."""
        majors = [re.search(r"cuda(\d+)x$", name) for name in self.cupy_packages]
        return int(majors[0][1]) if len(majors) == 1 and majors[0] else None

    @property
    def oldest(self) -> tuple[int, int] | None:
        """The lowest compute capability of the GPUs here."""
        return min((gpu.capability for gpu in self.driver.gpus), default=None)

    def mend(self, cupy_again: bool = False) -> str:
        """The command that installs what this driver and these GPUs need, after what is in the way.

        cupy_again: CuPy is in the way too, even if it is the right one.
        """
        version, oldest = self.driver.version, self.oldest
        major = 12 if (version and version < (13, 0)) or (oldest and oldest < CUDA13_FROM) else 13
        installed = self.machine.installed
        wrong = [
            name for name in self.cupy_packages if cupy_again or name != f"cupy-cuda{major}x"
        ] + [
            name
            for _, names in LIBRARIES.values()
            for name in names
            if name in installed and numbers(installed[name])[:1] != (major,)
        ]
        remove = f"pip uninstall -y {' '.join(wrong)} && " if wrong else ""
        return f"{remove}pip install -e '.[cuda{major}]'"


# --- checks


def driver(cuda: Cuda) -> Finding:
    """The driver, and the CUDA version up to which it runs programs."""
    known = cuda.driver.version
    version = f"CUDA {known[0]}.{known[1]}" if known else "an unknown CUDA version"
    if not cuda.driver.problem:
        return Finding(OK, f"for {version} and older")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "NO_DEVICE" in cuda.driver.problem and hidden is not None:
        found = f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs from {version}"
        return Finding(ABSENT, found, "unset CUDA_VISIBLE_DEVICES")
    return Finding(ABSENT, cuda.driver.problem, cuda.driver.mend)


def gpus(cuda: Cuda) -> Finding:
    """Name, compute capability and memory of each GPU."""
    found = [
        f"cuda:{index} {gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, "
        f"{gpu.memory / 1e9:,.1f} GB"
        for index, gpu in enumerate(cuda.driver.gpus)
    ]
    if not found:
        return Finding(
            ABSENT, f"none ({cuda.driver.problem or 'the driver lists none'})", "nvidia-smi -L"
        )
    asked = cuda.machine.device.partition(":")[2] or "0"
    if cuda.machine.wants_gpu and int(asked) >= len(found):
        text = f"{'; '.join(found)}; there is no cuda:{asked}"
        return Finding(WRONG, text, f"--device cuda:{len(found) - 1}")
    return Finding(OK, "; ".join(found))


def cupy(cuda: Cuda) -> Finding:
    """CuPy: one package of it, which can be imported; with a GPU, what it runs on there."""
    packages = [f"{name} {cuda.machine.installed[name]}" for name in cuda.cupy_packages]
    if not packages:
        return Finding(ABSENT, "not installed; only a GPU needs it", cuda.mend())
    if len(packages) > 1:
        found = f"{' and '.join(packages)}: they overwrite each other's files"
        return Finding(WRONG, found, cuda.mend(cupy_again=True))
    if cuda.works:
        return Finding(OK, f"{packages[0]}, {_runtime(cuda.opened.xp)}")
    if error := _import_error(cuda.opened):
        found = f"{packages[0]}, and importing it fails: {one_line(error)}"
        return Finding(WRONG, found, cuda.mend(cupy_again=True))
    return Finding(OK, packages[0])


def _import_error(opened: Any) -> BaseException | None:
    """What CuPy raised when it was imported, if it was and did."""
    device = sys.modules.get("layers.device")
    if device is None or not isinstance(opened, Exception):
        return None  # nothing here can be imported, or CuPy works
    if not isinstance(opened, device.DeviceError):
        return opened
    # It says that CuPy is not installed; what made it say so is the error before.
    return opened.__context__ if isinstance(opened.__context__, ImportError) else None


def _runtime(xp: Any) -> str:
    version = xp.cuda.runtime.runtimeGetVersion()
    major, minor = xp.cuda.nvrtc.getVersion()
    return f"runtime {version // 1000}.{version % 1000 // 10}, NVRTC {major}.{minor}"


def toolkit(cuda: Cuda) -> Finding:
    """The libraries of CUDA's toolkit that Numba and CuPy load."""
    places = find_libraries()
    parts, missing = [], []
    for name, (title, _) in LIBRARIES.items():
        version = cuda.version_of(name)
        if name in places if places is not None else version:
            parts.append(f"{title} {version or (places or {})[name]}")
        else:
            missing.append(title)
    found = ", ".join(parts + [f"{title} not found" for title in missing])
    if not missing:
        return Finding(OK, found)
    return Finding(ABSENT, f"{found}; only a GPU needs them", cuda.mend())


def majors(cuda: Cuda) -> Finding:
    """Whether NVIDIA's libraries, CuPy, the driver and the GPUs go together."""
    known, built_for = cuda.driver.version, cuda.cupy_major
    libraries = " and ".join(str(major) for major in cuda.majors)
    parts = [f"libraries {libraries}"] if libraries else []
    parts += [f"CuPy {built_for}"] if built_for else []
    found = ", ".join([*parts, f"driver {known[0]}.{known[1]}" if known else "no driver"])
    present = {*cuda.majors, *([built_for] if built_for else [])}
    newest = max(present, default=0)
    if known is None or not present:
        return Finding(ABSENT, found)
    if newest > known[0]:
        note = f"{found}: the driver is older than the packages; a newer driver, or"
        return Finding(WRONG, note, cuda.mend())
    if newest >= 13 and cuda.oldest and cuda.oldest < CUDA13_FROM:
        capability = f"{cuda.oldest[0]}.{cuda.oldest[1]}"
        note = f"{found}: CUDA 13 has no code for compute capability {capability}"
        return Finding(WRONG, note, cuda.mend())
    if len(present) > 1:
        return Finding(WARNING, f"{found}: they should be of one version", cuda.mend())
    compiler, linker = cuda.version_of("nvvm"), cuda.version_of("nvJitLink")
    # nvJitLink makes machine code of the compiler's PTX; without it the driver has to know the PTX.
    unlinked = compiler and (not linker or numbers(linker)[:2] < numbers(compiler)[:2])
    if compiler and unlinked and numbers(compiler)[:2] > known:
        note = f"{found}: NVVM {compiler} is newer than the driver and than nvJitLink {linker}"
        upgrade = f"pip install --upgrade {LIBRARIES['nvJitLink'][1][0 if newest > 12 else 1]}"
        return Finding(WARNING, note, upgrade)
    return Finding(OK, found)


def tf32(cuda: Cuda) -> Finding:
    """Whether CuPy's matrix products may round their inputs to TF32 (compute capability 8.0)."""
    setting = os.environ.get("CUPY_TF32", "0")
    able = any(gpu.capability >= (8, 0) for gpu in cuda.driver.gpus)
    if not able:
        return Finding(ABSENT, "no GPU has it (compute capability 8.0 or higher)")
    use = "on: faster products, 10 bits of mantissa" if setting == "1" else "off: float32 products"
    return Finding(OK, f"CUPY_TF32={setting}, {use}")


def nccl(cuda: Cuda) -> Finding:
    """NCCL, by which several GPUs exchange arrays."""
    for name in ("nvidia-nccl-cu12", "nvidia-nccl-cu13"):
        if version := cuda.machine.installed.get(name):
            return Finding(OK, f"{name} {version}")
    return Finding(ABSENT, "not installed; only several GPUs at once would need it")
