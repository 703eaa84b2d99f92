"""The driver's answers, from a driver that is not there."""

import ctypes

import pytest

from tinyconv.tools import doctor_driver
from tinyconv.tools.doctor_driver import Gpu, ask_driver


class FakeDriver:
    """libcuda as far as the doctor calls it, through pointers as ctypes passes them."""

    def __init__(self, version=13000, init=0, gpus=(), names=None):
        self.version, self.init, self.gpus, self.names = version, init, list(gpus), names or {}

    def cuInit(self, flags):
        return self.init

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, pointer, index):
        pointer._obj.value = index + 10  # a handle, not the index
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = self.gpus[device.value - 10].name.encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, pointer, device):
        pointer._obj.value = self.gpus[device.value - 10].memory
        return 0

    def cuDeviceGetAttribute(self, pointer, attribute, device):
        pointer._obj.value = self.gpus[device.value - 10].capability[attribute - 75]
        return 0

    def cuGetErrorName(self, status, pointer):
        pointer._obj.value = self.names.get(status)
        return 0 if status in self.names else 1


def answers(monkeypatch, **settings):
    monkeypatch.setattr(doctor_driver, "load_driver", lambda: FakeDriver(**settings))
    return ask_driver()


def test_version_and_gpus(monkeypatch):
    gpus = [Gpu("NVIDIA H200", (9, 0), 150_000_000_000), Gpu("Tesla T4", (7, 5), 16_000_000_000)]
    driver = answers(monkeypatch, version=12080, gpus=gpus)
    assert driver.version == (12, 8) and driver.gpus == gpus and driver.problem == ""


@pytest.mark.parametrize(
    "status, name, mend",
    [
        (100, b"CUDA_ERROR_NO_DEVICE", "nvidia-smi -L"),
        (803, b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine"),
        (34, b"CUDA_ERROR_STUB_LIBRARY", "unset LD_LIBRARY_PATH"),
        (999, b"CUDA_ERROR_UNKNOWN", "install NVIDIA's driver"),
    ],
)
def test_a_driver_that_does_not_start_is_named_with_what_mends_it(monkeypatch, status, name, mend):
    driver = answers(monkeypatch, init=status, names={status: name})
    assert driver.problem == f"the driver answers {name.decode()}" and not driver.gpus
    assert driver.mend.startswith(mend) and driver.version == (13, 0)


def test_an_error_without_a_name_is_told_by_its_number(monkeypatch):
    driver = answers(monkeypatch, init=4711, version=0)
    assert driver.problem == "the driver answers error 4711" and driver.version is None


def test_no_driver(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert ask_driver().problem == "no NVIDIA driver" and ask_driver().mend
