"""Every kernel is compiled without a GPU and assembled: no spills, no float64 by accident."""

import compile_kernels
import kernel_signatures
import numba
import numpy as np
import pytest

from layers import (
    Conv2D,
    Device,
    Dropout,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    SoftmaxCrossEntropy,
    Tanh,
    simulator,
)
from layers.device import SIMULATED
from layers.fast.conv.space_to_depth import filters_from_s2d, filters_to_s2d
from layers.fast.conv.tensor_core import tensor_forward, tensor_input_gradient
from layers.fast.conv.tensor_gradients import tensor_filter_gradient
from layers.fast.conv.tile_table import TILES
from layers.fast.plan import plan_loss
from layers.layer import Buffers
from tinyconv import SGD, Sequential
from tinyconv.data.augment import Augment

SINGLE = [
    (name, dtype)
    for dtype in ("float32", "bfloat16")
    for name in kernel_signatures.signatures(kernel_signatures.NUMBERS[dtype])
]
"""What computes in float32, whatever it stores."""
COMPILED = [
    (name, dtype, architecture)
    for dtype, number in kernel_signatures.NUMBERS.items()
    for name in kernel_signatures.signatures(number)
    for architecture in kernel_signatures.architectures_of(name, dtype)
]


def label(value):
    """sm_75 for (7, 5), and a kernel without its package."""
    return f"sm_{value[0]}{value[1]}" if isinstance(value, tuple) else value.rpartition(".")[2]


@pytest.fixture
def row(compiled_kernels):
    """A function: what became of one kernel for one dtype and architecture."""
    return compiled_kernels.row


@pytest.fixture
def assembled(compiled_kernels, row):
    """The same, where there is an assembler."""
    if compiled_kernels.ptxas is None:
        pytest.skip("ptxas is missing: pip install -e '.[test]' (or '.[test-cuda12]') brings it")
    return row


def test_every_kernel_of_the_project_has_its_argument_types_in_the_table(compiled_kernels):
    in_table = {
        name
        for number in kernel_signatures.NUMBERS.values()
        for name in kernel_signatures.signatures(number)
    }
    assert set(compiled_kernels.kernels) == in_table, "add it to kernel_signatures.signatures"


@pytest.mark.parametrize(("name", "dtype", "architecture"), COMPILED, ids=label)
def test_a_kernel_compiles_and_keeps_everything_in_registers(name, dtype, architecture, assembled):
    found = assembled(name, dtype, architecture)
    assert "error" not in found, found["error"]
    assert found["locals"] == []
    assert (found["stack"], found["spill stores"], found["spill loads"]) == (0, 0, 0)
    assert 0 < found["registers"] <= 255


TENSOR = [case for case in COMPILED if "conv.tensor_" in case[0]]


@pytest.mark.parametrize(("name", "dtype", "architecture"), TENSOR, ids=label)
def test_two_blocks_of_a_tensor_core_kernel_fit_a_multiprocessor(
    name, dtype, architecture, assembled
):
    found = assembled(name, dtype, architecture)
    assert found["products"]
    assert found["registers"] <= 128
    # What a kernel may have without asking for more.
    assert found["shared"] <= 48 * 1024


@pytest.mark.parametrize("architecture", kernel_signatures.ARCHITECTURES, ids=label)
@pytest.mark.parametrize(("name", "dtype"), SINGLE, ids=label)
def test_a_float32_kernel_computes_nothing_in_float64(name, dtype, architecture, row):
    if architecture in kernel_signatures.architectures_of(name, dtype):
        found = row(name, dtype, architecture)
        assert "error" not in found, found["error"]
        assert found["doubles"] == []


@pytest.mark.parametrize("architecture", kernel_signatures.ARCHITECTURES, ids=label)
def test_a_planted_float64_constant_is_caught(architecture, row):
    assert row("planted_double", "float32", architecture)["doubles"]


@pytest.mark.parametrize("architecture", kernel_signatures.ARCHITECTURES, ids=label)
def test_a_planted_local_array_is_caught(architecture, assembled):
    found = assembled("planted_local", "float32", architecture)
    assert found["locals"]
    assert found["stack"] >= 400


@pytest.mark.parametrize("architecture", kernel_signatures.ARCHITECTURES, ids=label)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_front_end_for_all_architectures_gives_what_each_alone_does(dtype, architecture, row):
    name = compile_kernels.ASKS_FOR_ITS_ARCHITECTURE
    if architecture in kernel_signatures.architectures_of(name, dtype):
        assert row(name, dtype, architecture)["same as alone"]


# --- the table tells the truth


def launch_everything(device, dtype, precision):
    """Each layer and step, the optimizer and the augmentation once, forward and backward."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 4, 3))

    def both_ways(layers, kernels, x):
        net = Sequential(layers).to(device, dtype, precision, kernels)
        net.backward(net.forward(device.array(x, dtype)))
        return net

    for layers in ([Linear(3, 4)], [Linear(3, 4), ReLU()], [Linear(3, 4), ReLU(), Dropout()]):
        both_ways(layers, "fast", np.eye(2, 3))
    for layer in (MaxPool2D(), LocalResponseNorm()):
        both_ways([layer], "fast", x)
    if precision != "fp32":
        return
    for layer in (MaxPool2D(), LocalResponseNorm(), ReLU(), Tanh(), Dropout()):
        both_ways([layer], "simple", x)
    for algorithm in ("direct", "shared"):
        both_ways([Conv2D(3, 2, 3, algorithm=algorithm), ReLU()], "fast", x)
    if dtype == "float32":
        for filters in (4, 3):  # the vectorized kernels, and the scalar ones
            layer = Conv2D(4, filters, 2, algorithm="tiled")
            both_ways([layer], "fast", rng.standard_normal((1, 3, 3, 4)))
    for loss in (SoftmaxCrossEntropy().to(device, dtype), plan_loss(device, dtype)):
        loss.forward(device.array(np.eye(2, 3), dtype), np.array([1, 2]))
        loss.backward()
    net = Sequential([Conv2D(3, 2, 3)]).to(device, dtype, kernels="simple")
    SGD(net.parameters()).step()
    # As in training, where weights and gradients are parts of the optimizer's arrays.
    net.backward(net.forward(device.array(x, dtype)))
    augment = Augment(np.zeros((6, 6, 3)), 4).to(device, dtype)
    augment.random(np.zeros((2, 6, 6, 3), np.uint8), np.arange(2), 0)


def launch_tensor_cores(device, dtype):
    """Every tensor-core kernel once, with both tiles."""
    elements = np.uint16 if dtype == "bfloat16" else np.float32
    buffer = Buffers(device, np.float32)
    w, b = device.zeros((8, 2, 2, 3), np.float32), device.zeros((8,), np.float32)
    x, y = device.zeros((1, 3, 3, 3), elements), device.zeros((1, 1, 1, 8), elements)
    for tile in TILES:
        tensor_forward(x, w, b, y, 2, 0, 1, buffer, tile=tile)
        tensor_filter_gradient(x, y, w, 2, 0, 1, buffer, tile=tile)
    tensor_input_gradient(y, w, x, 2, 0, 1, buffer, mask=x)
    if dtype == "float32":
        filters_from_s2d(filters_to_s2d(w, 2, x, buffer), w, 2)


@pytest.mark.parametrize("dtype", kernel_signatures.NUMBERS)
def test_kernels_are_launched_with_the_argument_types_in_the_table(dtype):
    if not SIMULATED or not simulator.installed:
        pytest.skip("the launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    launched = {}

    def note(trace):
        types = tuple(numba.typeof(argument) for argument in trace.arguments)
        launched.setdefault(trace.kernel, set()).add(types)

    with simulator.record(note):
        bf16 = dtype == "bfloat16"
        launch_everything(Device("cuda:0"), *(("float32", "bf16") if bf16 else (dtype, "fp32")))
        if dtype != "float64":
            launch_tensor_cores(Device("cuda:0"), dtype)
    table = kernel_signatures.signatures(kernel_signatures.NUMBERS[dtype])
    expected = {name.rpartition(".")[2]: {types} for name, types in table.items()}
    assert {name: launched[name] for name in (expected if bf16 else launched)} == expected
