"""Every derivative of the project against the slope of its function."""

import numpy as np
import pytest

from layers import DeviceError
from tinyconv import check_gradients
from tinyconv.lab.cases.book import gradient_cases
from tinyconv.tools import gradcheck_command
from tinyconv.tools.command_line import main

pytestmark = pytest.mark.gradients

CASES = {title: rest for title, *rest in gradient_cases()}
ON_KERNELS = [title for title in CASES if title != "small net with its loss"]


def check(layer, x, labels, samples=None):
    rows = check_gradients(layer, x, labels, samples=samples)
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows)
    assert len(rows) == 1 + len(layer.parameters())


@pytest.mark.parametrize("title", CASES)
def test_host_gradients_are_the_slopes_that_the_function_shows(title):
    layer, x, labels = CASES[title]
    check(layer.to("cpu", np.float64), x, labels)


@pytest.mark.parametrize("title", ON_KERNELS)
def test_kernel_gradients_are_the_slopes_that_the_function_shows(title, cuda_device):
    layer, x, labels = CASES[title]
    check(layer.to(cuda_device, np.float64), x, labels, samples=4)


def test_without_a_gpu_the_simulator_is_named(monkeypatch, capsys):
    def missing(name):
        raise DeviceError(f"{name}: CuPy is not installed")

    monkeypatch.setattr(gradcheck_command, "Device", missing)
    assert main(["gradcheck", "relu", "--device", "cuda:0"]) == 2
    error = capsys.readouterr().err
    assert "CuPy is not installed; or --simulate, which needs no GPU" in error
    assert error.count("\n") == 1
