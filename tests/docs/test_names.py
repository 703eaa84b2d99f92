"""What the documents name is there: files, functions, the recipes' table, the shapes of a batch."""

import ast
import dataclasses
import functools
import math
import re
from pathlib import Path

import pytest

from tinyconv import RECIPES, Recipe, alexnet
from tinyconv.lab.cases import GROUPS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
FOLDERS = ("layers", "tinyconv", "examples", "tests", "benchmarks", "docs")


def text_of(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def in_backticks(text):
    """What stands in `backticks` outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def sources():
    return [path for top in FOLDERS[:3] for path in (ROOT / top).rglob("*.py")]


def identifiers(tree):
    """Every name in a piece of code: what is defined, assigned, passed, or looked up."""
    for node in ast.walk(tree):
        for part in ("name", "id", "arg", "attr"):
            if isinstance(name := getattr(node, part, None), str):
                yield name


@functools.cache
def names_in_sources():
    """The project's identifiers, "Class.member" for those in a class, and environment variables."""
    names = {"breakpoint"}
    for path in sources():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        names |= set(identifiers(tree)) | set(re.findall(r"NUMBA_\w+", text))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{member}" for member in identifiers(node)}
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    words = [word for quoted in in_backticks(text) for word in quoted.split()]
    words += re.findall(r"python (?:-m pytest )?([\w./-]+)", text)
    starts = tuple(f"{folder}/" for folder in FOLDERS)
    paths = {
        word
        for word in words
        if re.fullmatch(r"[\w./-]+\.(py|md|toml|cfg)", word) or word.startswith(starts)
    }
    missing = {path for path in paths if not any(ROOT.glob(path.rstrip("/")))}
    assert not missing, f"{document.name} names files that are not there"


def headings(path):
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCUMENTS],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        assert not anchor or anchor in headings(other), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_functions_exist(document):
    # snake_case, CamelCase, Class.member, call(): what can hardly be anything but a name.
    name = r"[a-zA-Z]*_\w+|[A-Z]\w*[a-z][A-Z]\w*|[A-Z]\w*\.\w+|[a-z]\w+\(\)"
    words = in_backticks(document.read_text(encoding="utf-8"))
    named = {word.removesuffix("()") for word in words if re.fullmatch(name, word)}
    elsewhere = {
        "NUMBA_DISABLE_JIT",  # Numba's own
        *("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),  # ImageNet's
        "LOC_val_solution.csv",
    }
    # The laboratory's commands call groups of kernels by names of their own.
    missing = named - names_in_sources() - set(GROUPS) - elsewhere
    assert not missing, f"{document.name} names what is in no source file"


def test_the_tour_visits_every_folder():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in sources()} - {"examples"}
    missing = [
        folder for folder in folders - {"layers"} if f"| `{folder}/`" not in text_of("tour.md")
    ]
    assert not missing, "docs/tour.md should say what to look for in each of these"


def test_the_first_line_of_every_file_says_what_it_holds():
    first = {path: path.read_text(encoding="utf-8").partition("\n")[0] for path in sources()}
    silent = [
        path.relative_to(ROOT).as_posix()
        for path, line in first.items()
        if not re.fullmatch(r'"""\S.{9,}', line) and path.stat().st_size
    ]
    assert not silent, "docs/tour.md sends its readers to this line"


def test_the_tours_second_exercise_finds_its_lines():
    text = (ROOT / "layers" / "lrn.py").read_text(encoding="utf-8")
    host = text[text.index("# --- host") : text.index("# --- kernels")]
    assert host.count(" + half + 1)") == 2


def test_shapes_of_the_tours_batch():
    tour = text_of("tour.md")
    net = alexnet(10, width=0.25, image_size=96, recipe="robust")
    shapes = dict(zip((layer.name for layer in net), net.output_shapes((96, 96, 3)), strict=True))
    shapes |= {"images": (round(96 * 256 / 224),) * 2 + (3,), "x": (96, 96, 3)}
    rows = re.findall(r"^(\w+) +64×([\d×]+)", tour, re.M)
    assert len(rows) == 14
    for name, shape in rows:
        assert tuple(int(side) for side in shape.split("×")) == shapes[name], name


def written(recipe, field):
    """A recipe's field as the table in paper.md shows it."""
    value = getattr(recipe, field)
    if field == "default_std" and recipe.weight_std("some layer", 50) == math.sqrt(2 / 50):
        return "√(2 / fan-in)"
    if field == "std":
        by_std = {std: [name for name in value if value[name] == std] for std in value.values()}
        return "; ".join(f"{', '.join(names)}: {std:g}" for std, names in by_std.items()) or "–"
    if isinstance(value, tuple):
        return ", ".join(value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:.6f}".rstrip("0").rstrip(".")


def test_the_table_of_recipes():
    found = re.search(r"^\| field \|.*?(?=\n\n)", text_of("paper.md"), re.S | re.M)
    header, _, *rows = found[0].splitlines()
    names = re.findall(r"`(\w+)`", header)
    assert names == list(RECIPES)
    table = {}
    for row in rows:
        field, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        table[field.strip("`")] = cells
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert list(table) == [name for name in fields if name not in ("name", "summary")]
    for field, cells in table.items():
        assert cells == [written(RECIPES[name], field) for name in names], field


def test_the_papers_geometry():
    net = alexnet(1, width=0.01, recipe="paper")  # small: only its padding is looked at
    assert "(3 pixels at 224)" in text_of("paper.md")
    assert net["conv1"].after == 3
    assert net["conv1"].output_shape((224, 224, 3))[:2] == (55, 55)
