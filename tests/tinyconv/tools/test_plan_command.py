"""`python -m tinyconv plan`: what it prints is what runs."""

import importlib
import re
from itertools import product

import numpy as np
import pytest

from layers import Device, simulator
from tinyconv import alexnet
from tinyconv.tools import plan_command
from tinyconv.tools.command_line import main


def printed(capsys, *arguments):
    """The header, and the rows as lists of cells."""
    assert main(["plan", *arguments]) == 0
    header, _, _, *rows = capsys.readouterr().out.splitlines()
    return header, [re.split(r"  +", row) for row in rows]


def test_the_fast_tier_on_the_host(capsys):
    header, rows = printed(capsys, "--device", "cpu")
    assert header.endswith("; kernels fast; precision fp32")
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["conv1+relu1"] == [
        *("layers/fast/host/register_tiles.py", "convolve, filter_gradient"),
        "layers/conv.py, layers/activation.py",
    ]
    assert by_name["norm2"][::2] == ["layers/fast/host/lrn.py", "layers/lrn.py"]
    assert by_name["flatten"] == ["layers/flatten.py", "a view"]
    assert by_name["loss"][0] == "layers/fast/host/softmax.py"
    assert [row[0] for row in rows[:2] + rows[-2:]] == ["crop", "conv1+relu1", "loss", "update"]


@pytest.mark.parametrize("device, ending", [("cpu", "_host"), ("cuda:0", "_kernel")])
def test_the_simple_tier_names_the_files_of_the_book_and_nothing_else(device, ending, capsys):
    header, rows = printed(capsys, "--device", device, "--kernels", "simple")
    assert "kernels simple; precision fp32" in header
    for name, file, computed_by, *replaced in rows:
        assert not replaced and re.fullmatch(r"layers/\w+\.py|tinyconv/(data/)?\w+\.py", file), name
        if computed_by not in ("a view", "BLAS", "cuBLAS"):
            assert all(each.endswith(ending) for each in computed_by.split(", "))


@pytest.mark.parametrize("kernels", ["fast", "simple"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_every_file_and_kernel_that_is_printed_exists(device, precision, kernels, capsys):
    if kernels == "simple" and precision != "fp32":
        assert main(["plan", "--kernels", kernels, "--precision", precision]) == 2
        assert "use kernels 'fast'" in capsys.readouterr().err
        return
    arguments = "--device", device, "--precision", precision, "--kernels", kernels
    for _, file, computed_by, *_ in printed(capsys, *arguments)[1]:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for name in re.findall(r"\w+_(?:kernel|host)\b", computed_by):
            if "*" not in computed_by and "{" not in computed_by:
                assert hasattr(module, name) or name in KNOWN_ELSEWHERE, (file, name)


KNOWN_ELSEWHERE = {
    *("bias_kernel", "bias_relu_dropout_kernel", "masked_gradient_kernel"),
    *("bias_relu_host", "bias_relu_dropout_host", "masked_gradient_host"),  # bias_relu.py
    *("sum_rows_kernel", "totals_kernel"),  # reductions.py
    *("to_bfloat16_kernel", "from_bfloat16_kernel"),  # precision.py
    "softmax_backward_host",  # the book's
}
"""Kernels that several steps share."""


def kernels_in(text):
    """The names in "a_kernel, b_{c,d}_kernel": a_kernel, b_c_kernel, b_d_kernel."""
    for pattern in re.findall(r"[\w{},]*_kernel", text):
        parts = enumerate(re.split(r"[{}]", pattern))
        for choice in product(*(part.split(",") if i % 2 else [part] for i, part in parts)):
            yield "".join(choice)


@pytest.mark.full
def test_what_a_step_launches_is_what_the_plan_says(cuda_device, capsys):
    """Both tiers, simulated: the kernels of a training step are those of its rows."""
    for kernels in ("simple", "fast"):
        net = alexnet(3, 0.02, 64, "robust", seed=1).to(cuda_device, kernels=kernels)
        net.layers[0].input_gradient = True
        launched = set()
        loss, x = net.loss(), np.ones((1, 64, 64, 3), np.float32)
        with simulator.record(lambda trace, launched=launched: launched.add(trace.kernel)):
            loss.forward(net.forward(cuda_device.array(x)), np.array([1]))
            net.backward(loss.backward())
        said = plan_command.plan_rows(net, cuda_device, kernels, "fp32")
        named = {name for row in said for name in kernels_in(row[2])}
        # This net has too few channels for vectors.
        scalar = {name for name in named if "vectorized" not in name}
        assert scalar - launched <= {"crop_kernel", "sgd_kernel"}
        assert launched - named <= {"sum_parts_kernel"}  # the second pass of many sums


def test_a_gpu_that_is_missing_can_be_planned_for(capsys, monkeypatch):
    monkeypatch.setattr(plan_command, "Device", lambda name: Device("cuda:9"))
    header, rows = printed(capsys, "--device", "cuda:0")
    assert "this machine has none" in header and "precision tf32" in header
    assert ["layers/fast/conv/tensor_core.py" in row for row in rows].count(True) == 5


def test_a_device_that_makes_no_sense_is_refused_in_one_line(capsys):
    assert main(["plan", "--device", "gpu"]) == 2
    assert capsys.readouterr().err == (
        "tinyconv plan: error: device 'gpu': use 'cpu', 'cuda:0' (or another index) or 'auto'\n"
    )
