"""What the doctor says of drivers, GPUs, CuPy and NVIDIA's libraries that this machine has not."""

import ctypes
import importlib
from types import SimpleNamespace

import pytest
from doctor_machines import CUDA12, CUDA13, H200, V100, machine

import layers
from tinyconv.tools import doctor
from tinyconv.tools.doctor import FAILED, MISSING, OK, WARNING, Driver, Gpu, Machine

# --- driver


def libcuda(version=13000, init=0, gpus=(), names=None):
    """The driver's library as far as the doctor calls it: functions that write to pointers."""

    def put(pointer, value):
        pointer._obj.value = value
        return 0

    def gpu(handle):
        return gpus[handle - 10]  # a handle is not an index

    return SimpleNamespace(
        cuInit=lambda flags: init,
        cuDriverGetVersion=lambda p: put(p, version),
        cuDeviceGetCount=lambda p: put(p, len(gpus)),
        cuDeviceGet=lambda p, index: put(p, index + 10),
        cuDeviceGetName=lambda p, size, d: setattr(p, "value", gpu(d).name.encode()[: size - 1]),
        cuDeviceTotalMem_v2=lambda p, d: put(p, gpu(d).memory),
        cuDeviceGetAttribute=lambda p, number, d: put(p, gpu(d).capability[number - 75]),
        cuGetErrorName=lambda status, p: put(p, (names or {}).get(status)),
    )


def answers(monkeypatch, **settings):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libcuda(**settings))
    return doctor.ask_driver()


def test_version_and_gpus(monkeypatch):
    t4 = Gpu("Tesla T4", (7, 5), 16_000_000_000)
    assert answers(monkeypatch, version=12080, gpus=[H200, t4]) == Driver((12, 8), (H200, t4))


@pytest.mark.parametrize(
    "status, name, fix",
    [
        (100, "CUDA_ERROR_NO_DEVICE", "nvidia-smi -L"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine"),
        (34, "CUDA_ERROR_STUB_LIBRARY", "unset LD_LIBRARY_PATH"),
        (999, "CUDA_ERROR_UNKNOWN", "install NVIDIA's driver"),
        (4711, "", "install NVIDIA's driver"),
    ],
)
def test_a_driver_that_does_not_start_is_named_with_its_fix(monkeypatch, status, name, fix):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = answers(monkeypatch, init=status, names={status: name.encode()})
    assert driver.problem == f"the driver returns {name or 'error 4711'}" and not driver.gpus
    assert driver.fix.startswith(fix) and driver.version == (13, 0)


def test_hidden_gpus_differ_from_missing_ones(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    driver = answers(monkeypatch, init=100)
    assert driver.problem == "CUDA_VISIBLE_DEVICES='-1' hides the GPUs"
    assert driver.fix == "unset CUDA_VISIBLE_DEVICES"


def test_no_driver(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert doctor.ask_driver().problem == "no NVIDIA driver" and doctor.ask_driver().fix
    finding = doctor.driver(Machine())
    assert finding.state == MISSING and "install NVIDIA's driver" in finding.fix


def test_every_gpu_is_listed(real_gpu):
    listed = (
        "CUDA 13.0; cuda:0 NVIDIA H200, compute capability 9.0, 150.0 GB; "
        "cuda:1 Tesla V100, compute capability 7.0, 16.0 GB"
    )
    two = machine(gpus=(H200, V100), device="cuda:1")
    assert doctor.driver(two) == (OK, listed, "")
    two.device = "cuda:2"
    assert doctor.driver(two) == (FAILED, f"{listed}; no cuda:2", "--device cuda:1")


# --- CuPy and NVIDIA's libraries


def test_without_cupy_the_extra_for_this_driver_is_the_fix(install):
    install({})
    for version, extra in (((13, 0), "cuda13"), ((12, 4), "cuda12"), ((0, 0), "cuda13")):
        finding = doctor.cupy(machine(version))
        assert (finding.state, finding.fix) == (MISSING, f"pip install -e '.[{extra}]'")


def test_two_cupy_packages_are_both_uninstalled_before_one_is_installed(install):
    install({"cupy-cuda12x": "13.6.0", **CUDA13})
    finding = doctor.cupy(machine())
    assert finding.state == FAILED
    assert "cupy-cuda12x 13.6.0, cupy-cuda13x 14.2.0" in finding.found
    assert finding.fix == (
        "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install -e '.[cuda13]'"
    )


@pytest.mark.parametrize("error", [ImportError("libcudart.so.13:\n gone"), AttributeError("cuda")])
def test_a_cupy_that_cannot_be_imported_is_reported_with_its_message(monkeypatch, install, error):
    def fails(name):
        raise error

    install(CUDA13)
    monkeypatch.setattr(importlib, "import_module", fails)
    finding = doctor.cupy(machine())
    assert finding.state == FAILED and doctor.one_line(error) in finding.found
    assert finding.fix == "pip uninstall -y cupy-cuda13x && pip install -e '.[cuda13]'"
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    assert doctor.cupy(machine()) == (OK, "cupy-cuda13x 14.2.0, libraries of CUDA 13", "")


@pytest.mark.parametrize(
    "versions, driver, gpu, state",
    [
        (CUDA13, (13, 0), H200, OK),
        (CUDA12, (12, 9), H200, OK),
        (CUDA12, (13, 0), V100, OK),
        (CUDA13, (12, 4), H200, FAILED),
        (CUDA12, (11, 8), H200, FAILED),
        (CUDA13, (13, 0), V100, FAILED),
        ({**CUDA12, "cupy-cuda12x": None, "cupy-cuda13x": "14"}, (13, 0), H200, WARNING),
        ({"cupy": "14.2.0", "cuda-bindings": "13.5.0"}, (13, 0), H200, OK),
        ({"cupy": "14.2.0", "cuda-bindings": "13.5.0"}, (12, 0), H200, FAILED),
        (CUDA13, (0, 0), H200, OK),
        ({"cupy": "14.2.0"}, (13, 0), H200, OK),
    ],
)
def test_versions_that_have_to_agree(monkeypatch, install, versions, driver, gpu, state):
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    install(versions)
    finding = doctor.cupy(machine(driver, [gpu]))
    assert finding.state == state and bool(finding.fix) == (state != OK)


def test_the_fix_of_versions_that_disagree_uninstalls_all_wrong_ones(monkeypatch, install):
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    install(CUDA13)
    finding = doctor.cupy(machine((12, 4)))
    assert finding.found == (
        "cupy-cuda13x 14.2.0, libraries of CUDA 13: this driver and these GPUs support CUDA 12 at "
        "most"
    )
    assert finding.fix == (
        "pip uninstall -y cupy-cuda13x nvidia-cuda-nvrtc nvidia-nvvm nvidia-nvjitlink "
        "nvidia-cublas && pip install -e '.[cuda12]'"
    )
    finding = doctor.cupy(machine(gpus=[H200, V100]))
    assert "CUDA 12 at most" in finding.found and finding.fix.endswith("'.[cuda12]'")


def test_a_gpu_that_does_not_compute_refers_to_numbas_own_report(monkeypatch, install, real_gpu):
    def device(name):
        raise RuntimeError("libnvvm cannot be found")

    install(CUDA13)
    monkeypatch.setattr(layers, "Device", device)
    assert doctor.launch(machine()).fix == "pip install -e '.[cuda13]'  # see numba -s"
