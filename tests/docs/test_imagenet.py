"""The arithmetic of docs/imagenet.md, and its options."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from tinyconv import alexnet

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
TRAIN, VAL = 1_281_167, 50_000


def stated(pattern):
    """The first number where `pattern` says (#), as the text has it."""
    return float(
        re.search(pattern.replace("#", r"([\d,.]*\d)"), " ".join(TEXT.split()))[1].replace(",", "")
    )


@pytest.fixture(scope="module")
def net():
    return alexnet(1000)


def test_sizes(net):
    assert stated(r"# squares of 256×256×3 bytes") == TRAIN + VAL
    assert stated(r"prepared file \(# GB") == round((TRAIN + VAL) * 256 * 256 * 3 / 1e9)
    assert stated(r"the archives \(# GB") >= 138 + 6.3
    parameters = sum(p.value.size for p in net.parameters())
    outputs = sum(np.prod(shape) for shape in net.output_shapes(net.input_shape))
    assert stated(r"More than # GB") == round(4 * (3 * parameters + 2 * 128 * outputs) / 1e9, 1)
    assert stated(r"best are kept, # GB") == round(2 * 4 * parameters / 1e9, 1)


def test_hours_and_disk():
    limits = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    table = limits.split("printed: totals -->")[1].split("<!-- end")[0].splitlines()
    names, rates = ([cell.strip() for cell in line.split("|")] for line in (table[1], table[-1]))
    for name, pattern in (("H200, TF32", r"# hours on an H200"), ("T4", r"to # on a T4")):
        hours = 90 * TRAIN / float(rates[names.index(name)].replace(",", "")) / 3600
        assert stated(pattern) == pytest.approx(hours, rel=0.12)
    assert stated("disk needs # GB") == stated(r"archives \(# GB") + stated(r"file \(# GB")


def test_steps_and_operations(net):
    assert stated(r"# steps an epoch at batch 128") == TRAIN // 128
    forward = sum(
        layer.multiply_adds(shape)
        for layer, shape in zip(
            net.layers, [net.input_shape, *net.output_shapes(net.input_shape)], strict=False
        )
    )
    conv1 = net["conv1"].multiply_adds(net.input_shape)
    image = 2 * (3 * forward - conv1)  # backward is twice forward, but for conv1's input gradient
    assert stated(r"are # GFLOP an image") == round(image / 1e9, 2)
    assert stated(r"90 epochs are #·10¹⁷ operations") == round(image * TRAIN * 90 / 1e17, 1)
    assert stated(r"stays at ln 1000 = #") == pytest.approx(round(np.log(1000), 3), abs=1e-9)


@pytest.mark.parametrize("script", ["train_alexnet", "evaluate"])
def test_the_commands_take_the_options_that_are_named(script, capsys):
    spec = importlib.util.spec_from_file_location(script, ROOT / "examples" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    commands = re.findall(rf"^python examples/{script}\.py (.*)$", TEXT, re.M)
    assert commands
    named = {option for command in commands for option in re.findall(r"--[a-z-]+", command)}
    assert named <= known
