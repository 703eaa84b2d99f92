"""`python -m tinyconv prepare`: what it prints, and its exit status."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from photo_bytes import put
from tar_bytes import WNIDS, class_folders, photo, tar_of

from tinyconv.data import prepare_command, prepare_work
from tinyconv.data.store import PhotoStore
from tinyconv.tools.command_line import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path):
    for name, content in class_folders(train=4).items():
        put(tmp_path / "photos" / name, content)
    return tmp_path / "photos"


def run(*arguments):
    return main(["prepare", *map(str, arguments), "--size", "8", "--workers", "0"])


def test_says_what_it_did_and_what_comes_next(source, tmp_path, capsys):
    put(source / "train" / WNIDS[0] / "bad.jpg", b"no")
    out = tmp_path / "my photos.h5"
    assert run(source, out) == 0
    first, *_, skipped, named, summary, rate, following = capsys.readouterr().out.splitlines()
    assert first.startswith("13 training and 6 validation photos, 3 classes; at 8×8 they need 0.")
    assert skipped.startswith(f"skipped 'train/{WNIDS[0]}/bad.jpg': ")
    assert named == f"skipped 1 files; all are named in {tmp_path / 'my photos.skipped.txt'}"
    assert summary == (f"{out}: 12 training and 6 validation photos of 3 classes, 8×8, 0.00 GB")
    assert rate.endswith("photos/s")
    assert following == f"next: python examples/train_alexnet.py --data '{out}'"
    assert len(PhotoStore(out).train) == 12


def test_as_a_program_with_workers(source, tmp_path):
    child = subprocess.run(
        [sys.executable, "-m", "tinyconv", "prepare", "photos", "out.h5", "--workers", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    assert PhotoStore(tmp_path / "out.h5").settings["size"] == 256


def test_classes_without_a_training_photo_are_pointed_out(tmp_path, capsys):
    files = {f"p/n0000000{k}_x.png": photo(k) for k in range(10)}
    source = put(tmp_path / "p.tar", tar_of(files))
    assert run(source, tmp_path / "out.h5", "--val-share", "0.7") == 0
    printed = capsys.readouterr().out
    assert "note: 7 classes have no training photo: n0000000" in printed and ", ...\n" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gone", "out.h5"], "no such file or folder: 'gone'"),
        (["photos", "no/out.h5"], "no such folder"),
        (["photos", "photos"], "is a folder"),
        (["photos", "out.h5", "--val-share", "2"], "must lie between 0 and 1"),
        (["photos", "out.h5", "--labels", "gone"], "leave out --labels"),
        (["photos/train", "out.h5"], "give --val-share 0.2"),
        (["text", "out.h5"], "is not a tar archive"),
        (["photos", "older.h5"], "exists already: give --force"),
    ],
)
def test_mistakes_give_one_line_and_status_2(
    source, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "text", b"text\n" * 200)
    put(tmp_path / "older.h5", b"older")
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("tinyconv prepare: error: ") and message in printed.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "older.h5").read_bytes() == b"older"


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "number, status, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended")]
)
def test_signals_end_it_and_it_goes_on(source, tmp_path, monkeypatch, capsys, number, status, word):
    monkeypatch.setattr(prepare_work, "BATCH", 2)
    monkeypatch.setattr(prepare_work, "BLOCK", 4)
    real = prepare_command._progress

    def progress(iterable=None, **settings):
        bar = real(iterable, **settings)
        if settings["desc"] == "decoding":

            def update(count):
                bar.n += count
                if bar.n == 10:
                    signal.raise_signal(number)

            bar.update = update
        return bar

    with monkeypatch.context() as patch:
        patch.setattr(prepare_command, "_progress", progress)
        # Started in the background by a shell, pytest ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before = signal.getsignal(signal.SIGTERM)
        assert run(source, tmp_path / "out.h5") == status
        assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == f"{word}: the same command goes on where it was\n"
    assert run(source, tmp_path / "out.h5") == 0
    printed = capsys.readouterr().out
    assert "going on after 8 of 18 photos\n" in printed and "(8 were done before)" in printed


def test_progress_without_a_terminal_is_lines(monkeypatch):
    monkeypatch.setattr(prepare_command, "SECONDS_BETWEEN_LINES", 0)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with prepare_command._progress(total=3, initial=0, desc="decoding", unit="photo") as bar:
        for _ in range(3):
            bar.update(1)
    lines = log.getvalue().splitlines()
    assert len(lines) >= 3 and "\r" not in log.getvalue() and all(lines)
    assert lines[-1].startswith("decoding: 100%") and "3/3" in lines[-1]


def test_the_help_names_every_kind_of_source(capsys):
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for word in (
        "ILSVRC2012_img_train.tar",
        "cifar-10-binary.tar.gz",
        "--val-share 0.2",
        "--force",
    ):
        assert word in printed
