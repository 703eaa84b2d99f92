"""`python -m tinyconv draw-kernel`: pages, still pictures, and what it refuses."""

import argparse
from pathlib import Path
from xml.etree import ElementTree

import pytest
from simulated import ROOT

from tinyconv.lab import picture_command
from tinyconv.lab.cases import CASES
from tinyconv.lab.convolution_views import VIEWS


def run(*arguments):
    parser = argparse.ArgumentParser()
    picture_command.options(parser)
    return picture_command.main(parser.parse_args([str(a) for a in arguments]))


def test_command_writes_a_page_and_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("max_pool", "--shape", "1,5,5,3") == 0
    assert "max_pool.html" in capsys.readouterr().out
    assert "max_pool_forward_kernel" in Path("max_pool.html").read_text(encoding="utf-8")
    # It is made anew from the kernels at any time, so it may be overwritten.
    assert run("max_pool", "--shape", "1,5,5,3") == 0


def test_command_writes_a_still_picture(tmp_path):
    out = tmp_path / "one.svg"
    arguments = ("lrn", "--svg", "--kernel", "lrn_backward_kernel", "--block", 1, "--step", 2)
    assert run(*arguments, "--out", out) == 0
    assert "block 1 of 3, step 2 of" in out.read_text(encoding="utf-8")


def test_command_draws_one_kernel_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("relu_backward_kernel") == 0
    text = Path("relu_backward_kernel.html").read_text(encoding="utf-8")
    assert "relu_backward_kernel" in text and "relu_forward_kernel" not in text
    assert run("ReLU", "--svg") == 0 and Path("relu_forward_kernel.svg").exists()


def test_command_writes_a_view(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("shared", "--view", "pipeline") == 0
    assert "shared_pipeline.svg" in capsys.readouterr().out
    assert "no k-tile is in flight" in Path("shared_pipeline.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["lrm"], "no layer or kernel is called 'lrm': did you mean lrn"),
        ([], "a NAME is missing"),
        (["lrn", "--shape", "2,x"], "--shape of lrn is positive numbers such as"),
        (["lrn", "--shape", "2,0,3,4"], "not '2,0,3,4'"),
        (["max_pool", "--shape", "4"], "--shape of max_pool is positive numbers such as"),
        (["max_pool", "--shape", "1,2,2,3"], "no whole window"),
        (["crop", "--shape", "1,8,9,3"], "do not fit"),
        (["crop", "--shape", "1,8,8,4"], "try --shape"),
        (["relu", "--shape", "900,900"], "too large"),
        (["relu", "--step", "1"], "need --svg"),
        (["relu", "--svg", "--kernel", "lrn_forward_kernel"], "relu launches no lrn_forward"),
        (["relu", "--svg", "--step", "4"], "there is no step 4"),
        (["relu", "--svg", "--step", "0"], "there is no step 0"),
        (["relu", "--svg", "--block", "2"], "there is no block 2"),
        (["relu", "--svg", "--block", "-1"], "there is no block -1"),
        (["relu", "--out", "no/such/folder.html"], "cannot write"),
        (["relu", "--all-pictures", "x"], "goes alone"),
        (
            ["relu", "--view", "tile"],
            "relu has no view tile; there are shared: tile, pipeline, banks",
        ),
        (["tensor_bf16", "--view", "banks"], "tensor_bf16 has no view banks"),
        (["shared", "--view", "tile", "--shape", "1,6,6,8"], "without --svg and --shape"),
        (["shared", "--view", "tile", "--svg"], "without --svg and --shape"),
        (["shared", "--view", "tile", "--step", "1"], "need --svg"),
        (["--view", "tile"], "a NAME is missing"),
        (["--view", "tile", "--all-pictures", "x"], "goes alone"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=complaint) as refused:
        run(*arguments)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_every_kernel_has_its_picture_in_the_documents(tmp_path, capsys):
    folder = ROOT / "docs" / "pictures"
    assert run("--all-pictures", tmp_path / "new") == 0  # draws every NAME of the help
    figures = {f"{case.name}.svg" for case in CASES.values() if case.figure}
    figures |= {f"{name}_{view}.svg" for name, views in VIEWS.items() for view in views}
    assert str(len(figures)) in capsys.readouterr().out
    made = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    assert set(made) == figures
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for name, picture_now in made.items():
        ElementTree.fromstring(picture_now)
        assert len(picture_now) < (150_000 if "_tile" in name else 60_000), name
        assert f"](pictures/{name})" in text, f"docs/kernels.md does not show {name}"
    kept = {file.name for file in folder.glob("*.svg")}
    assert kept == {*made, "two_columns.svg", "drawn_pictures.svg"}  # of `draw`
    if hasattr(run.__code__, "co_positions"):  # marks an expression, not a whole line
        stale = [name for name, now in made.items() if (folder / name).read_bytes() != now]
        assert not stale, "draw them anew: python -m tinyconv draw-kernel --all-pictures " + str(
            folder.relative_to(ROOT)
        )
