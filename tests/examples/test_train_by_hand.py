"""The loop written out: that it trains, by both tiers, and stays a page."""

import importlib.util
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from layers import conv
from tinyconv.data import synthetic

SCRIPT = Path(__file__).parents[2] / "examples" / "train_by_hand.py"


@pytest.fixture
def script(monkeypatch):
    """The program with few and small pictures, for one epoch."""
    spec = importlib.util.spec_from_file_location("train_by_hand", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "synthetic", lambda size: synthetic(3, 2, 74))
    monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(module, "BATCH", 10)
    monkeypatch.setattr(module, "CROP", 64)
    return module


def test_both_tiers_print_the_same_losses(script, capsys):
    printed = []
    for kernels in ("simple", "fast"):
        script.main(kernels)
        lines = capsys.readouterr().out
        assert [line[:7] for line in lines.splitlines()] == ["epoch 1", "epoch 2"]
        printed.append([float(number) for number in re.findall(r"loss (\d\.\d{3})", lines)])
    # Printed to three digits, after three steps: roundings of float32 do not show by more.
    assert printed[0] == pytest.approx(printed[1], abs=0.0015)


def test_the_way_to_the_first_multiplication_is_short(script, monkeypatch):
    """From the loop to conv1's seven loops: at most ten frames, and never back up."""
    frames = []

    class Arrived(Exception):
        """Ends the run."""

    def here(*arguments):
        frames.extend(frame.filename for frame in traceback.extract_stack())
        raise Arrived

    monkeypatch.setattr(conv, "conv_forward_host", here)
    with pytest.raises(Arrived):
        script.main("simple")
    way = [Path(name).name for name in frames[frames.index(str(SCRIPT)) : -1]]
    assert way == ["train_by_hand.py", "sequential.py", "conv.py"]


def test_it_is_a_page_and_hides_nothing():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert "Training" not in text and "evaluate" not in text


def test_other_words_are_refused_in_one_line():
    done = subprocess.run([sys.executable, SCRIPT, "quick"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "[fast|simple]" in done.stderr
