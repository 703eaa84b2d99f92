"""What NVIDIA's driver says of itself and of its GPUs.

It is asked directly, through its own library, so that the answer does not depend on CuPy or Numba.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import Any

COMPUTE_CAPABILITY = 75, 76
"""Attributes of a device in cuda.h: major and minor."""

MENDS = {
    "CUDA_ERROR_NO_DEVICE": "nvidia-smi -L",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart the machine: it runs another driver than is "
    "installed",
    "CUDA_ERROR_STUB_LIBRARY": "unset LD_LIBRARY_PATH",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it; memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass
class Driver:
    """NVIDIA's driver: the CUDA version it knows and its GPUs, or the problem with it."""

    version: tuple[int, int] | None = None
    gpus: list[Gpu] = field(default_factory=list)
    problem: str = ""
    mend: str = ""


def load_driver() -> Any:
    """The driver's library; OSError if there is none."""
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def ask_driver() -> Driver:
    """Version and GPUs from the driver. No context is made: nothing is taken on any GPU."""
    install = "install NVIDIA's driver (nvidia.com/drivers); nvidia-smi shows that it works"
    try:
        library = load_driver()
    except OSError:
        return Driver(problem="no NVIDIA driver", mend=install)
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    known = (version.value // 1000, version.value % 1000 // 10) if version.value else None
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if status:
        name = _error_name(library, status)
        return Driver(known, problem=f"the driver answers {name}", mend=MENDS.get(name, install))
    return Driver(known, [_describe(library, index) for index in range(count.value)])


def _error_name(library: Any, status: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {status}"


def _describe(library: Any, index: int) -> Gpu:
    device, memory = ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in COMPUTE_CAPABILITY:
        value = ctypes.c_int(0)
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)
