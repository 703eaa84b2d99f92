"""Folders, memory and cores of machines that lack them, and test launches that fail."""

import os
import shutil
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest

import layers
from tinyconv.tools import doctor_host
from tinyconv.tools.doctor_checks import Machine
from tinyconv.tools.doctor_host import (
    available_memory,
    cores,
    current_folder,
    launch,
    memory,
    numba_cache,
    writable,
)

Usage = namedtuple("Usage", "total used free")


def test_writable_finds_out_and_leaves_nothing(tmp_path):
    assert writable(tmp_path / "not" / "yet" / "there") and writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert not writable(tmp_path / "file")


def test_the_cache_is_the_first_writable_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert numba_cache(Machine()).found.endswith("__pycache__")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    assert numba_cache(Machine()).found == str(tmp_path / "cache")
    monkeypatch.setattr(doctor_host, "writable", lambda path: path != tmp_path / "cache")
    assert numba_cache(Machine()).state == "warning"


def test_no_place_for_the_cache_is_wrong_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor_host, "writable", lambda path: False)
    finding = numba_cache(Machine())
    assert finding.state == "wrong" and finding.mend.startswith("export NUMBA_CACHE_DIR=")


def test_a_folder_that_is_full_or_not_ours_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 0, 9e9))
    assert current_folder(Machine()).state == "ok"
    assert f"{tmp_path}, 9.0 GB free" in current_folder(Machine()).found
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 8e9, 1e9))
    assert "checkpoints of the full net take 2.0 GB" in current_folder(Machine()).found
    assert current_folder(Machine()).state == "warning"
    monkeypatch.setattr(doctor_host, "writable", lambda path: False)
    assert "not writable" in current_folder(Machine()).found
    assert "--out FOLDER" in current_folder(Machine()).mend


def put(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_is_the_machines_or_a_containers_whichever_is_less(tmp_path):
    assert available_memory(tmp_path) is None
    put(tmp_path, "proc/meminfo", "MemTotal: 99 kB\nMemAvailable:    8000 kB\n")
    assert available_memory(tmp_path) == 8_192_000
    group = "sys/fs/cgroup/memory"
    put(tmp_path, f"{group}.max", "max\n")
    assert available_memory(tmp_path) == 8_192_000
    put(tmp_path, f"{group}.max", "5000000\n")
    put(tmp_path, f"{group}.current", "4000000\n")
    put(tmp_path, f"{group}.stat", "anon 1\ninactive_file 1000\n")
    assert available_memory(tmp_path) == 1_001_000


@pytest.mark.parametrize(
    "available, state", [(None, "ok"), (30_000_000_000, "ok"), (900_000_000, "warning")]
)
def test_little_memory_is_a_warning(monkeypatch, available, state):
    monkeypatch.setattr(doctor_host, "available_memory", lambda: available)
    assert memory(Machine()).state == state


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    from numba import config

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: {0}, raising=False)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 1)
    assert cores(Machine()).state == "ok"
    assert "OPENBLAS_NUM_THREADS=3" in cores(Machine()).found
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 4)
    assert (cores(Machine()).state, cores(Machine()).mend) == (
        "warning",
        "export NUMBA_NUM_THREADS=1",
    )


# --- test launches


def test_the_host_and_the_simulator_compute(device):
    machine = Machine(device.name)
    finding = launch(machine)
    assert finding.state == ("warning" if device.is_simulated else "ok")
    assert machine.used == device.name
    assert "a matrix product give the right numbers" in finding.found


def refusing(monkeypatch, error):
    def device(name):
        raise error

    monkeypatch.setattr(layers, "Device", device)


def test_an_unsupported_ptx_version_is_explained(monkeypatch):
    refusing(monkeypatch, RuntimeError("[222] Call to cuLinkAddData: UNSUPPORTED_PTX_VERSION"))
    finding = launch(Machine("cuda:0"))
    assert finding.state == "wrong" and "the driver is older than the PTX" in finding.found
    assert finding.mend == "pip install --upgrade nvidia-nvjitlink"
    installed = {"nvidia-nvjitlink-cu12": "12.3"}
    assert launch(Machine("cuda:0", installed)).mend.endswith("nvidia-nvjitlink-cu12")


def test_any_other_failure_is_told_with_its_kind(monkeypatch):
    refusing(monkeypatch, RuntimeError("cannot cache function:\nno locator available"))
    finding = launch(Machine("cpu"))
    assert finding.found == "RuntimeError: cannot cache function: no locator available"
    assert finding.mend == ""  # the row of Numba's cache has it
    refusing(monkeypatch, ImportError("No module named 'h5py'"))
    assert launch(Machine("cpu")).mend == "pip install -e ."


def test_a_device_that_computes_nonsense_is_wrong(monkeypatch):
    monkeypatch.setattr(layers.Linear, "forward", lambda self, x: np.zeros((3, 2), np.float32))
    finding = launch(Machine("cpu"))
    assert finding.state == "wrong" and "not [[10, -10], [65, 12], [26, 1]]" in finding.found


def test_a_gpu_says_how_much_of_its_memory_is_free(monkeypatch):
    """A device that passes for a GPU; its layers run on the host."""
    runtime = SimpleNamespace(memGetInfo=lambda: (3_000_000_000, 16_000_000_000))
    host = layers.Device("cpu")

    class Pretender:
        name, is_cuda, is_simulated = "cuda:0", True, False
        xp = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
        array, to_host = staticmethod(host.array), staticmethod(host.to_host)

        def __str__(self):
            return "cuda:0, a GPU"

    def moved(original):
        return lambda self, device, dtype=None: original(self, host, dtype)

    for kind in (layers.ReLU, layers.Linear):
        monkeypatch.setattr(kind, "to", moved(kind.to))
    monkeypatch.setattr(layers, "Device", lambda name: Pretender())
    finding = launch(Machine("cuda:0"))
    assert finding.state == "ok"
    assert finding.found == (
        "cuda:0, a GPU: a kernel and a matrix product give the right numbers; "
        "3.0 GB of its memory free"
    )
