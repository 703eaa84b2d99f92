"""Sealed files: whole or not at all, the same bytes, and no damaged byte reaches HDF5."""

import os

import h5py
import numpy as np
import pytest
from damage import damaged

from tinyconv.run.sealed import (
    SealError,
    open_sealed,
    read_json,
    replace_file,
    write_json,
    write_sealed,
)

NUMBERS = np.arange(1000, dtype=np.float32)


def fill(file):
    file.create_group("a").create_dataset("numbers", data=NUMBERS)
    write_json(file, "words", {"é": [1, 2.5, None], "long": "x" * 100_000})


@pytest.fixture
def path(tmp_path):
    write_sealed(tmp_path / "file.h5", "thing 3", fill)
    return tmp_path / "file.h5"


def test_what_was_written_is_read(path):
    with open_sealed(path, "thing 3") as file:
        np.testing.assert_array_equal(file["a/numbers"], NUMBERS)
        assert read_json(file, "words") == {"é": [1, 2.5, None], "long": "x" * 100_000}


def test_it_is_ordinary_hdf5_with_a_readable_first_line(path):
    assert path.read_bytes().startswith(b"tinyconv thing 3\nsha256 ")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["a/numbers"], NUMBERS)


def test_equal_contents_are_equal_bytes(path, tmp_path):
    write_sealed(tmp_path / "again.h5", "thing 3", fill)
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_every_flipped_bit_and_every_cut_is_noticed(path):
    whole = path.read_bytes()
    for data in damaged(whole, 400):
        path.write_bytes(data)
        with pytest.raises(SealError, match=r"damaged|not a tinyconv thing"):
            open_sealed(path, "thing 3")
    path.write_bytes(whole + b"\0")
    with pytest.raises(SealError, match="damaged"):
        open_sealed(path, "thing 3")


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("file.h5", "thing 4", "not a tinyconv thing of version 4"),
        ("file.h5", "other 3", "is not a tinyconv other"),
        ("text", "thing 3", "is not a tinyconv thing"),
        ("empty", "thing 3", "is not a tinyconv thing"),
        ("absent", "thing 3", "No such file"),
        (".", "thing 3", "Is a directory"),
    ],
)
def test_other_files_are_explained(path, tmp_path, name, kind, message):
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(SealError, match=message) as caught:
        open_sealed(tmp_path / name, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(path, monkeypatch, call):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"tinyconv.run.sealed.os.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        write_sealed(path, "thing 3", lambda file: file.create_dataset("x", data=1))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_replace_file_writes_the_bytes(tmp_path):
    replace_file(tmp_path / "x", b"one")
    replace_file(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two" and os.listdir(tmp_path) == ["x"]
