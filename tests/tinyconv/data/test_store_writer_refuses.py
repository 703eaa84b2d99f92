"""Writing a store: what does not fit is refused, and what the disk refuses is told."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from stores import new_store, photo_sets

from tinyconv.data.store_writer import StoreWriter

ROOT = Path(__file__).resolve().parents[3]
SETS = photo_sets()
LABELS = {split: photos.labels for split, photos in SETS.items()}
GOOD = {
    "size": 5,
    "room": {"train": 7, "val": 3},
    "class_ids": ["n1", "n2"],
    "class_names": ["one", "two"],
    "settings": {},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "photos.h5.part"


# --- refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 0}, "size of at least 1 pixel .* not size 0"),
        ({"room": {"train": 7, "val": 0}}, "at least one photo in each .*'val': 0"),
        ({"room": {"train": 7}}, "room"),
        ({"room": {"train": 7, "val": 1, "test": 1}}, "room"),
        ({"class_ids": [], "class_names": []}, "0 ids"),
        ({"class_ids": ["a", "a"]}, "2 ids, 1 of them different"),
        ({"class_names": ["a"]}, "1 names do not fit"),
        ({"class_names": ["a", "b\0"]}, "zero character"),
        ({"settings": {"a": "x" * 70_000}}, "settings: .* is the limit"),
    ],
)
def test_a_store_that_makes_no_sense_is_refused_and_no_file_made(path, change, message):
    with pytest.raises(ValueError, match=message):
        StoreWriter.create(path, **{**GOOD, **change})
    assert not path.exists()


def test_settings_up_to_the_limit_and_names_of_any_script_are_kept(path):
    names = ["", "Höckergans 雁 " + "long " * 50]
    settings = {"classes": "x" * 59_000, "nested": [1, {"é": None}]}
    with StoreWriter.create(path, **{**GOOD, "class_names": names, "settings": settings}) as writer:
        assert writer.class_names == tuple(names) and writer.settings == settings


def test_an_existing_file_is_left_alone(path):
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="photos.h5.part"):
        StoreWriter.create(path, **GOOD)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "split, first, images, message",
    [
        ("test", 0, np.zeros((1, 5, 5, 3), np.uint8), "1 rows from 0 .* 0 of 'test'"),
        ("train", 7, np.zeros((1, 5, 5, 3), np.uint8), "1 rows from 7 .* 7 of 'train'"),
        ("train", -1, np.zeros((1, 5, 5, 3), np.uint8), "from -1"),
        ("val", 0, np.zeros((4, 5, 5, 3), np.uint8), "4 rows from 0"),
        ("val", 0, np.zeros((1, 5, 5, 3)), "float64"),
        ("val", 0, np.zeros((1, 5, 4, 3), np.uint8), r"\(1, 5, 4, 3\)"),
        ("val", 0, np.zeros((5, 5, 3), np.uint8), r"\(5, 5, 3\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(path, split, first, images, message):
    with new_store(path, SETS) as writer:
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            writer.write_rows(split, first, images)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros(8, np.int64), r"count from 1 to 7, not int64 \(8,\)"),
        (np.zeros(0, np.int64), r"not int64 \(0,\)"),
        (np.zeros(7), "not float64"),
        (np.zeros((7, 1), np.int64), r"\(7, 1\)"),
        (np.full(7, 3), "from 3 to 3, and there are 3 classes"),
        (np.array([0, -1]), "from -1 to 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(path, labels, message):
    with new_store(path, SETS) as writer:
        with pytest.raises(ValueError, match=message):
            writer.finish({**LABELS, "train": labels})
        assert not writer.finished


# --- the disk


def test_a_full_disk_is_an_oserror_that_names_the_file(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = new_store(path, SETS)
    with monkeypatch.context() as patch, writer:
        patch.setattr("tinyconv.data.store_writer.os.pwrite", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*photos.h5.part'") as caught:
            writer.write_rows("train", 0, SETS["train"].images)
        assert caught.value.errno == errno.ENOSPC
        path.unlink()
        with pytest.raises(OSError, match="No space left") as caught:
            new_store(path, SETS)
        assert caught.value.filename == str(path) and not path.exists()
    monkeypatch.setattr(os, "fdatasync", full)
    with new_store(path, SETS) as writer, pytest.raises(OSError, match="photos.h5.part"):
        writer.flush()


def test_a_limit_on_the_length_of_files_is_told_in_one_line(path):
    """The system's limit, not a stand-in: HDF5 itself must not be the one to meet it."""
    program = f"""
        import resource, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}]
        from pathlib import Path
        from stores import new_store, photo_sets
        sets, path = photo_sets(size=99), Path({str(path)!r})
        for limit in 300, 1000, 140_000, 10_000_000:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, 10_000_000))
            try:
                new_store(path, sets).close()
            except OSError as error:
                print(error, path.exists())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    line = f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: {str(path)!r} False"
    assert done.stdout.splitlines() == [line] * 3
    assert path.exists()
