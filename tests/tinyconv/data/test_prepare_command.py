"""`python -m tinyconv prepare`: what it prints, and its exit status."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from photo_bytes import laid_out, put
from tar_bytes import WNIDS, class_folders, photo, tar_of
from tqdm import tqdm

from tinyconv.alexnet import SMALLEST_IMAGE
from tinyconv.data import prepare as module
from tinyconv.data import prepare_command
from tinyconv.data.open_data import open_data
from tinyconv.data.store import PhotoStore, read_header
from tinyconv.tools.command_line import main

ROOT = Path(__file__).resolve().parents[3]
TRAIN = "tinyconv train"


@pytest.fixture(autouse=True)
def started_as_a_console_command(monkeypatch):
    """Which is how the commands that it prints begin (`commands.py`)."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/tinyconv", "prepare"])


@pytest.fixture
def source(tmp_path):
    return laid_out(tmp_path / "photos", class_folders(train=4))


def run(*arguments, size=("--size", "8")):
    return main(["prepare", *size, "--workers", "1", *map(str, arguments)])


def test_prints_the_result_and_the_next_command(source, tmp_path, capsys):
    put(source / "train" / WNIDS[0] / "bad.jpg", b"no")
    out = tmp_path / "my photos.h5"
    assert run(source, out, "--size", "80") == 0
    first, *_, skipped, named, summary, rate, following = capsys.readouterr().out.splitlines()
    assert first.startswith("13 training and 6 validation photos, 3 classes; at 80×80 they need 0")
    assert skipped.startswith(f"skipped 'train/{WNIDS[0]}/bad.jpg': ")
    assert named == f"skipped 1 files; all are named in {tmp_path / 'my photos.skipped.txt'}"
    assert summary == (f"{out}: 12 training and 6 validation photos of 3 classes, 80×80, 0.00 GB")
    assert rate.endswith("photos/s")
    assert following == f"next: {TRAIN} --data '{out}'"
    assert len(PhotoStore(out).train) == 12


def test_classes_without_a_training_photo_are_pointed_out(tmp_path, capsys):
    files = {f"p/n0000000{k}/x.png": photo(k) for k in range(10)}
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
        (["photos", "out.h5", "--val-share", "2"], "must be between 0 and 1"),
        (["photos", "out.h5", "--labels", "gone"], "leave out --labels"),
        (["photos", "out.h5", "--split", "half"], "leave out --split half"),
        (["photos/train", "out.h5"], "add --val-share 0.2"),
        (["text", "out.h5"], "is not a tar archive"),
        (["photos", "older.h5"], "exists already: give --force"),
        (["photos"], "no file to make is named: photos OUT.h5"),
        (["--check", "older.h5"], "older.h5"),
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


def test_a_file_is_compared_with_its_checksums(source, tmp_path, capsys):
    out = tmp_path / "out.h5"
    assert run(source, out) == 0
    capsys.readouterr()
    assert run("--check", out) == 0
    assert capsys.readouterr().out == f"{out}: all photos are as they were written\n"
    data, (first, _) = bytearray(out.read_bytes()), read_header(out).images("val")
    data[first + 1] ^= 1
    out.write_bytes(data)
    assert run("--check", out) == 2
    assert "images of 'val' are damaged (wrong checksum); copy it again" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_it_and_it_resumes(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAVE_PHOTOS", 4)

    class Bar(tqdm):
        def update(self, count=1):
            super().update(count)
            if self.desc == "decoding" and self.n == 10:
                signal.raise_signal(signal.SIGINT)

    # Started in the background by a shell, pytest ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_command, "tqdm", Bar)
        assert run(source, tmp_path / "out.h5") == 130
    assert capsys.readouterr().err.endswith("interrupted: the same command resumes\n")
    assert run(source, tmp_path / "out.h5") == 0
    printed = capsys.readouterr().out
    assert "resuming after 8 of 18 photos\n" in printed and "(8 were done before)" in printed


def test_small_squares_are_pointed_out_with_a_command_that_works(source, tmp_path, capsys):
    assert prepare_command.SMALLEST == SMALLEST_IMAGE
    out = tmp_path / "out.h5"
    assert run(source, out) == 0
    printed = capsys.readouterr().out
    assert "note: 8×8 is too small for AlexNet: prepare larger squares\n" in printed
    following = printed.splitlines()[-1].removeprefix("next: tinyconv ")
    assert main(shlex.split(following)) == 0
    assert capsys.readouterr().out.endswith(f"next: {TRAIN} --data {out}\n")
    assert PhotoStore(out).size == 73


def test_the_square_of_an_image_size(source, tmp_path, capsys):
    assert run(source, tmp_path / "out.h5", size=("--image-size", "96")) == 0
    assert PhotoStore(tmp_path / "out.h5").size == 110
    with pytest.raises(SystemExit) as end:
        run(source, tmp_path / "x.h5", "--image-size", "96")
    assert end.value.code == 2 and "not allowed with argument --size" in capsys.readouterr().err


def test_half_of_each_class_to_test(source, tmp_path, capsys):
    assert run(source / "train", tmp_path / "out.h5", "--split", "half", "--seed", 1) == 0
    assert "6 training and 6 validation photos of 3 classes" in capsys.readouterr().out
    store = PhotoStore(tmp_path / "out.h5")
    assert store.train.labels.tolist() == store.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert store.settings["split"] == "half" and store.settings["seed"] == 1


def test_a_file_to_evaluate_with(source, tmp_path, capsys):
    out = tmp_path / "out.h5"
    shutil.rmtree(source / "train")
    assert run(source, out) == 2
    assert "has no folder 'train' (folders: 'val' with" in capsys.readouterr().err
    assert run(source, out, "--only-val") == 0
    printed = capsys.readouterr().out
    assert "0 training and 6 validation photos of 3 classes" in printed
    assert printed.endswith(f"next: tinyconv evaluate RUN --data {out}\n")
    with pytest.raises(ValueError, match="has no training photos, only photos to evaluate with"):
        open_data(out, None)


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="needs /dev/stdin")
def test_a_tar_as_standard_input(source, tmp_path):
    command = [sys.executable, "-m", "tinyconv", "prepare", "/dev/stdin", tmp_path / "out.h5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    archive = put(tmp_path / "p.tar", tar_of(class_folders()))
    with archive.open("rb") as file:
        done = subprocess.run(command, stdin=file, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command[-1] = tmp_path / "other.h5"
    done = subprocess.run(command, input="x", env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "neither a folder nor an ordinary file" in done.stderr


def test_the_help_names_every_kind_of_source(capsys):
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for word in ("ILSVRC2012_img_train.tar", "cifar-10-binary.tar.gz", "--val-share 0.2",
                 "--split half", "--force"):  # fmt: skip
        assert word in printed
