"""Every kernel is compiled without a GPU and assembled: no spills, no float64 by accident."""

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
from tinyconv import SGD, Sequential
from tinyconv.data.augment import Augment

from . import compile_kernels, oracles

FLOAT32 = list(compile_kernels.signatures(numba.float32))
COMPILED = [
    (name, dtype, architecture)
    for dtype, number in compile_kernels.NUMBERS.items()
    for name in compile_kernels.signatures(number)
    for architecture in compile_kernels.ARCHITECTURES
    if architecture >= compile_kernels.OLDEST.get(name, (0, 0))
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
        for number in compile_kernels.NUMBERS.values()
        for name in compile_kernels.signatures(number)
    }
    assert set(compiled_kernels.kernels) == in_table, "add it to compile_kernels.signatures"


@pytest.mark.parametrize(("name", "dtype", "architecture"), COMPILED, ids=label)
def test_a_kernel_compiles_and_keeps_everything_in_registers(name, dtype, architecture, assembled):
    found = assembled(name, dtype, architecture)
    assert "error" not in found, found["error"]
    assert found["locals"] == []
    assert (found["stack"], found["spill stores"], found["spill loads"]) == (0, 0, 0)
    assert 0 < found["registers"] <= 255


@pytest.mark.parametrize("architecture", compile_kernels.ARCHITECTURES, ids=label)
@pytest.mark.parametrize("name", FLOAT32, ids=label)
def test_a_float32_kernel_computes_nothing_in_float64(name, architecture, row):
    if architecture >= compile_kernels.OLDEST.get(name, (0, 0)):
        found = row(name, "float32", architecture)
        assert "error" not in found, found["error"]
        assert found["doubles"] == []


@pytest.mark.parametrize("architecture", compile_kernels.ARCHITECTURES, ids=label)
def test_a_planted_float64_constant_is_caught(architecture, row):
    assert row("planted_double", "float32", architecture)["doubles"]


@pytest.mark.parametrize("architecture", compile_kernels.ARCHITECTURES, ids=label)
def test_a_planted_local_array_is_caught(architecture, assembled):
    found = assembled("planted_local", "float32", architecture)
    assert found["locals"]
    assert found["stack"] >= 400


@pytest.mark.parametrize("architecture", compile_kernels.ARCHITECTURES, ids=label)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_front_end_for_all_architectures_gives_what_each_alone_does(dtype, architecture, row):
    name = compile_kernels.ASKS_FOR_ITS_ARCHITECTURE
    assert row(name, dtype, architecture)["same as alone"]


# --- the table tells the truth


def launch_everything(device, dtype):
    """Each layer, the optimizer and the augmentation once, forward and backward."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 4, 3))
    conv = Conv2D(3, 2, 3)
    for layer in (conv, MaxPool2D(), LocalResponseNorm(), ReLU(), Tanh(), Dropout()):
        layer.to(device, dtype)
        dy = np.ones((2, *layer.output_shape(x.shape[1:])))
        oracles.run(layer, x, dy)
    for layers in ([Linear(3, 4)], [Linear(3, 4), ReLU()], [Linear(3, 4), ReLU(), Dropout()]):
        net = Sequential(layers).to(device, dtype)
        net.backward(net.forward(device.array(np.eye(2, 3), dtype)))
    for layer in (MaxPool2D(), LocalResponseNorm()):
        net = Sequential([layer]).to(device, dtype)
        net.backward(net.forward(device.array(x, dtype)))
    for fuse in (False, True):
        loss = SoftmaxCrossEntropy(fuse).to(device, dtype)
        loss.forward(device.array(np.eye(2, 3), dtype), np.array([1, 2]))
        loss.backward()
    if dtype == "float32":
        for filters in (4, 3):  # the wide kernels, and the narrow ones
            layer = Conv2D(4, filters, 2, algorithm="tiled").to(device, dtype)
            oracles.run(layer, rng.standard_normal((1, 3, 3, 4)), np.ones((1, 2, 2, filters)))
    optimizer = SGD(conv.parameters())
    optimizer.step()
    # As in training, where weights and gradients are parts of the optimizer's arrays.
    oracles.run(conv, x, np.ones((2, 3, 2, 2)))
    augment = Augment(np.zeros((6, 6, 3)), 4).to(device, dtype)
    augment.random(np.zeros((2, 6, 6, 3), np.uint8), np.arange(2), 0)


@pytest.mark.parametrize("dtype", compile_kernels.NUMBERS)
def test_kernels_are_launched_with_the_argument_types_in_the_table(dtype):
    if not SIMULATED or not simulator.installed:
        pytest.skip("the launches are recorded in the simulator: set NUMBA_ENABLE_CUDASIM=1")
    launched = {}

    def note(trace):
        types = tuple(numba.typeof(argument) for argument in trace.arguments)
        launched.setdefault(trace.kernel, set()).add(types)

    with simulator.record(note):
        launch_everything(Device("cuda:0"), dtype)
    table = compile_kernels.signatures(compile_kernels.NUMBERS[dtype])
    assert launched == {name.rpartition(".")[2]: {types} for name, types in table.items()}
