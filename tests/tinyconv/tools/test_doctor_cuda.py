"""CuPy, NVIDIA's libraries and the driver, in the combinations that users meet."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from layers import DeviceError
from tinyconv.tools import doctor_cuda
from tinyconv.tools.doctor_checks import Machine
from tinyconv.tools.doctor_cuda import Cuda, cupy, driver, gpus, majors, nccl, tf32, toolkit
from tinyconv.tools.doctor_driver import Driver, Gpu

H200 = Gpu("NVIDIA H200", (9, 0), 150_000_000_000)
V100 = Gpu("Tesla V100", (7, 0), 16_000_000_000)
CUDA13 = {
    "cupy-cuda13x": "14.2.0",
    "nvidia-cuda-nvrtc": "13.0.88",
    "nvidia-nvvm": "13.0.88",
    "nvidia-nvjitlink": "13.0.88",
    "nvidia-cublas": "13.1.0",
    "cuda-bindings": "13.0.3",
}
CUDA12 = {
    "cupy-cuda12x": "14.2.0",
    "nvidia-cuda-nvrtc-cu12": "12.9.86",
    "nvidia-cuda-nvcc-cu12": "12.9.86",
    "nvidia-nvjitlink-cu12": "12.9.86",
    "nvidia-cublas-cu12": "12.9.1",
    "cuda-bindings": "12.9.4",
}


def cuda(installed=(), version=(13, 0), devices=(H200,), device="cuda:0", opened=None):
    made = Cuda(Machine(device, dict(installed)))
    made.driver = Driver(version, list(devices))
    made.opened = DeviceError("not tried") if opened is None else opened
    return made


@pytest.fixture(autouse=True)
def a_real_gpu_is_meant(monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")


# --- driver and GPUs


def test_the_driver_says_up_to_which_version_it_goes():
    assert str(driver(cuda(version=(12, 8))).found) == "for CUDA 12.8 and older"


def test_no_driver_is_absent_with_what_to_do():
    machine = cuda()
    machine.driver = Driver(problem="no NVIDIA driver", mend="install it")
    assert (driver(machine).state, driver(machine).mend) == ("absent", "install it")
    assert (gpus(machine).state, gpus(machine).found) == ("absent", "none (no NVIDIA driver)")


def test_gpus_that_are_hidden_are_told_from_gpus_that_are_not_there(monkeypatch):
    machine = cuda()
    machine.driver = Driver((13, 0), problem="the driver answers CUDA_ERROR_NO_DEVICE", mend="m")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert driver(machine).mend == "m"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert driver(machine).mend == "unset CUDA_VISIBLE_DEVICES"
    assert "CUDA_VISIBLE_DEVICES='-1'" in driver(machine).found


def test_every_gpu_is_listed():
    finding = gpus(cuda(devices=(H200, V100), device="cuda:1"))
    assert finding.state == "ok"
    assert finding.found == (
        "cuda:0 NVIDIA H200, compute capability 9.0, 150.0 GB; "
        "cuda:1 Tesla V100, compute capability 7.0, 16.0 GB"
    )


def test_an_index_beyond_the_last_gpu_is_wrong():
    finding = gpus(cuda(devices=(H200, V100), device="cuda:2"))
    assert finding.state == "wrong" and finding.mend == "--device cuda:1"
    assert finding.found.endswith("there is no cuda:2")


# --- CuPy


def test_no_cupy_is_absent_with_the_extra_for_this_driver():
    for version, extra in (((13, 0), "cuda13"), ((12, 4), "cuda12"), (None, "cuda13")):
        finding = cupy(cuda(version=version))
        assert (finding.state, finding.mend) == ("absent", f"pip install -e '.[{extra}]'")


def test_two_cupy_packages_are_both_taken_away_before_one_is_installed():
    finding = cupy(cuda({"cupy-cuda12x": "13.6.0", **CUDA13}))
    assert finding.state == "wrong"
    assert "cupy-cuda12x 13.6.0 and cupy-cuda13x 14.2.0" in finding.found
    assert finding.mend == "pip uninstall -y cupy-cuda12x cupy-cuda13x && " + (
        "pip install -e '.[cuda13]'"
    )


def test_packages_around_cupy_are_none():
    assert cuda({"cupy-xarray": "1", "cupyx": "1", "cupy": "14.2.0"}).cupy_packages == ["cupy"]


def fails_to_import(error):
    """What `Device` raises when `import cupy` raises `error`."""
    try:
        try:
            raise error
        except ImportError:
            raise DeviceError("cuda:0: CuPy is not installed: ...") from None
    except DeviceError as raised:
        return raised


def test_a_cupy_whose_import_fails_is_told_with_its_own_message():
    opened = fails_to_import(ImportError("libcudart.so.13:\n cannot open"))
    finding = cupy(cuda(CUDA13, opened=opened))
    assert finding.state == "wrong"
    assert finding.found == (
        "cupy-cuda13x 14.2.0, and importing it fails: libcudart.so.13: cannot open"
    )
    assert finding.mend == "pip uninstall -y cupy-cuda13x && pip install -e '.[cuda13]'"
    assert cupy(cuda(CUDA13, opened=AttributeError("no 'cuda'"))).state == "wrong"


def test_a_cupy_without_a_gpu_is_nothing_wrong_with_cupy():
    try:
        try:
            raise RuntimeError("cudaErrorNoDevice")
        except RuntimeError as error:
            raise DeviceError(f"no working GPU here ({error})") from None
    except DeviceError as error:
        assert cupy(cuda(CUDA13, opened=error)).state == "ok"


def test_a_cupy_that_works_says_what_it_runs_on():
    runtime = SimpleNamespace(runtimeGetVersion=lambda: 13010)
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 2))
    xp = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=nvrtc))
    finding = cupy(cuda(CUDA13, opened=SimpleNamespace(is_simulated=False, xp=xp)))
    assert finding.found == "cupy-cuda13x 14.2.0, runtime 13.1, NVRTC 13.2"


# --- libraries


def test_libraries_are_named_with_their_versions_and_what_lacks(monkeypatch):
    monkeypatch.setattr(doctor_cuda, "find_libraries", lambda: {"nvrtc": "/x", "nvvm": "/opt/nvvm"})
    finding = toolkit(cuda({"nvidia-cuda-nvrtc": "13.0.88"}))
    assert finding.state == "absent" and finding.mend == "pip install -e '.[cuda13]'"
    assert finding.found.startswith(
        "NVRTC 13.0.88, NVVM /opt/nvvm, nvJitLink not found, cuBLAS not found"
    )


def test_without_cuda_pathfinder_the_packages_are_believed(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "No module named 'cuda'")
    monkeypatch.setattr(doctor_cuda.subprocess, "run", lambda *_, **__: failed)
    assert toolkit(cuda(CUDA12)).state == "ok"
    assert "cuBLAS 12.9.1" in toolkit(cuda(CUDA12)).found
    assert toolkit(cuda()).state == "absent"


def test_finding_libraries_asks_cuda_pathfinder_in_another_process(tmp_path, monkeypatch):
    package = tmp_path / "cuda"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pathfinder.py").write_text(
        "class Found:\n    abs_path = '/usr/lib/libnvrtc.so'\n"
        "def load_nvidia_dynamic_lib(name):\n"
        "    if name != 'nvrtc': raise RuntimeError(name)\n    return Found()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = set(sys.modules)
    assert doctor_cuda.find_libraries() == {"nvrtc": "/usr/lib/libnvrtc.so"}
    assert not [name for name in set(sys.modules) - before if name.startswith("cuda")]


# --- versions that have to agree


@pytest.mark.parametrize("installed, version", [(CUDA13, (13, 0)), (CUDA12, (12, 9))])
def test_one_version_throughout_is_ok(installed, version):
    assert majors(cuda(installed, version)).state == "ok"


def test_a_newer_driver_runs_older_packages():
    assert majors(cuda(CUDA12, (13, 0))).state == "ok"


def test_a_driver_older_than_the_packages_is_wrong_and_all_of_them_go():
    finding = majors(cuda(CUDA13, (12, 4)))
    assert finding.state == "wrong" and "the driver is older" in finding.found
    assert finding.mend == (
        "pip uninstall -y cupy-cuda13x nvidia-cuda-nvrtc nvidia-nvvm nvidia-nvjitlink "
        "nvidia-cublas && pip install -e '.[cuda12]'"
    )


def test_cupy_and_numba_of_two_versions_is_a_warning():
    mixed = {**CUDA13, **CUDA12}
    mixed.pop("cupy-cuda13x")
    finding = majors(cuda(mixed))
    assert finding.state == "warning"
    assert finding.found.startswith("libraries 12 and 13, CuPy 12, driver 13.0")
    assert "pip uninstall -y cupy-cuda12x nvidia-cuda-nvrtc-cu12" in finding.mend


def test_cuda_13_has_nothing_for_a_gpu_before_turing():
    finding = majors(cuda(CUDA13, devices=(V100,)))
    assert finding.state == "wrong" and "7.0" in finding.found
    assert finding.mend.endswith("pip install -e '.[cuda12]'")


def test_a_compiler_newer_than_driver_and_linker_is_what_unsupported_ptx_comes_from():
    newer = {**CUDA13, "nvidia-nvvm": "13.4.92"}
    finding = majors(cuda(newer))
    assert finding.state == "warning" and finding.mend == "pip install --upgrade nvidia-nvjitlink"
    assert majors(cuda({**newer, "nvidia-nvjitlink": "13.5.37"})).state == "ok"
    older = {**CUDA12, "nvidia-nvjitlink-cu12": "12.3.1"}
    assert majors(cuda(older, (12, 4))).mend == "pip install --upgrade nvidia-nvjitlink-cu12"


def test_without_packages_or_driver_nothing_disagrees():
    assert majors(cuda()).state == "absent"
    assert majors(cuda(CUDA13, None)).state == "absent"
    assert majors(cuda({"cuda-bindings": "13.5.0", "nvidia-nvvm": "unknown"})).state == "absent"
    assert majors(cuda({"cuda-bindings": "13.5.0"})).found == "libraries 13, driver 13.0"


# --- the rest


def test_tf32_needs_compute_capability_8(monkeypatch):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    assert tf32(cuda(devices=(V100,))).state == "absent"
    assert tf32(cuda()).found.startswith("CUPY_TF32=0, off")
    monkeypatch.setenv("CUPY_TF32", "1")
    assert tf32(cuda()).found.startswith("CUPY_TF32=1, on")


def test_nccl_is_never_wrong():
    assert nccl(cuda()).state == "absent"
    assert nccl(cuda({"nvidia-nccl-cu13": "2.28.3"})).found == "nvidia-nccl-cu13 2.28.3"
