"""benchmarks/scaling.py: what docs/scaling.md says is what it prints; and a small measurement."""

import sys

import pytest
import scaling
from programs import ROOT, run_program

DOCUMENT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables():
    """They take two nets of full size to count in."""
    return scaling.tables()


def test_the_document_has_the_tables_that_are_printed(tables):
    assert len(tables) == 4
    for table in tables[:3]:  # the last is the third with other links
        assert table in DOCUMENT


def test_paper_prints_every_table(tables, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--paper"])
    assert scaling.main() == 0
    printed = capsys.readouterr().out
    assert all(table in printed for table in tables)


def test_bytes_by_hand():
    # 60,965,224 parameters: 4 bytes each, half of them sent twice by each of two GPUs.
    assert scaling.replicas_bytes(2) == 4 * 60_965_224
    assert scaling.replicas_bytes(4) == 1.5 * 4 * 60_965_224
    # conv3 sees 13·13·256, fc6 6·6·256, fc7 and fc8 4096; a thousand logits; half of each, both
    # ways, float32.
    floats = 13 * 13 * 256 + 6 * 6 * 256 + 2 * 4096 + 1000
    assert scaling.columns_bytes(1) == 4 * floats
    # 2,334,080 parameters in the convolutions; fc6 to fc8 for one photo.
    convolutions = 34_944 + 307_456 + 885_120 + 663_936 + 442_624
    assert scaling.hybrid_bytes(2, 1) == 4 * (convolutions + 9216 + 2 * 4096 + 1000)


def test_an_epoch_takes_as_long_as_the_slower_of_the_two_or_as_both():
    hidden, shown = scaling.epoch_seconds(1000, 1, "NVLink 4")
    assert hidden == shown == pytest.approx(1281.167)
    slow, fast = (
        scaling.epoch_seconds(1000, 16, "NVLink 4"),
        scaling.epoch_seconds(1e6, 16, "NVLink 4"),
    )
    assert slow[0] == pytest.approx(1281.167 / 16) and slow[1] > slow[0]
    exchange = 7 / 4 * 4 * 60_965_224 / 450e9 + 4 * 60_965_224 / 12.5e9
    assert fast[0] == pytest.approx(1_281_167 / (128 * 16) * exchange)


def test_a_small_measurement():
    sizes = (
        "--ranks 1,2 --width 0.05 --image-size 64 --batch-size 4 --steps 2 --warm-up 1 --rounds 1"
    )
    status, out, err = run_program(ROOT / "benchmarks" / "scaling.py", *sizes.split())
    assert status == 0, err
    one, two = out.splitlines()[-2:]
    assert one.startswith("| 1 | 4 |") and one.endswith("| 1.00 (1.00 to 1.00) |  |")
    assert two.startswith("| 2 | 4 |") and not two.endswith("|  |")
