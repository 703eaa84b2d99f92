"""`python -m tinyconv draw`: what it prints and writes, and what it says to mistakes."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from small import saved_net

from tinyconv import alexnet
from tinyconv.data.synthetic import synthetic
from tinyconv.parallel.columns import Columns
from tinyconv.recipes import RECIPES
from tinyconv.tools.command_line import main
from tinyconv.tools.draw_command import crossing_table
from tinyconv.tools.draw_pictures import PER_CLASS, SIDE

ROOT = Path(__file__).resolve().parents[3]

SMALL = ["--width", "0.05", "--image-size", "64", "--classes", "6"]


def numbers(row):
    return [int(word.replace(",", "")) for word in row.split()[-3:]]


def test_it_writes_the_picture_and_prints_what_crosses(tmp_path, capsys):
    out = tmp_path / "net.svg"
    assert main(["draw", "--parallel", "columns", "--out", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert out.read_text("utf-8").startswith("<svg ") and f"written: {out}" in printed
    assert crossing_table(Columns(alexnet(6, 0.05, 64, "paper"))) in printed


def test_one_device_is_drawn_beside_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["draw", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "net.svg").exists() and "multiply-adds" in printed and "conv5" in printed


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_adds_up(recipe):
    _, *rows, last = crossing_table(Columns(alexnet(7, 0.1, 67, recipe)), 10).splitlines()
    assert [sum(column) for column in zip(*map(numbers, rows), strict=True)] == numbers(last)
    first, *others = rows
    assert numbers(first)[2] == 10 * numbers(first)[0]  # photos have no way back
    for row in others:
        assert numbers(row)[2] == 20 * sum(numbers(row)[:2])
    assert any("border of norm1" in row for row in rows) == (recipe != "authors")


def test_filters_of_a_trained_net_become_a_picture(tmp_path, capsys):
    net = alexnet(6, 0.05, 64)
    half = net["conv1"].weight.value.shape[0] // 2
    net["conv1"].weight.value[:half] = 0.5  # grey
    saved_net(tmp_path / "weights.h5", "abcdef", "authors", net)
    out = tmp_path / "filters.png"
    assert main(["draw", "--filters", str(tmp_path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"column 0: {half} filters, colourfulness 0.0% on average" in printed
    assert f"column 1: {half} filters, colourfulness 6" in printed
    with Image.open(out) as picture:
        assert picture.width > 300


def test_drawn_pictures_are_on_a_sheet(tmp_path, capsys):
    out = tmp_path / "sheet.svg"
    assert main(["draw", "--pictures", "--out", str(out)]) == 0
    root = ElementTree.fromstring(out.read_text("utf-8"))
    data = next(e for e in root.iter() if e.tag.endswith("image")).get("href")
    with Image.open(BytesIO(b64decode(data.partition("base64,")[2]))) as sheet:
        pixels = np.asarray(sheet).astype(int)
    train, _ = synthetic(PER_CLASS, 1, SIDE)
    assert pixels.shape == (10 * SIDE, PER_CLASS * SIDE, 3)
    said = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]
    for row, name in enumerate(train.class_names):
        assert name in said
        for column in (0, PER_CLASS - 1):
            found = pixels[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            # A JPEG blurs colours, but each place is nearest to its own picture.
            distances = np.abs(np.asarray(train.images).astype(int) - found).mean(axis=(1, 2, 3))
            assert int(distances.argmin()) == row * PER_CLASS + column and distances.min() < 25
    shown = (ROOT / "docs" / "pictures" / "drawn_pictures.svg").read_text("utf-8")
    assert [name for name in train.class_names if f">{name}<" not in shown] == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--out", "net.png"], "this picture is a .svg file"),
        (["--filters", "w.h5", "--out", "net.svg"], "this picture is a .png file"),
        (["--filters", "w.h5", "--pictures"], "two pictures: give one"),
        (["--out", "nowhere/net.svg"], "there is no folder 'nowhere'"),
        (["--filters", "w.h5"], "w.h5"),
        (["--width", "0"], "width must be between"),
        (["--image-size", "20"], "at least 64"),
        (["--parallel", "columns", "--classes", "1", "--width", "0.05"], "fc8: 1 outputs"),
        (["--batch-size", "0", *SMALL], "--batch-size must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["draw", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyconv draw: error: ") and said in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
