"""benchmarks/precision.py, on a net and a set so small that its figures mean nothing."""

import re

import precision
import pytest
from small import random_photos

from tinyconv.data.open_data import Data

TINY = ["--image-size", "64", "--width", "0.03", "--epochs", "2", "--batch-size", "4"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_error_is_that_of_the_operands():
    for positive in (False, True):
        fp32, tf32, bf16 = (
            precision.relative_error(name, 300, positive, rows=64)
            for name in ("fp32", "tf32", "bf16")
        )
        assert fp32 < 1e-6
        # Three bits less, eight times the error.
        assert bf16 == pytest.approx(8 * tf32, rel=0.1)
    assert precision.relative_error("tf32", 1, True, rows=64) < 2 * 2**-11


def test_products_alone(capsys, monkeypatch):
    monkeypatch.setattr(precision, "LENGTHS", (27, 1200))
    assert precision.main(["--seeds", "0"]) == 0
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[0] == ["terms", "of", "fp32", "tf32", "bf16"]
    assert [row[0] for row in rows[1::2]] == ["27", "1,200"]
    assert all(re.fullmatch(r"\d\.\de-\d\d", cell) for row in rows[1:] for cell in row[2:])


def test_a_row_for_each_training_their_means_and_distances(capsys, monkeypatch):
    data = Data.of_photos(random_photos(8), random_photos(6, seed=2), "noise")
    monkeypatch.setattr(precision, "open_data", lambda path, square: data)
    assert precision.main(["--seeds", "2", *TINY]) == 0
    printed = capsys.readouterr().out
    assert "noise: 8 training and 6 validation photos, 3 classes" in printed
    names = ["fp32", "tf32", "bf16", "fp32, nudged"]
    rows = [cells(line) for line in printed.splitlines() if line.startswith("| ")]
    start = next(i for i, row in enumerate(rows) if row[:2] == ["precision", "seed"]) + 1
    assert [row[:2] for row in rows[start : start + 8]] == [[n, s] for s in "01" for n in names]
    assert [row[:2] for row in rows[start + 8 : start + 12]] == [[name, "mean"] for name in names]
    loss = {(row[0], row[1]): float(row[2]) for row in rows[start : start + 12]}
    for name in names:
        mean = (loss[name, "0"] + loss[name, "1"]) / 2
        assert loss[name, "mean"] == pytest.approx(mean, abs=1.1e-4)
    assert [row[0] for row in rows[start + 12 :]] == [
        "pair", "tf32 and fp32, one seed", "bf16 and fp32, one seed",
        "fp32, nudged and fp32, one seed", "fp32 and fp32, two seeds",
    ]  # fmt: skip
    between_seeds = float(rows[-1][1].split()[0])
    assert 0 < float(rows[-3][1].split()[0]) < between_seeds
