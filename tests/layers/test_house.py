"""The book stays small and plain, and imports run one way: tinyconv, layers.fast, the book."""

import ast
from pathlib import Path

import pytest

import layers
from layers import Layer, SoftmaxCrossEntropy

ROOT = Path(__file__).resolve().parents[2]
BOOK = sorted((ROOT / "layers").glob("*.py"))
MOST_LINES = 1700
TOP = sorted((ROOT / "tinyconv").glob("*.py"))
MOST_LINES_ON_TOP, MOST_FILES_ON_TOP = 1560, 12

CHOICES = {
    "tinyconv/data/augment.py": "a kernel or a host loop of its own: crops",
    "tinyconv/data/loader.py": "copies to a GPU run ahead",
    "tinyconv/tools/doctor.py": "names what was launched",
    "tinyconv/parallel/columns.py": "two devices of one kind; what leaves a stage on the host",
    "tinyconv/parallel/link.py": "two devices of one kind",
    "tinyconv/parallel/launch.py": "the GPU of a rank, and whether it needs NCCL",
    "tinyconv/parallel/stage.py": "on the host bf16 is rounded in place",
    "tinyconv/sgd.py": "a kernel or a host loop of its own: the update",
    "tinyconv/tools/plan_command.py": "prints the kernels or the host loops of a layer",
    "tinyconv/run/options.py": "the default width",
    "tinyconv/run/program.py": "the default image size",
    "tinyconv/tools/gradcheck_command.py": "says what was checked",
    "tinyconv/run/training.py": "which step: on a GPU it is recorded",
}
"""Files of tinyconv/ that ask whether a device is a GPU, and what for."""


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """The full names of what a file imports, anywhere in it; "from a import b" is a.b."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def python_files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    """What the tests below rely on."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "layers" / "fast" / "one.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import layers.fast.plan as plan\nfrom layers.fast import step\nfrom .host import lrn\n"
        "from . import gemm\nfrom .. import conv\n\n\ndef late():\n    from tinyconv import SGD\n"
    )
    assert list(imported(path)) == [
        *("layers.fast.plan", "layers.fast.step", "layers.fast.host.lrn", "layers.fast.gemm"),
        *("layers.conv", "tinyconv.SGD"),
    ]


def test_the_book_is_read_in_an_afternoon():
    assert len(BOOK) > 10
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in BOOK)
    assert count <= MOST_LINES, f"layers/*.py has {count} lines, {MOST_LINES} are allowed"


def test_the_top_level_of_tinyconv_is_small():
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in TOP)
    assert count <= MOST_LINES_ON_TOP and len(TOP) <= MOST_FILES_ON_TOP


@pytest.mark.parametrize("path", BOOK, ids=name_of)
def test_the_book_imports_nothing_of_the_fast_tier(path):
    """Nor any of its ideas: no bfloat16, no precisions, no recorded graphs."""
    for name in imported(path):
        assert not within(name, "layers.fast"), f"{name_of(path)} imports {name}"
        assert not {"bfloat16", "graph", "precision"} & set(name.split("."))


def test_only_the_device_knows_the_simulator():
    for path in BOOK:
        if path.name != "device.py":
            assert not any(within(name, "layers.simulator") for name in imported(path))
            assert "is_simulated" not in path.read_text(encoding="utf-8"), name_of(path)


def test_layers_import_nothing_of_tinyconv():
    paths = python_files("layers")
    assert len(paths) > 40
    for path in paths:
        wrong = [name for name in imported(path) if within(name, "tinyconv")]
        assert not wrong, f"{name_of(path)} imports {wrong}"


def test_the_simulator_names_no_file_above_it():
    """What it has to know of a kernel's functions they tell it: `register_intrinsics`."""
    paths = python_files("layers/simulator")
    assert len(paths) > 5
    for path in paths:
        for name in imported(path):
            outside = within(name, "layers") and not within(name, "layers.simulator")
            assert not outside, f"{name_of(path)} imports {name}"


def asks(path):
    """Whether a file reads `.is_cuda` of something."""
    return any(isinstance(x, ast.Attribute) and x.attr == "is_cuda" for x in ast.walk(tree(path)))


def test_host_or_gpu_is_decided_in_few_places_beside_the_layers():
    """A choice in the book is one that a reader sees; elsewhere each one has a reason."""
    found = {name_of(path) for path in python_files("tinyconv") if asks(path)}
    assert found - set(CHOICES) == set(), "decide it in layers/, or write the reason down above"
    assert set(CHOICES) - found == set(), "these ask no longer"
    assert not any(asks(path) for path in python_files("layers/simulator"))


LAYERS = [
    getattr(layers, name)
    for name in layers.__all__
    if name != "Layer" and issubclass(getattr(layers, name), Layer)
]


@pytest.mark.parametrize("kind", [*LAYERS, SoftmaxCrossEntropy])
def test_a_layer_knows_no_precision_and_no_partner(kind):
    sizes = {"Conv2D": (3, 4, 3), "Linear": (3, 4), "LocallyConnected2D": ((5, 6, 3), 4, 3)}
    made = kind(*sizes.get(kind.__name__, ()))
    for name in ("precision", "storage", "operand", "fuse", "partner", "chosen"):
        assert not hasattr(made, name)
    with pytest.raises(TypeError):
        made.to("cpu", "float32", "bf16")


def test_there_is_a_layer_of_each_kind():
    assert len(LAYERS) >= 8


# --- tinyconv: the rooms

UP = {"run", "tools", "parallel", "lab", "weights"}
"""Folders of tinyconv that import its top level, which imports none of them."""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tinyconv").glob("*.py")), ids=lambda path: path.name
)
def test_the_top_level_of_tinyconv_imports_no_room_above_it(path):
    if path.name in ("__main__.py", "__init__.py"):  # the command line; the exports
        return
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("tinyconv.")}
    assert not rooms & UP


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tinyconv" / "data").glob("*.py")), ids=lambda path: path.name
)
def test_data_imports_nothing_of_tinyconv_but_data(path):
    assert all(
        name.startswith("tinyconv.data") for name in imported(path) if name.startswith("tinyconv")
    )
