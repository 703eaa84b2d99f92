"""The table of the project's kernels: clean, complete, and in accord with real launches."""

import ast
import importlib
import inspect
import pkgutil
import sys
from importlib.util import find_spec

import numba
import numpy as np
import pytest
from simulated import ROOT

import layers
from layers import Conv2D, Device, Layer, simulator
from layers.device import cuda
from tinyconv import SGD, Sequential
from tinyconv.lab.cases import CASES, GROUPS, LAYERS, checked_shape, launches, named
from tinyconv.lab.cases.book import gradient_cases
from tinyconv.lab.cases.case import STORED, KernelCase
from tinyconv.lab.checks import check_kernel
from tinyconv.run.layer_table import ARGUMENTS
from tinyconv.tools.command_line import main


@pytest.fixture(scope="module")
def known():
    """Every launch of the table, by group."""
    return {name: list(launches(name)) for name in GROUPS}


@pytest.mark.full
@pytest.mark.parametrize("name", GROUPS)
def test_the_projects_kernels_are_clean(name, known):
    for launch in known[name]:
        report = launch.check(orders=1)
        assert report.ok, f"{launch.title}\n{report}"


@pytest.mark.full
@pytest.mark.parametrize("name", GROUPS)
def test_a_group_launches_its_kernels_with_blocks_of_the_threads_in_the_table(name, known):
    launched = {launch.name: launch for launch in known[name]}
    for case in GROUPS[name].cases:
        assert case.name in launched, f"no run of {name} launches it"
        assert 0 < int(np.prod(launched[case.name].block)) <= case.threads


def test_what_is_declared_as_rewritten_is():
    for launch in launches("softmax", (3, 5)):
        case, rest = launch.case, (launch.grid, launch.block, launch.args)
        report = check_kernel(case.kernel, *rest, case.outputs, orders=0)
        assert {issue.array for issue in report.issues} == set(case.rewritten)


def test_argument_types():
    flat, flat_bits = (numba.types.Array(t, 1, "C") for t in (numba.float32, numba.uint16))
    case = KernelCase(None, "2*stored[1] number[1] 2*int64 number boolean")
    assert case.dtypes == tuple(STORED)
    integer, flag = numba.int64, numba.types.boolean
    bf16 = flat_bits, flat_bits, flat, integer, integer, numba.float32, flag
    assert case.argument_types("bfloat16") == bf16
    assert case.argument_types("float32") == (*(flat,) * 3, integer, integer, numba.float32, flag)


@pytest.mark.full
def test_kernels_are_launched_with_the_argument_types_in_the_table():
    launched = {name: set() for name in CASES}

    def note(trace):
        if trace.kernel in launched:
            types = tuple(numba.typeof(argument) for argument in trace.arguments)
            launched[trace.kernel].add(types)

    with simulator.record(note):
        for group in GROUPS.values():
            for dtype in group.dtypes:
                for run in group.run(group.small, dtype).values():
                    run()
        # As in training, where weights and gradients are parts of the optimizer's arrays.
        net = Sequential([Conv2D(3, 2, 3)]).to("cuda:0", kernels="simple")
        SGD(net.parameters()).step()
        net.backward(net.forward(Device("cuda:0").array(np.ones((2, 5, 4, 3)), "float32")))
    for name, case in CASES.items():
        assert launched[name] == {case.argument_types(dtype) for dtype in case.dtypes}, name


def test_a_shape_must_fit_its_name():
    assert checked_shape("lrn", None) is None
    assert checked_shape("relu", "3,4") == (3, 4) and checked_shape("relu", "1,2,3,4")
    with pytest.raises(ValueError, match="--shape of lrn is positive numbers such as 2,6,7,5"):
        checked_shape("lrn", "3,4")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, (name, None)) for name in GROUPS),
        *((case.name, (group, case.name)) for group in GROUPS for case in GROUPS[group].cases),
        *LAYERS.items(),
        ("MaxPool2D", "max_pool"),
        ("maxpool", "max_pool"),
        ("max", "max_pool"),  # a layer of the book rather than max_pool_rows
        ("pool", "max_pool"),
        ("LocalResponse", "lrn"),
        ("softmax_cross", "softmax"),
        ("lrn_b", ("lrn", "lrn_backward_kernel")),
        ("tensor_bf", "tensor_bf16"),
    ],
)
def test_a_name_and_what_is_meant(name, meant):
    assert named(name) == ((meant, None) if isinstance(meant, str) else meant)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lrm", "did you mean lrn"),
        ("relu_backwards_kernel", "did you mean relu_backward_kernel"),
        ("l", "'l': choose from locally_connected, lrn"),
        ("", "'': choose from conv, max_pool"),
        ("_", "'_': choose from conv, max_pool"),
        ("xyzzy", "'xyzzy': choose from conv, max_pool"),
    ],
)
def test_a_name_that_means_nothing_or_too_much(name, said):
    with pytest.raises(ValueError, match=said) as caught:
        named(name)
    assert "\n" not in str(caught.value)


def test_the_engine_knows_nothing_of_the_table():
    folder = ROOT / "tinyconv" / "lab"
    engine = [path for path in folder.glob("*.py") if not path.name.endswith("_command.py")]
    engine.remove(folder / "exercise.py")  # which marks layers as well
    engine.remove(folder / "convolution_views.py")  # pictures of this project's kernels
    assert len(engine) > 9
    allowed = "tinyconv.lab.", "layers.simulator", "layers.device."
    for path in engine:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = getattr(node, "module", None) or ""
            assert not module.startswith("tinyconv.lab.cases"), path.name
            if module.startswith(("tinyconv.", "layers.")):
                assert f"{module}.".startswith(allowed), path.name


# --- what a kernel or a layer still lacks


def is_kernel(value):
    """Whether it is a kernel, and no device function."""
    return isinstance(value, type(cuda.jit(lambda: None))) and not value._device


def kernels_of(*packages):
    """By full name every kernel that a module of these packages holds."""
    found = {}
    for package in packages:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            without_onnx = module.name.endswith(".onnx_graph") and not find_spec("onnx")
            if module.name.endswith(".__main__") or without_onnx:  # the extra `export`
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if is_kernel(value):
                    found[f"{value.__module__}.{value.__name__}"] = value
    return found


def test_every_kernel_has_a_case():
    found = kernels_of(layers, importlib.import_module("tinyconv"))
    assert len(found) > 50
    missing = set(found) - {case.full_name for case in CASES.values()}
    assert not missing, f"add a KernelCase to a group in tinyconv/lab/cases/: {sorted(missing)}"
    assert len({case.full_name for case in CASES.values()}) == len(CASES)


def test_a_kernel_without_a_case_is_found(monkeypatch):
    @cuda.jit
    def forgotten(x):
        x[0] = 1

    monkeypatch.setattr(layers.lrn, "forgotten", forgotten, raising=False)
    assert f"{__name__}.forgotten" in kernels_of(layers)


def lacking(kind):
    """What a layer still lacks, each with what to do."""
    place = f"{kind.__module__.replace('.', '/')}.py"  # may be installed elsewhere
    folder, _, name = place.rpartition("/")
    tests = f"tests/{folder}/test_{name}"
    if kind.__name__ not in layers.__all__:
        yield "its export: layers/__init__.py"
    if not (ROOT / tests).exists():
        yield f"a test file: {tests}"
    made = [layer for _, layer, _, _ in gradient_cases() if type(layer) is kind]
    if not made:
        yield "a gradient case: tinyconv/lab/cases/book.py"
    for name, kernel in vars(sys.modules[kind.__module__]).items():
        if is_kernel(kernel) and kernel.__module__ == kind.__module__ and name not in CASES:
            yield f"a KernelCase of {name}: tinyconv/lab/cases/book.py"
    if kind not in ARGUMENTS:
        yield "how its constructor is called: tinyconv/run/layer_table.py"
    torch_twin = importlib.import_module("torch_twin") if find_spec("torch") else None
    for layer in (made or [object.__new__(kind)]) if torch_twin else []:
        try:
            torch_twin.modules_of(layer, our_masks=True)
        except KeyError:
            yield "its modules in PyTorch: benchmarks/torch_twin.py"
        except ValueError:  # of settings that PyTorch does not know
            pass
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    if f"`{place}`" not in text:
        yield "a sentence on its file: docs/tour.md"


def kinds():
    """Every layer in a file of `layers/`, exported or not."""
    modules = (
        *pkgutil.iter_modules(layers.__path__, "layers."),
        *pkgutil.iter_modules(layers.cifar10.__path__, "layers.cifar10."),
    )
    for module in modules:
        if module.ispkg:
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            own = isinstance(kind, type) and kind.__module__ == module.name
            if own and issubclass(kind, Layer) and not inspect.isabstract(kind):
                yield kind


@pytest.mark.parametrize("kind", [*kinds()])
def test_a_layer_lacks_nothing(kind):
    """Without PyTorch all but its counterpart there."""
    assert not list(lacking(kind))


def test_everything_that_a_layer_lacks_is_named(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    assert len(list(kinds())) >= 8

    class Cube(layers.Tanh):
        """A layer in a file of tests."""

    @cuda.jit
    def cube_kernel(x):
        x[0] = 1

    monkeypatch.setattr(sys.modules[__name__], "cube_kernel", cube_kernel, raising=False)
    ending = (
        *("a KernelCase of cube_kernel", "how its constructor is called"),
        *("its modules in PyTorch", "a sentence on its file"),
    )
    assert [line.partition(":")[0] for line in lacking(Cube)] == [
        *("its export", "a test file", "a gradient case", *ending)
    ]
    case = "Cube", Cube(), None, None
    monkeypatch.setitem(globals(), "gradient_cases", lambda: [case])
    assert [line.partition(":")[0] for line in lacking(Cube)] == [
        *("its export", "a test file", *ending)
    ]


@pytest.mark.parametrize("command", [["check"], ["draw-kernel"]])
def test_a_layer_whose_kernels_have_no_case_is_refused_in_one_line(command, monkeypatch, capsys):
    """Not with a traceback, though its name is in the help."""
    monkeypatch.delitem(CASES, "relu_forward_kernel")
    assert main([*command, "relu"]) == 2
    error = capsys.readouterr().err
    assert "relu_forward_kernel has no KernelCase: add one" in error and error.count("\n") == 1
    assert main(["traffic", "relu"]) == 0
