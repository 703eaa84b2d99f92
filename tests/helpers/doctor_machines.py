"""Machines for the tests of the doctor: GPUs, packages, drivers."""

from tinyconv.tools.doctor import Driver, Gpu, Machine

H200 = Gpu("NVIDIA H200", (9, 0), 150_000_000_000)
V100 = Gpu("Tesla V100", (7, 0), 16_000_000_000)
LIBRARIES = ("cuda-nvrtc", "nvvm", "nvjitlink", "cublas")
CUDA13 = {"cupy-cuda13x": "14.2.0", "cuda-bindings": "13.0.3"}
CUDA13 |= {f"nvidia-{name}": "13.0.88" for name in LIBRARIES}
CUDA12 = {"cupy-cuda12x": "14.2.0", "cuda-bindings": "12.9.4"}
CUDA12 |= {f"nvidia-{name}-cu12": "12.9.86" for name in LIBRARIES}


def machine(version=(13, 0), gpus=(H200,), device="cuda:0", **problem):
    made = Machine(device)
    made.driver = Driver(version, tuple(gpus), **problem)
    return made
