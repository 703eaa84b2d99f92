"""Damaged files and files of other kinds: a StoreError that says what to do, and never nonsense."""

import os

import h5py
import numpy as np
import pytest
from stores import new_store, photo_sets, rows, write_store

from tinyconv.data import store_format as form
from tinyconv.data.store import PhotoStore
from tinyconv.data.store_format import HEAD, StoreError

SETS = photo_sets()


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "photos.h5", SETS, spare=1)


def refused(path, message):
    """Opening is a StoreError of one line that names the file; nothing stays open."""
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match=message) as caught:
        PhotoStore(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- damage


def test_bit_flips_are_noticed_or_harmless(path):
    """In every part of the file; HDF5 sees nothing of those that are noticed at opening."""
    whole = path.read_bytes()
    with PhotoStore(path) as store:
        head = store._head
    rng = np.random.default_rng(0)
    parts = [(0, 200), (0, HEAD), (HEAD, 9_000), (HEAD, len(whole)), (head.train.offset - 900, 0)]
    parts += [(stretch.offset, stretch.length) for stretch in (head.train, head.val)]
    outcomes = {"refused": 0, "found": 0, "unused": 0}
    for case in range(350):
        first, length = parts[case % len(parts)]
        place = int(rng.integers(first, first + (length or 900)))
        place = min(place, len(whole) - 1)
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        inside = [s for s in (head.train, head.val) if s.offset <= place < s.end]
        if not inside:
            refused(path, "copy it again|prepare it again|not a store|not complete")
            outcomes["refused"] += 1
            continue
        with PhotoStore(path) as store:
            photos, split = (store.train, "train") if inside == [head.train] else (store.val, "val")
            if place < inside[0].offset + len(photos) * 75:
                with pytest.raises(StoreError, match=f"images of '{split}' are damaged.*copy"):
                    store.verify()
                outcomes["found"] += 1
            else:  # a row that no photo has
                store.verify()
                np.testing.assert_array_equal(rows(photos, range(3)), SETS[split].images[:3])
                outcomes["unused"] += 1
    assert outcomes["refused"] > 200 and outcomes["found"] > 60 and outcomes["unused"] > 5


def test_files_cut_short_are_refused_wherever_they_end(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    ends = [0, 1, 17, 18, 19, 100, HEAD - 1, HEAD, HEAD + 8, len(whole) - 1]
    for end in [*ends, *rng.integers(0, len(whole), 150).tolist()]:
        path.write_bytes(whole[:end])
        refused(path, "copy it again" if end > 17 else "not a store|copy it again")
    path.write_bytes(whole[: len(whole) - 200])
    refused(path, rf"{len(whole) - 200:,} bytes, shorter than the {len(whole):,} .*copy it again")
    path.write_bytes(whole + b"\0")
    refused(path, "longer than")


def test_whole_blocks_of_nonsense_are_refused(path):
    """As a disk or a copy that broke off leaves them: zeros, or the bytes of something else."""
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    with PhotoStore(path) as store:
        end = store._head.train.offset
    for case in range(60):
        length = int(rng.integers(1, 5000))
        place = int(rng.integers(0, end - length))
        data = bytearray(whole)
        other = bytes(length) if case % 2 else rng.bytes(length)
        data[place : place + length] = other
        if data == whole:
            continue
        path.write_bytes(data)
        refused(path, "copy it again|not a store|not complete")


def test_hdf5_is_not_shown_damaged_bytes(path, monkeypatch):
    data = bytearray(path.read_bytes())
    data[HEAD + 40] ^= 1
    path.write_bytes(data)

    def never(*_, **__):
        raise AssertionError("HDF5 was called")

    monkeypatch.setattr("tinyconv.data.store.h5py.File", never)
    refused(path, "damaged: its digest does not fit; copy it again")


# --- files of other kinds


def test_what_is_no_store_is_explained(path, tmp_path):
    text, empty, other = (tmp_path / name for name in ("notes.txt", "empty", "weights.h5"))
    text.write_text("hello\n" * 1000)
    empty.touch()
    with h5py.File(other, "w") as file:
        file["weights"] = np.zeros(10)
    for file in (text, empty, other):
        refused(file, "not a store of photos; prepare makes one")
    refused(tmp_path / "absent.h5", "no such file")
    refused(tmp_path / ("a" * 300), "cannot be opened: File name too long")
    refused(tmp_path, "not a file")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    refused(tmp_path / "pipe", "not a file")


def test_a_newer_version_is_named(path):
    data = path.read_bytes().replace(b"tinyconv photos 1\n", b"tinyconv photos 12\n", 1)
    path.write_bytes(data)
    refused(path, "version 12, and this program reads version 1: prepare it again")


def test_an_unfinished_store_is_told_from_a_damaged_one(path):
    path.unlink()
    new_store(path, SETS).close()
    refused(path, "not complete; prepare it again, which goes on where it stopped")


def test_a_file_that_may_not_be_read_is_explained(path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tinyconv.data.store_format.FileIO", forbidden)
    refused(path, "cannot be opened: Permission denied")


def test_a_disk_that_fails_while_opening_is_explained(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        refused(path, "cannot be read: Input/output error")
    monkeypatch.setattr(os, "preadv", broken)
    refused(path, "cannot be read: Input/output error")


def test_a_disk_that_fails_later_is_an_oserror(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with PhotoStore(path, mapped=False) as store:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
            rows(store.train, [0])


def test_a_file_cut_short_while_it_is_open_is_an_error_and_not_the_end(path):
    with PhotoStore(path, mapped=False) as store:
        os.truncate(path, store._head.train.offset + 100)
        np.testing.assert_array_equal(rows(store.train, [0]), SETS["train"].images[:1])
        with pytest.raises(StoreError, match="cut short while open.*copy it again"):
            rows(store.train, [1])
        with pytest.raises(StoreError, match="cut short"):
            store.verify()


def sealed_again(path):
    """The digest of the file as it is now, as a program with a fault of its own would write it."""
    file, head = form.open_store(path, "r+")
    with file:
        file.write(head._replace(digest=form.digest(file, head)).block())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f["train/count"].write_direct(np.array(9)), "9 photos in 'train', with room fo"),
        (lambda f: f["val/count"].write_direct(np.array(0)), "0 photos in 'val'"),
        (lambda f: f["val/labels"].write_direct(np.array([0, 1, 3, 0])), "labels of 'val' run fr"),
        (lambda f: f["train/labels"].write_direct(np.full(8, -1)), "from -1 to -1, and there are"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_even_with_the_right_digest(path, change, message):
    with h5py.File(path, "r+") as file:
        change(file)
    sealed_again(path)
    refused(path, message)


def test_a_dataset_that_is_not_there_is_named(path, monkeypatch):
    layout = form.layout

    def more(size, room):
        return {"colour/contrast": ((3,), "<f8"), **layout(size, room)}

    monkeypatch.setattr(form, "layout", more)
    refused(path, "not as a store should be: .*contrast")

    def others(size, room):
        return {**layout(size, room), "mean_image": ((size, size, 3), "<f8")}

    monkeypatch.setattr(form, "layout", others)
    refused(path, r"mean_image is <f4 \(5, 5, 3\), expected")
