"""What is computed together, by what, and where bfloat16 begins and ends: the plan, with hints."""

import fnmatch
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    SoftmaxCrossEntropy,
    Tanh,
)
from layers.conv import ALGORITHMS
from layers.fast.conv.steps import SharedMemoryConv, TensorConv, TiledConv
from layers.fast.conversions import Conversion
from layers.fast.host.im2col import Im2colConv
from layers.fast.host.softmax import SoftmaxVectorized
from layers.fast.plan import KERNELS, plan, plan_loss
from layers.fast.softmax import SoftmaxRows
from layers.fast.step import Step
from tinyconv import Sequential, alexnet

ROOT = Path(__file__).resolve().parents[3]
RECIPES = "paper", "authors", "robust"


def names(steps):
    return [step.name for step in steps]


def kinds(layers, device, precision="fp32", dtype=np.float32, **settings):
    for layer in layers:
        layer.to(device, dtype)
    return [type(step).__name__ for step in plan(layers, device, dtype, precision, **settings)]


def small_alexnet(recipe, device, precision="fp32", kernels="fast"):
    net = alexnet(3, width=0.02, image_size=64, recipe=recipe)
    return net.to(device, "float32", precision, kernels)


# --- AlexNet

PAIRED = ["conv1+relu1", "norm1", "pool1"]
AUTHORS = ["conv1", "norm1", "pool1", "relu1"]
REST = [
    *("conv2+relu2", "norm2", "pool2", "conv3+relu3", "conv4+relu4", "conv5+relu5", "pool5"),
    *("flatten", "fc6+relu6+drop6", "fc7+relu7+drop7", "fc8"),
]


def apart(block):
    """Convolutions without their ReLU: as the book computes them in the simulator."""
    return [part for name in block for part in (name.split("+") if name[:4] == "conv" else [name])]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_plan_of_alexnet(recipe, device):
    net = small_alexnet(recipe, device)
    block = AUTHORS if recipe == "authors" else PAIRED
    right = block + REST
    assert names(net.steps) == (apart(right) if device.is_simulated else right)
    assert "Dropout (in fc6)" in str(net)
    assert ("LocalResponseNorm (vectorized)" in str(net)) == device.is_cuda
    assert ("LocalResponseNorm (by distance)" in str(net)) == (not device.is_cuda)
    assert ("ReLU (in conv2)" in str(net)) == (not device.is_simulated)
    assert ("ReLU (in conv1)" in str(net)) == (recipe != "authors" and not device.is_simulated)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_tensor_cores_take_convolution_and_relu_together(recipe, precision, cuda_device):
    net = small_alexnet(recipe, cuda_device, precision)
    block = AUTHORS if recipe == "authors" else PAIRED
    steps = [step for step in net.steps if not isinstance(step, Conversion)]
    assert names(steps) == block + REST
    convs = [step for step in steps if step.name.startswith("conv")]
    assert {type(step) for step in convs} == {TensorConv}
    # Between conv3, conv4 and conv5 is nothing: each masks for the ReLU before it.
    assert [step.masks_input for step in convs] == [False, False, False, True, True]
    assert [step.dy_is_masked for step in convs] == [False, False, True, True, False]


@pytest.mark.parametrize("recipe", RECIPES)
def test_where_alexnet_is_converted_to_bfloat16_on_a_gpu(recipe, cuda_device):
    """At both ends, and around the ReLU that the authors have behind pool1."""
    net = small_alexnet(recipe, cuda_device, "bf16")
    if recipe == "authors":
        block = ["conv1", "norm1", "pool1", "to float32", "relu1", "to bf16"]
    else:
        block = PAIRED
    assert names(net.steps) == ["to bf16", *block, *REST, "to float32"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_on_the_host_every_step_is_rounded_to_bfloat16(recipe):
    net = small_alexnet(recipe, Device("cpu"), "bf16")
    steps = (AUTHORS if recipe == "authors" else PAIRED) + REST
    wanted = ["round to bf16"] + [part for step in steps for part in (step, "round to bf16")]
    assert names(net.steps) == wanted


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_layer_is_in_one_step(recipe, precision, device):
    net = small_alexnet(recipe, device, precision)
    flat = []
    for step in net.steps:
        flat += getattr(step, "layers", [step])
    assert flat == net.layers


@pytest.mark.parametrize("recipe", RECIPES)
def test_simple_kernels_are_the_layers_themselves(recipe, device):
    net = small_alexnet(recipe, device, kernels="simple")
    assert KERNELS == ("fast", "simple")
    assert net.steps == net.layers
    assert "(in " not in str(net) and "kernels simple" in str(net)
    net.to(device, kernels="fast")
    assert net.steps != net.layers
    assert net.to(device, kernels="simple").steps == net.layers


# --- neighbours


def test_only_neighbours_in_the_right_order_are_joined(device):
    conv = "Im2colConv" if not device.is_cuda else "Conv2D"
    assert kinds([Tanh(), ReLU()], device) == ["Tanh", "ReLU"]
    assert kinds([Conv2D(3, 4, 3), Tanh(), ReLU()], device)[1:] == ["Tanh", "ReLU"]
    if device.is_simulated or not device.is_cuda:
        assert kinds([ReLU(), Conv2D(3, 4, 3)], device) == ["ReLU", conv]
    assert kinds([Linear(3, 4), Dropout(0.5), ReLU()], device) == ["LinearStep", "Dropout", "ReLU"]
    layers = [Linear(3, 4), ReLU(), ReLU(), Dropout(0.5)]
    assert kinds(layers, device) == ["LinearStep", "ReLU", "Dropout"]
    assert kinds([Linear(3, 4), ReLU(), Linear(4, 4), ReLU()], device) == ["LinearStep"] * 2
    layers = [Flatten(), Linear(3, 4), ReLU(), Dropout(0.5)]
    assert kinds(layers, device) == ["Flatten", "LinearStep"]
    assert kinds([Linear(3, 4), ReLU(), Dropout(0.5), Dropout(0.5)], device)[1:] == ["Dropout"]


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_convolution_takes_only_the_relu_behind_it(device):
    layers = [Conv2D(3, 4, 3), ReLU(), ReLU(), Conv2D(4, 4, 1), Conv2D(4, 2, 1), ReLU()]
    steps = plan(layers, device)
    assert [step.layers if isinstance(step, Step) else step for step in steps] == [
        *(layers[:2], layers[2], layers[3:4], layers[4:]),
    ]


def test_a_kind_of_layer_derived_from_ours_is_left_alone(device):
    class Leaky(ReLU):
        """Something else."""

    class Wide(MaxPool2D):
        """Something else too."""

    class Rotated(Conv2D):
        """And this."""

    class Sparse(Linear):
        """And this."""

    class Local(LocalResponseNorm):
        """And this."""

    class Other(Flatten):
        """And this."""

    derived = [Rotated(3, 4, 3), Leaky(), Wide(3, 2), Local(), Other(), Sparse(4, 4)]
    assert kinds(derived, device) == [type(layer).__name__ for layer in derived]
    assert kinds([Linear(3, 4), Leaky(), Dropout(0.5)], device) == [
        "LinearStep",
        "Leaky",
        "Dropout",
    ]
    found = kinds([Conv2D(3, 4, 3), Leaky()], device)
    assert found == ["Conv2D" if device.is_simulated else found[0], "Leaky"]


def test_a_derived_layer_in_bfloat16_gets_float32(cuda_device):
    class Leaky(ReLU):
        """Something else."""

    found = kinds([Linear(3, 4), Leaky(), Linear(4, 2)], cuda_device, "bf16")
    assert found == [
        *("ToBFloat16", "LinearStep", "ToFloat32", "Leaky", "ToBFloat16", "LinearStep"),
        "ToFloat32",
    ]


# --- bfloat16


def test_a_layer_of_the_book_between_bfloat16_steps_has_conversions_around_it(cuda_device):
    layers = [LocalResponseNorm(3), Tanh(), MaxPool2D(3, 2), Flatten(), Linear(12, 3)]
    assert kinds(layers, cuda_device, "bf16") == [
        *("ToBFloat16", "LRNRows", "ToFloat32", "Tanh", "ToBFloat16", "MaxPoolRows"),
        *("FlattenStep", "LinearStep", "ToFloat32"),
    ]


def test_what_stands_between_layers_of_the_book_is_rounded_too(cuda_device):
    """Each layer's output is bfloat16, whoever computes it."""
    layers = [Tanh(), MaxPool2D(2, 2), LocalResponseNorm(3)]
    around = "ToFloat32", "{}", "ToBFloat16"
    wanted = [part.format(kind) for kind in ("Tanh", "MaxPool2D") for part in around]
    assert kinds(layers, cuda_device, "bf16") == ["ToBFloat16", *wanted, "LRNRows", "ToFloat32"]


def test_a_part_of_a_net_begins_and_ends_in_bfloat16(cuda_device):
    part = {"float32_ends": False}
    assert kinds([LocalResponseNorm(3)], cuda_device, "bf16", **part) == ["LRNRows"]
    alone = ["ToFloat32", "Tanh", "ToBFloat16"]
    assert kinds([Tanh()], cuda_device, "bf16", **part) == alone
    assert kinds([Tanh()], cuda_device, "bf16") == ["ToBFloat16", *alone, "ToFloat32"]
    layers = [Tanh(), LocalResponseNorm(3), ReLU()]
    assert kinds(layers, cuda_device, "bf16", **part) == [
        *("ToFloat32", "Tanh", "ToBFloat16", "LRNRows", "ToFloat32", "ReLU", "ToBFloat16"),
    ]


def test_on_the_host_the_ends_of_a_part_are_not_rounded_twice():
    layers, host = [Tanh(), Linear(3, 4), ReLU()], Device("cpu")
    between = ["Tanh", "RoundToBFloat16", "LinearStep"]
    assert kinds(layers, host, "bf16") == ["RoundToBFloat16", *between, "RoundToBFloat16"]
    assert kinds(layers, host, "bf16", float32_ends=False) == between


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_other_precisions_convert_nothing(precision, device):
    layers = [Conv2D(3, 4, 3), Tanh(), MaxPool2D(3, 2), Flatten(), Linear(12, 3)]
    for layer in layers:
        layer.to(device)
    assert not any(isinstance(s, Conversion) for s in plan(layers, device, "float32", precision))


def test_what_checks_the_ends_of_a_net_is_its_first_and_last_layer(device):
    layers = [LocalResponseNorm(3), MaxPool2D(3, 2)]
    for layer in layers:
        layer.to(device)
    first, *_, last = plan(layers, device, np.float32, "bf16")
    assert (first.first, last.last) == (layers[0], layers[1])


# --- hints

FITS = {  # by device kind and precision: what runs, and in which dtypes
    ("cpu", "fp32"): {"direct": None, "host": Im2colConv},
    ("cpu", "tf32"): {"host": Im2colConv},
    ("cpu", "bf16"): {"host": Im2colConv},
    ("cuda:0", "fp32"): {"direct": None, "shared": SharedMemoryConv, "tiled": TiledConv},
    ("cuda:0", "tf32"): {"tensor": TensorConv},
    ("cuda:0", "bf16"): {"tensor": TensorConv},
}
HINTS = [hint for hint in ALGORITHMS if hint != "auto"]


def the_conv(steps):
    """What computes the only convolution of a plan."""
    (found,) = (step for step in steps if not isinstance(step, Conversion))
    return found


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_hint_is_obeyed_or_refused_with_what_to_use(hint, precision, device):
    conv = Conv2D(3, 4, 3, algorithm=hint).to(device)
    conv.name = "conv7"
    fits = FITS[device.name, precision]
    if hint in fits:
        step = the_conv(plan([conv], device, np.float32, precision))
        assert step is conv if fits[hint] is None else type(step) is fits[hint]
        return
    with pytest.raises(ValueError) as caught:
        plan([conv], device, np.float32, precision)
    said = str(caught.value)
    where = f"conv7: algorithm {hint!r} does not run on {device.name} in float32"
    assert said.startswith(f"{where}, precision {precision!r}; use 'auto' or ")
    assert "\n" not in said
    for other in fits:
        assert repr(other) in said.partition("; use ")[2]


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype(np.float32)], ids=repr)
def test_however_the_dtype_is_written_the_plan_is_the_same(dtype, cuda_device):
    net = Sequential({"conv1": Conv2D(3, 4, 3, algorithm="tiled")}, (5, 6, 3))
    assert type(the_conv(net.to(cuda_device, dtype).steps)) is TiledConv
    assert type(the_conv(plan(net.layers, cuda_device, dtype))) is TiledConv


def test_register_tiles_are_refused_in_float64(cuda_device):
    conv = Conv2D(3, 4, 3, algorithm="tiled").to(cuda_device, np.float64)
    with pytest.raises(ValueError, match=r"'tiled' .* in float64, .*; use 'auto' or 'direct'"):
        plan([conv], cuda_device, np.float64)
    conv.algorithm = "shared"
    assert type(the_conv(plan([conv], cuda_device, np.float64))) is SharedMemoryConv


def test_a_net_refuses_a_hint_and_the_simple_kernels_do_not(device):
    net = Sequential({"conv1": Conv2D(3, 4, 3, algorithm="tensor")}, (5, 6, 3))
    net.to(device, kernels="simple")
    assert net.steps == net.layers
    with pytest.raises(ValueError, match="conv1: algorithm 'tensor' does not run on"):
        net.to(device, kernels="fast")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_auto_takes_what_is_fastest_there(precision, device):
    conv = Conv2D(3, 4, 3).to(device)
    step = the_conv(plan([conv], device, np.float32, precision))
    if not device.is_cuda:
        assert type(step) is Im2colConv
    elif precision != "fp32":
        assert type(step) is TensorConv
    elif device.is_simulated:  # where a tile takes as long for one pixel
        assert step is conv
    else:
        assert type(step) is TiledConv


def test_a_direct_convolution_leaves_its_relu_alone(device):
    layers = [Conv2D(3, 4, 3, algorithm="direct"), ReLU()]
    assert kinds(layers, device) == ["Conv2D", "ReLU"]
    assert kinds(layers, device, dtype=np.float64) == ["Conv2D", "ReLU"]


# --- what steps say of themselves


def every_step(device):
    """A step of every class that a plan has on `device`."""
    found = {}
    hints = ("tiled", "shared") if device.is_cuda else ("host",)
    lists = [
        *(([Conv2D(3, 4, 3, algorithm=hint), ReLU()], "fp32") for hint in hints),
        ([Linear(3, 4)], "fp32"),
        ([Linear(3, 4), ReLU()], "fp32"),
        ([Conv2D(3, 4, 3), ReLU(), LocalResponseNorm(), MaxPool2D(3, 2), Flatten()], "bf16"),
        ([Tanh(), Linear(3, 4), ReLU(), Dropout(0.5), Tanh(), Linear(3, 4)], "bf16"),
    ]
    for layers, precision in lists:
        for layer in layers:
            layer.to(device)
        for step in plan(layers, device, np.float32, precision):
            if isinstance(step, Step):
                found[type(step).__name__, len(step.layers)] = step
    return found


LIBRARIES = {"BLAS", "cuBLAS", "NumPy", "reshape"}
"""What `computed_by` names that is no function of ours."""


def modules_from(module):
    """`module` and all of the project that it imports."""
    found, todo = {}, [module]
    while todo:
        name = todo.pop()
        if name not in found and name.startswith("layers"):
            found[name] = importlib.import_module(name)
            todo += [getattr(x, "__module__", None) or "" for x in vars(found[name]).values()]
    return found.values()


def path_of(module):
    return module.replace(".", "/") + ".py"


def functions_like(name, modules):
    """The functions and kernels of these modules that `computed_by` means: "a_*", "{a,b}_c"."""
    pattern = re.sub(r"\{.*?\}", "*", name)
    names = {each for module in modules for each, x in vars(module).items() if callable(x)}
    return fnmatch.filter(names, pattern)


def test_what_steps_say_of_themselves_is_true(device):
    steps = every_step(device)
    seen = {kind for kind, _ in steps}
    common = {"LinearStep"}
    if device.is_cuda:
        wanted = {"SharedMemoryConv", "TiledConv", "TensorConv", "LRNRows", "MaxPoolRows"}
        wanted |= {"FlattenStep", "ToBFloat16", "ToFloat32"}
    else:
        wanted = {"Im2colConv", "LRNByDistance", "MaxPoolVectorized", "RoundToBFloat16"}
    assert seen == wanted | common
    for step in steps.values():
        module = type(step).__module__
        # Its own, or that of its kernels, which it imports.
        (file,) = (x for x in modules_from(module) if path_of(x.__name__) == step.file)
        assert (ROOT / step.file).is_file() and step.file.startswith("layers/fast/")
        if file.__name__ != module:
            assert functions_like(step.computed_by.split(", ")[0], [file])
        assert len(step.replaces) == len(step.layers)
        for layer, file in zip(step.layers, step.replaces, strict=True):
            assert f"class {type(layer).__name__}(" in (ROOT / file).read_text(encoding="utf-8")
            assert "/fast/" not in file
        assert 0 < len(step.short) <= 20 and step.computed_by
        for name in sorted(set(step.computed_by.split(", ")) - LIBRARIES):
            found = functions_like(name, modules_from(module))
            assert found, f"{type(step).__name__}: there is no {name}"


def test_notes_name_each_layer_once(device):
    for step in every_step(device).values():
        notes = step.notes()
        assert list(notes) == [layer.name for layer in step.layers]
        if notes:
            assert list(notes.values())[0] == f"({step.short})"
        assert repr(step) == f"{type(step).__name__}({step.name})"


# --- the loss


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_loss_of_a_net_is_of_its_tier(dtype, device):
    fast = SoftmaxRows if device.is_cuda else SoftmaxVectorized
    loss = plan_loss(device, dtype)
    assert type(loss) is fast and (loss.device, loss.dtype) == (device, dtype)
    net = Sequential([Linear(3, 4)]).to(device, dtype)
    assert type(net.loss()) is fast
    assert type(net.to(device, kernels="simple").loss()) is SoftmaxCrossEntropy
    assert (net.loss().device, net.loss().dtype) == (device, dtype)
    for name in set(loss.computed_by.split(", ")) - LIBRARIES:
        assert functions_like(name, modules_from(fast.__module__))
