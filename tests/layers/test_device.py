"""Devices: their names, their arrays, and what is said where one is missing."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import layers.device
from layers import Device, DeviceError
from layers.device import SIMULATED, THREADS, grid_for

ROOT = Path(__file__).resolve().parents[2]


def without_gpu(code):
    """What a Python process prints that finds neither GPU nor simulator."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- names


@pytest.mark.parametrize(
    "name", ["gpu", "", "cpu:0", "cuda0", "cuda:x", "cuda:-1", "cuda:0:1", "CUDA:0", " cpu", None]
)
def test_a_name_that_makes_no_sense_is_refused_with_those_that_do(name):
    with pytest.raises(ValueError) as caught:
        Device(name)
    assert repr(str(name)) in str(caught.value)
    for known in ("'cpu'", "'cuda:0'", "'auto'"):
        assert known in str(caught.value)


def test_the_host_is_no_gpu():
    cpu = Device("cpu")
    assert (cpu.name, cpu.is_cuda, cpu.is_simulated, cpu.xp) == ("cpu", False, False, np)
    assert repr(cpu) == "Device('cpu')"


def test_cuda_without_a_number_is_the_first(cuda_device):
    assert Device("cuda").name == Device("cuda:00").name == "cuda:0"
    assert Device("cuda") == cuda_device
    assert cuda_device.is_cuda


def test_a_device_can_be_made_of_a_device(device):
    again = Device(device)
    assert again is not device
    assert again == device
    assert hash(again) == hash(device)
    assert device != device.name


def test_host_and_gpu_are_different_devices(cuda_device):
    assert Device("cpu") != cuda_device


@pytest.mark.skipif(not SIMULATED, reason="there is a GPU")
def test_the_simulator_has_one_device_and_says_that_it_simulates():
    device = Device("cuda:0")
    assert device.is_simulated
    assert "simulated" in str(device)
    with pytest.raises(DeviceError, match="cuda:1: the simulator has one device"):
        Device("cuda:1")


@pytest.mark.skipif(not SIMULATED, reason="there is a GPU")
def test_auto_never_takes_the_simulator_and_says_so():
    device = Device("auto")
    assert device == Device("cpu")
    assert "simulator" in str(device)


@pytest.mark.skipif(SIMULATED, reason="needs a GPU")
def test_auto_takes_the_gpu_and_names_it():
    device = Device("auto")
    assert device.name == "cuda:0"
    assert len(str(device)) > len("cuda:0, ")


@pytest.mark.skipif(SIMULATED, reason="needs a GPU")
def test_a_gpu_beyond_the_last_is_refused_with_their_number():
    with pytest.raises(DeviceError, match=r"cuda:99: this machine has \d+ GPU"):
        Device("cuda:99")


def test_a_missing_gpu_is_an_error_that_names_what_to_install():
    said = without_gpu(
        "from layers import Device, DeviceError\n"
        "try:\n"
        "    Device('cuda:0')\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
    )
    assert "cuda:0" in said
    assert ".[cuda13]" in said
    assert ".[cuda12]" in said
    assert "\n" not in said


def test_without_a_gpu_auto_is_the_host_and_says_why_in_one_line():
    said = without_gpu(
        "from layers import Device\n"
        "device = Device('auto')\n"
        "print(device.name, '|', device, '|', device.why)\n"
    )
    name, line, why = said.split(" | ")
    assert name == "cpu"
    assert "\n" not in line
    assert why.startswith("cuda:0")
    assert why in line
    assert "install the extra" not in line


def test_without_a_gpu_every_layer_runs_on_the_host():
    said = without_gpu(
        "import numpy as np\n"
        "from layers import Conv2D\n"
        "layer = Conv2D(3, 2, 3, padding=1)\n"
        "y = layer.forward(np.ones((1, 5, 4, 3), np.float32))\n"
        "print(layer.backward(y).shape)\n"
    )
    assert said == "(1, 5, 4, 3)"


def test_the_environment_cannot_make_float32_products_tf32():
    code = "import os, layers; print(os.environ['CUPY_TF32'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUPY_TF32": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n", done.stderr


# --- several GPUs, of a fake CuPy


class FakeCuPy(ModuleType):
    """Two GPUs, of which `now` is current; arrays are NumPy's, and `made` says where they are."""

    def __init__(self):
        super().__init__("cupy")
        self.now, self.made, self.streams = 0, [], {}
        self.cuda = SimpleNamespace(
            Device=lambda index: FakeGpu(self, index),
            Stream=lambda: FakeStream(self),
            get_current_stream=lambda: self.streams.get(self.now, FakeStream(self, 0)),
            runtime=SimpleNamespace(
                getDeviceCount=lambda: 2, CUDARuntimeError=RuntimeError,
                deviceSynchronize=lambda: self.made.append(("wait", self.now)),
            ),
        )  # fmt: skip

    def empty(self, shape, dtype):
        self.made.append(("empty", self.now))
        return np.empty(shape, dtype)

    def zeros(self, shape, dtype):
        self.made.append(("zeros", self.now))
        return np.zeros(shape, dtype)

    def array(self, values, dtype=None, order="C"):
        self.made.append(("array", self.now))
        return np.array(values, dtype, order=order)


class FakeGpu:
    def __init__(self, cupy, index):
        self.cupy, self.index = cupy, index

    def __enter__(self):
        self.before, self.cupy.now = self.cupy.now, self.index

    def __exit__(self, *_):
        self.cupy.now = self.before

    def use(self):
        self.cupy.now = self.index


class FakeStream:
    """One stream a GPU; the two have the same pointer, as CUDA may give them."""

    def __init__(self, cupy, ptr=77):
        self.cupy, self.device_id, self.ptr = cupy, cupy.now, ptr

    def use(self):
        self.cupy.streams[self.device_id] = self


@pytest.fixture
def two_gpus(monkeypatch):
    cupy = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    numba = SimpleNamespace(
        is_available=lambda: True, external_stream=lambda pointer: (cupy.now, pointer)
    )
    for name, value in {
        **{"SIMULATED": False, "cuda": numba, "_cupy": None},
        **{"_own_streams": {}, "_numba_streams": {}},
        "launches": SimpleNamespace(keep_views=lambda cupy: None),
    }.items():
        monkeypatch.setattr(layers.device, name, value)
    return cupy


def test_opening_a_gpu_leaves_the_current_one(two_gpus):
    second = Device("cuda:1")
    assert two_gpus.now == 0
    second.empty((2,), np.float32), second.zeros((2,), np.float32), second.array([1, 2])
    second.synchronize()
    assert two_gpus.made == [("empty", 1), ("zeros", 1), ("array", 1), ("wait", 1)]
    Device("auto"), Device(second)
    with second.current():
        Device("cuda:0").array([1])
        assert two_gpus.now == 1
    assert two_gpus.now == 0 and two_gpus.made[-1] == ("array", 0)
    assert second.use() is second and two_gpus.now == 1
    Device("cuda:0")
    assert two_gpus.now == 1


def test_each_gpu_has_a_stream_of_its_own_and_numbas_are_kept_by_gpu(two_gpus):
    Device("cuda:0")
    second = Device("cuda:1")
    assert grid_for(1)[2] == (0, 77)
    with second.current():
        assert grid_for(1)[2] == (1, 77)
    assert grid_for(1)[2] == (0, 77) and set(two_gpus.streams) == {0, 1}
    mine = FakeStream(two_gpus, 5)
    mine.use()
    Device("cuda:0")
    assert grid_for(1)[2] == (0, 5), "a stream that the user has chosen is kept"


# --- arrays


def test_arrays_are_copies_in_rows(device):
    source = np.arange(12.0).reshape(3, 4)
    array = device.array(source.T)
    assert array.flags.c_contiguous
    assert array.dtype == np.float64
    source[...] = 0
    np.testing.assert_array_equal(device.to_host(array), np.arange(12.0).reshape(3, 4).T)
    again = device.array(array, np.float32)
    again[...] = 1
    assert again.dtype == np.float32
    assert float(array[1, 1]) == 5


def test_lists_become_arrays_without_losing_a_digit(device):
    assert device.array([[1, 2], [3, 4]]).shape == (2, 2)
    largest = device.array([2**64 - 1, 7], np.uint64)
    np.testing.assert_array_equal(device.to_host(largest), np.array([2**64 - 1, 7], np.uint64))


def test_arrays_move_from_any_device_to_any_other(device, cuda_device):
    values = np.arange(6.0).reshape(2, 3)
    for other in (Device("cpu"), cuda_device):
        moved = device.array(other.array(values))
        assert isinstance(moved, device.xp.ndarray)
        np.testing.assert_array_equal(device.to_host(moved), values)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (1000, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "uint64"])
def test_arrays_on_the_host_begin_with_a_cache_line(shape, dtype):
    host = Device("cpu")
    kept = [make(shape, dtype) for make in (host.empty, host.zeros) for _ in range(5)]
    for array in kept:
        assert (array.ctypes.data % 64 == 0 or not array.size) and array.flags.c_contiguous
        assert array.shape == shape and array.dtype == dtype
        array[...] = 1
    assert not any(np.shares_memory(a, b) for a, b in zip(kept, kept[1:], strict=False))


def test_empty_and_zero_arrays_have_shape_and_dtype(device):
    for array in (device.empty((2, 3), np.float32), device.zeros((2, 3), np.float32)):
        assert isinstance(array, device.xp.ndarray)
        assert array.shape == (2, 3)
        assert array.dtype == np.float32
    assert not device.to_host(device.zeros((4,), np.int64)).any()


def test_host_arrays_are_not_copied_on_the_way_to_the_host():
    array = np.ones(3)
    assert Device.to_host(array) is array


def test_synchronizing_is_allowed_everywhere(device):
    device.synchronize()


# --- launches


@pytest.mark.parametrize("count", [0, 1, THREADS - 1, THREADS, THREADS + 1, 10**6, 2**31 + 1])
def test_a_grid_has_a_thread_for_each_element_and_no_idle_block(count):
    blocks, threads, _ = grid_for(count)
    assert threads == THREADS
    assert blocks * threads >= count
    assert blocks >= 1
    assert blocks == 1 or (blocks - 1) * threads < count


def test_small_arrays_are_overwritten_in_place(device):
    array = device.zeros((3,), np.uint64)
    device.write(array, (1, 2**64 - 1, 3))
    np.testing.assert_array_equal(device.to_host(array), np.array([1, 2**64 - 1, 3], np.uint64))
