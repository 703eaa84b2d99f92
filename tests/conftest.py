"""Where the kernels of the tests run: on a GPU if there is one, else in the simulator.

The choice has to be made before numba is imported, so the driver is asked directly.
"""

import ctypes
import os

import pytest


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


if not gpu_count():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

from layers import Device, DeviceError  # noqa: E402


def pytest_report_header() -> str:
    """The device that the kernels of this run see, or why there is none."""
    try:
        return f"kernels on {Device('cuda:0')}"
    except DeviceError as error:
        return f"no kernels: {error}"


@pytest.fixture(scope="session")
def cuda_device() -> Device:
    """cuda:0, real or simulated."""
    try:
        return Device("cuda:0")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["cpu", "cuda:0"])
def device(request) -> Device:
    """The host, and then the device that runs kernels."""
    try:
        return Device(request.param)
    except DeviceError as error:
        pytest.skip(str(error))
