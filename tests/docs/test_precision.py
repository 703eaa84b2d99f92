"""The numbers of docs/precision.md are those of the formats, and of the printed report."""

import re
from pathlib import Path

import numpy as np

from layers.fast.bfloat16 import round_bf16, round_tf32

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
ROUND = {"float32": lambda x, out: x, "TF32": round_tf32, "bfloat16": round_bf16}


def rounded(value, name):
    x = np.array([value], np.float32)
    return float(ROUND[name](x, np.empty_like(x))[0])


def test_the_table_of_formats():
    rows = re.findall(r"^\| (float32|TF32|bfloat16) \| (.+) \|$", TEXT, re.M)
    assert [name for name, _ in rows] == list(ROUND)
    for name, row in rows:
        exponent, fraction, step, largest, smallest, third = row.split(" | ")
        bits = int(fraction)
        assert int(exponent) == 8
        assert step == f"{2.0**-bits:.2e}"
        top = (2 - 2.0**-bits) * 2.0**127
        assert largest == f"{top:.3e}" and rounded(top, name) == top
        assert smallest == f"{2.0**-126:.2e}" and rounded(2.0**-126, name) == 2.0**-126
        assert third == f"{rounded(1 / 3, name):.9f}"
        # The next number after 1 is there, and half of the way to it is not.
        assert rounded(1 + 2.0**-bits, name) == 1 + 2.0**-bits
        if name != "float32":
            assert rounded(1 + 2.0 ** -(bits + 1) * 1.001, name) == 1 + 2.0**-bits


def test_what_a_bfloat16_cannot_hold():
    text = " ".join(TEXT.split())
    assert "A weight of 1 that learns 0.001" in text and rounded(1.001, "bfloat16") == 1
    assert "256 + 1 = 256" in text and rounded(257, "bfloat16") == 256
    assert rounded(255, "bfloat16") == 255


def test_its_tables_are_those_of_the_report():
    (report,) = set(re.findall(r"\]\(\.\./(benchmarks/results/[^)]+)\)", TEXT))
    printed = (ROOT / report).read_text(encoding="utf-8").splitlines()
    measured = TEXT[TEXT.index("## A product of many terms") :]
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert not set(rows) - set(printed)
