"""Every derivative of the project against the slope of its function."""

import io
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from marks import long

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


@pytest.mark.parametrize("name", [long("conv"), "max_pool", "avg_pool", "locally", "lrn", "relu",
                                  "tanh", "softmax"])  # fmt: skip
def test_the_command_after_a_wrong_derivative_steps_that_element(name, monkeypatch, capsys):
    def wrong(net, x, labels):
        rows = check_gradients(net, x, labels, samples=1)
        last = [tuple(side - 1 for side in row.shape) for row in rows]
        return [replace(r, error=1.0, where=at) for r, at in zip(rows, last, strict=True)]

    monkeypatch.setattr(gradcheck_command, "check_gradients", wrong)
    assert main(["gradcheck", name]) == 1
    printed = capsys.readouterr().out
    commands = dict.fromkeys(
        line.partition("its kernel: python -m tinyconv ")[2]
        for line in printed.splitlines()
        if "compare with its kernel: " in line
    )
    assert commands
    for command in commands:
        monkeypatch.setattr(sys, "stdin", io.StringIO("c\n"))
        assert main(shlex.split(command)) == 0, command
        index = command.partition(" --output ")[2].replace(",", ", ")
        said = capsys.readouterr().out
        assert f"[{index}] is written by\n" in said if index else "0] is written by\n" in said


def test_the_index_is_that_of_the_kernels_own_shape(monkeypatch, capsys):
    """The dx of LRN is rows of channels to its kernel, that of ReLU one axis."""

    def wrong(net, x, labels):
        (row,) = check_gradients(net, x, labels, samples=1)
        return [replace(row, error=1.0, where=(1, 0, 2, 0))]

    monkeypatch.setattr(gradcheck_command, "check_gradients", wrong)
    assert main(["gradcheck", "lrn", "relu", "flatten", "dropout"]) == 1
    printed = capsys.readouterr().out
    assert "step lrn_backward_kernel --shape 2,6,7,5 --output 44,0\n" in printed
    assert "step relu_backward_kernel --shape 2,6,7,5 --output 220\n" in printed
    assert printed.count("its kernel: ") == 5  # none of dropout or flatten


def test_names_as_the_laboratory_knows_them(capsys):
    assert main(["gradcheck", "lrn_backward_kernel", "pool"]) == 0
    printed = capsys.readouterr().out
    assert "\nLocalResponseNorm 5" in printed and "\nMaxPool2D 3" in printed
    assert main(["gradcheck", "lrm"]) == main(["gradcheck", "sgd"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "'lrm': did you mean lrn? choose from conv2d" in said[0]


def test_without_a_gpu_the_simulator_is_named(monkeypatch, capsys):
    def missing(name):
        raise DeviceError(f"{name}: CuPy is not installed")

    monkeypatch.setattr(gradcheck_command, "Device", missing)
    assert main(["gradcheck", "relu", "--device", "cuda:0"]) == 2
    error = capsys.readouterr().err
    assert "CuPy is not installed; or --simulate, which needs no GPU" in error
    assert error.count("\n") == 1
