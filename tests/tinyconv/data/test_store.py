"""The prepared file: written in any order, read by a map, and refused if it is damaged."""

import gc
import gzip
import os
import re
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from photo_bytes import put
from stores import SETTINGS, new_store, photo_sets, rows, write_store

from tinyconv.data import PhotoSet
from tinyconv.data.statistics import Statistics
from tinyconv.data.store import HEADER, PhotoStore, StoreError, checksum, read_header
from tinyconv.data.store_writer import StoreWriter

SETS = photo_sets()
LABELS = {split: photos.labels for split, photos in SETS.items()}


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "photos.h5", SETS, spare=1)


def finish(writer, labels=LABELS, **progress):
    """Write all rows and what is computed from them."""
    for split, photos in SETS.items():
        writer.write_rows(split, 0, photos.images)
    writer.finish(labels, **progress)


# --- what is in it


def test_what_was_written_is_read(path):
    with PhotoStore(path) as store:
        assert (store.path, store.size, store.settings) == (path, 5, SETTINGS)
        assert store.class_ids == ("n00000000", "n00000001", "n00000002")
        assert store.class_names == ("class0", "class1", "class2")
        np.testing.assert_array_equal(store.mean_image, SETS["train"].mean_image())
        assert store.mean_image.dtype == np.float32
        for split, photos in SETS.items():
            stored = getattr(store, split)
            assert len(stored) == len(photos) and stored.size == photos.size == 5
            assert stored.labels.dtype == np.int64 and stored.class_names == photos.class_names
            np.testing.assert_array_equal(stored.labels, photos.labels)
            np.testing.assert_array_equal(rows(stored, range(len(photos))), photos.images)


def test_any_hdf5_reader_finds_everything_under_its_name(path):
    statistics = Statistics(5)
    statistics.add(SETS["train"].images)
    with h5py.File(path) as file:
        for split, photos in SETS.items():
            count = file[f"{split}/count"][()]
            assert count == len(photos) and file[f"{split}/images"].shape == (count + 1, 5, 5, 3)
            np.testing.assert_array_equal(file[f"{split}/images"][:count], photos.images)
            np.testing.assert_array_equal(file[f"{split}/labels"][:count], photos.labels)
            assert file[f"{split}/images_sha256"].shape == (32,)
        assert [name.decode() for name in file["class_ids"]] == [f"n0000000{i}" for i in range(3)]
        assert file["class_names"].asstr()[1] == "class1"
        np.testing.assert_array_equal(file["mean_image"], statistics.mean_image())
        for name in ("covariance", "eigenvalues", "eigenvectors"):
            np.testing.assert_array_equal(file[f"colour/{name}"], getattr(statistics, name))


def test_a_file_of_the_first_release_is_read(tmp_path):
    """version_1.h5.gz: SETS with one spare row, as the first writer made it."""
    path = tmp_path / "old.h5"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "version_1.h5.gz").read_bytes()))
    with PhotoStore(path) as store:
        assert store.settings == SETTINGS and store.class_names[2] == "class2"
        for split, photos in SETS.items():
            assert getattr(store, split).fingerprint() == photos.fingerprint()
        np.testing.assert_array_equal(store.mean_image, SETS["train"].mean_image())


def test_the_header_and_the_order_of_the_parts(path):
    lines = path.read_bytes()[:HEADER].rstrip(b"\0").decode().splitlines()
    (train, train_length), (val, val_length) = (map(int, line.split()[1:]) for line in lines[2:4])
    assert lines[0] == "tinyconv photos 1" and lines[1] == f"bytes {path.stat().st_size}"
    assert lines[4].startswith("sha256 ") and len(lines) == 5
    assert (train_length, val_length) == (8 * 75, 4 * 75)
    assert train + train_length <= val and val + val_length == path.stat().st_size


def test_names_of_any_script_are_kept(tmp_path):
    names, settings = ("", "Höckergans 雁 " + "long " * 50), {"nested": [1, {"é": None}]}
    with StoreWriter(
        tmp_path / "x.h5", size=5, rows={"train": 7, "val": 3}, class_ids=["a", "ä"],
        class_names=names, settings=settings,
    ) as writer:  # fmt: skip
        finish(writer, {split: labels % 2 for split, labels in LABELS.items()})
    with PhotoStore(tmp_path / "x.h5") as store:
        assert store.class_names == names and store.class_ids == ("a", "ä")
        assert store.settings == settings


# --- reading


@pytest.fixture(params=["memory", "file"])
def photos(request, path):
    if request.param == "memory":
        yield SETS["train"]
    else:
        with PhotoStore(path) as store:
            yield store.train


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
@pytest.mark.parametrize("ids", [[3], [6, 0, 6, 2], [], range(7)])
def test_rows_are_copied_in_any_order_and_no_others_touched(photos, ids, dtype):
    ids = np.array(list(ids), dtype)
    out = np.full((9, 5, 5, 3), 77, np.uint8)
    photos.copy_rows(ids, out)
    np.testing.assert_array_equal(out[: len(ids)], SETS["train"].images[ids])
    assert (out[len(ids) :] == 77).all()


@pytest.mark.parametrize("ids", [[7], [0, -1], [2**40], [-(2**63)]])
def test_ids_out_of_range_are_an_index_error_and_nothing_is_copied(photos, ids):
    out = np.full((3, 5, 5, 3), 77, np.uint8)
    with pytest.raises(IndexError, match="there are 7 photos"):
        photos.copy_rows(np.array(ids, np.int64), out)
    assert (out == 77).all()


@pytest.mark.parametrize(
    "ids, out",
    [
        (np.array([0.0]), np.empty((1, 5, 5, 3), np.uint8)),
        (np.array([[0]]), np.empty((1, 5, 5, 3), np.uint8)),
        (np.array([True]), np.empty((1, 5, 5, 3), np.uint8)),
        (np.array([0, 1]), np.empty((1, 5, 5, 3), np.uint8)),
        (np.array([0]), np.empty((1, 5, 5, 3), np.int8)),
        (np.array([0]), np.empty((1, 5, 4, 3), np.uint8)),
        (np.array([0]), np.empty((2, 5, 5, 6), np.uint8)[..., ::2]),
    ],
)
def test_ids_and_arrays_that_do_not_fit_are_refused(photos, ids, out):
    with pytest.raises(ValueError, match="must be"):
        photos.copy_rows(ids, out)


def test_photos_have_the_same_fingerprint_in_memory_and_in_a_file(photos):
    assert re.fullmatch("[0-9a-f]{64}", photos.fingerprint())
    assert photos.fingerprint() == SETS["train"].fingerprint()


def test_every_difference_changes_the_fingerprint():
    images, labels, names = SETS["train"].images, SETS["train"].labels, SETS["train"].class_names
    other_images, other_labels = images.copy(), labels.copy()
    other_images[6, 4, 4, 2] ^= 1
    other_labels[6] = 1 - other_labels[6]
    sets = (
        (images, labels, names),
        (other_images, labels, names),
        (images, other_labels, names),
        (images, labels, ("class0", "class1", "other")),
        (images, labels, (*names, "one more")),
        (images[:6], labels[:6], names),
        (images[::-1], labels, names),
    )
    assert len({PhotoSet(*parts).fingerprint() for parts in sets}) == 7
    sideways = np.asfortranarray(images)
    assert PhotoSet(sideways, labels, names).fingerprint() == SETS["train"].fingerprint()


def test_a_closed_file_leaves_nothing_open_and_says_that_it_is_closed(path):
    before = len(os.listdir("/proc/self/fd"))
    store = PhotoStore(path)
    images = store.train.images
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    store.close()
    store.close()
    np.testing.assert_array_equal(images, SETS["train"].images)  # a thread may still use it
    del images
    assert len(os.listdir("/proc/self/fd")) == before
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert len(store.train) == 7 and store.train.size == 5
    with pytest.raises(ValueError, match="closed; open it again"):
        rows(store.train, [0])


def test_two_may_read_a_file_at_once_and_it_may_be_write_protected(path):
    path.chmod(0o444)
    with PhotoStore(path) as one, PhotoStore(str(path)) as two, h5py.File(path):
        np.testing.assert_array_equal(rows(one.val, [2]), rows(two.val, [2]))


def test_a_large_file_takes_no_memory_and_only_the_disk_of_what_was_written(tmp_path):
    path = tmp_path / "large.h5"
    sets = photo_sets(train=2, val=1, size=256)
    write_store(path, sets, spare=1_281_167)
    assert path.stat().st_size > 1_281_167 * 256 * 256 * 3
    # Three photos, and twice a label for every row.
    assert path.stat().st_blocks * 512 < 2**20 + 2 * 8 * 1_281_170 + 3 * 256 * 256 * 3
    assert [each.name for each in tmp_path.iterdir()] == ["large.h5"]
    with PhotoStore(path) as store:
        np.testing.assert_array_equal(rows(store.val, [0]), sets["val"].images)


# --- writing


def test_the_same_photos_give_the_same_bytes_whatever_the_order_of_writing(path, tmp_path):
    other = tmp_path / "other.h5"
    with new_store(other, SETS, spare=1) as writer:
        for split in ("val", "train"):
            for i in reversed(range(len(SETS[split]))):
                writer.write_rows(split, i, SETS[split].images[i : i + 1])
        writer.write_rows("train", 8, SETS["train"].images[:0])  # nothing, at the very end
        writer.write_rows("train", 0, np.asfortranarray(SETS["train"].images))
        writer.finish(LABELS)
    assert other.read_bytes() == path.read_bytes()


def test_rows_beyond_the_labels_are_unused(path):
    """An unreadable photo: those after it moved up."""
    with new_store(path, SETS, spare=1) as writer:
        writer.write_rows("train", 7, SETS["train"].images[:1])
        with pytest.raises(StoreError, match="not complete; run prepare again, which resumes"):
            PhotoStore(path)
        writer.finish(LABELS)
    with PhotoStore(path) as store:
        assert (len(store.train), len(store.val)) == (7, 3)
        assert store.train.fingerprint() == SETS["train"].fingerprint()


def test_progress_is_told_of_every_block(path, monkeypatch):
    monkeypatch.setattr("tinyconv.data.store_writer.BLOCK", 2 * 75)
    seen = []

    def progress(blocks, total):
        for block in blocks:
            seen.append(total)
            yield block

    with new_store(path, SETS) as writer:
        finish(writer, progress=progress)
    assert seen == [6] * 6  # 4 of train, 2 of val
    with PhotoStore(path) as store:
        assert store.train.fingerprint() == SETS["train"].fingerprint()


def test_killed_at_any_write_the_file_is_incomplete_and_can_be_finished(path, monkeypatch):
    whole, write = path.read_bytes(), StoreWriter._write

    class Killed(BaseException):
        pass

    for last in range(100):
        left = last

        def some(writer, offset, content):
            nonlocal left
            left -= 1
            write(writer, offset, content if left >= 0 else content[: len(content) // 2])
            if left < 0:
                raise Killed

        path.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "_write", some)
            try:
                with new_store(path, SETS, spare=1) as writer:
                    finish(writer)
                break
            except Killed:
                pass
        if path.read_bytes() != whole:  # else the last write lacked only zeros
            with pytest.raises(StoreError, match="not complete"):
                PhotoStore(path)
        with new_store(path, SETS, spare=1) as writer:
            if last < 3:
                finish(writer)
            else:  # the rows are still there
                writer.finish(LABELS)
        assert path.read_bytes() == whole
    assert 10 < last < 99


# --- damage


def refused(path, message):
    """Opening is a StoreError of one line that names the file; nothing stays open."""
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match=message) as caught:
        PhotoStore(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    del caught  # and with it the frames that hold the file
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.full
def test_corruption_is_noticed_or_harmless(path):
    """Single bits in every part of the file, and blocks of zeros or nonsense."""
    whole, header, rng = path.read_bytes(), read_header(path), np.random.default_rng(0)
    parts = [(0, 200), (0, HEADER), (HEADER, 9_000), (HEADER, len(whole) - HEADER)]
    parts += [(header.train[0] - 900, 900), header.train, header.val]
    checked = np.ones(len(whole), bool)  # at opening; the others are pixels
    for first, length in (header.train, header.val):
        checked[first : first + length] = False
    outcomes = Counter()
    for case in range(400):
        first, length = parts[case % len(parts)]
        place = int(rng.integers(first, first + length))
        size = int(rng.integers(2, 5000)) if case % 5 == 0 else 1
        other = bytes(size) if case % 2 else rng.bytes(size)
        if size == 1:
            other = bytes([whole[place] ^ 1 << int(rng.integers(0, 8))])
        data = (whole[:place] + other + whole[place + size :])[: len(whole)]
        changed = np.frombuffer(data, np.uint8) != np.frombuffer(whole, np.uint8)
        path.write_bytes(data)
        noticed = bool(checked[changed].any())
        outcomes[noticed] += 1
        if noticed:
            refused(path, "copy it again|prepare the file again|not a file of prep|not complete")
            continue
        with PhotoStore(path) as store:
            assert store.class_names == SETS["train"].class_names
            assert len(rows(store.train, range(7))) == 7
    assert outcomes[True] > 200 and outcomes[False] > 60


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_photo_is_found_on_demand(path, split):
    with PhotoStore(path) as store:
        store.verify()
    data, (first, _) = bytearray(path.read_bytes()), read_header(path).images(split)
    data[first + 100] ^= 1
    path.write_bytes(data)
    with (
        PhotoStore(path) as store,
        pytest.raises(StoreError, match=rf"images of '{split}' are damaged .*; copy it again"),
    ):
        store.verify()


def test_hdf5_does_not_see_damaged_bytes(path, monkeypatch):
    data = bytearray(path.read_bytes())
    data[HEADER + 40] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr("tinyconv.data.store.h5py.File", None)
    refused(path, r"damaged \(wrong checksum\); copy it again")


@pytest.mark.full
def test_truncated_files_are_refused_wherever_they_end(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    ends = [0, 1, 17, 18, 19, 100, HEADER - 1, HEADER, HEADER + 8, len(whole) - 1]
    for end in [*ends, *rng.integers(0, len(whole), 50).tolist()]:
        path.write_bytes(whole[:end])
        refused(path, "copy it again" if end > 17 else "not a file of prepared|copy it again")
    path.write_bytes(whole[: len(whole) - 200])
    refused(path, rf"{len(whole) - 200:,} bytes, not the original {len(whole):,}; copy it again")
    path.write_bytes(whole + b"\0")
    refused(path, "not the original")


def test_other_files_are_explained(path, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["weights"] = np.zeros(10)
    put(tmp_path / "notes.txt", b"hello\n" * 1000)
    put(tmp_path / "empty", b"")
    for name in ("notes.txt", "empty", "weights.h5"):
        refused(tmp_path / name, "not a file of prepared photos; make one with prepare")
    refused(tmp_path / "gone.h5", "no such file")
    refused(tmp_path / ("a" * 300), "cannot be read: File name too long")
    refused(tmp_path, "not a file")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    refused(tmp_path / "pipe", "not a file")
    put(path, path.read_bytes().replace(b"tinyconv photos 1\n", b"tinyconv photos 12\n", 1))
    refused(path, "version 12 of the format, and this program reads version 1: prepare the file ag")


@pytest.mark.parametrize(
    "error, message",
    [(PermissionError(13, "Permission denied"), "denied"), (OSError(5, "I/O"), "I/")],
)
def test_a_disk_that_fails_is_explained(path, monkeypatch, error, message):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("tinyconv.data.store.np.fromfile", broken)
    refused(path, f"cannot be read: .*{message}")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f["train/count"].write_direct(np.array(9)), "9 photos in 'train'"),
        (lambda f: f["val/count"].write_direct(np.array(0)), "0 photos in 'val'"),
        (lambda f: f["val/labels"].write_direct(np.array([0, 1, 3, 0])), "labels run from 0 to 3"),
        (lambda f: f.pop("mean_image"), "mean_image"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_even_with_the_right_checksum(path, change, message):
    """As a program with a fault of its own would write them."""
    with h5py.File(path, "r+") as file:
        change(file)
    header = read_header(path)
    with open(path, "r+b") as file:
        file.write(header._replace(checksum=checksum(path, header)).block())
    refused(path, f"{message}.*prepare it again")
