"""The machine that a figure is measured on: as one line, and whether it has a GPU."""

import ctypes
import os
import platform
from importlib import metadata


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def gpu_count() -> int:
    """GPUs that the NVIDIA driver finds; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def machine(*packages: str) -> str:
    """Processor, cores, Python, and the versions of `packages` that are installed."""
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return f"{processor()}, {os.cpu_count()} cores; {', '.join(versions)}"
