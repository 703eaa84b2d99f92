"""Writing a store: rows in any order, a kill at any moment."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import SETTINGS, new_store, photo_sets, rows, write_store

from tinyconv.data.statistics import Statistics
from tinyconv.data.store import PhotoStore
from tinyconv.data.store_format import HEAD, StoreError
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


def fill(writer):
    for split, photos in SETS.items():
        writer.write_rows(split, 0, photos.images)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "photos.h5.part"


# --- what comes out


def test_any_hdf5_reader_finds_everything_under_its_name(path):
    write_store(path, SETS, spare=2)
    statistics = Statistics(5)
    statistics.add(SETS["train"].images)
    with h5py.File(path) as file:
        for split, photos in SETS.items():
            count = file[f"{split}/count"][()]
            assert count == len(photos) and file[f"{split}/images"].shape == (count + 2, 5, 5, 3)
            np.testing.assert_array_equal(file[f"{split}/images"][:count], photos.images)
            np.testing.assert_array_equal(file[f"{split}/labels"][:count], photos.labels)
            assert file[f"{split}/images_sha256"].shape == (32,)
        assert [name.decode() for name in file["class_ids"]] == [f"n0000000{i}" for i in range(3)]
        assert file["class_names"].asstr()[1] == "class1"
        np.testing.assert_array_equal(file["mean_image"], statistics.mean_image())
        np.testing.assert_array_equal(file["colour/covariance"], statistics.covariance)
        np.testing.assert_array_equal(file["colour/eigenvalues"], statistics.eigenvalues)
        np.testing.assert_array_equal(file["colour/eigenvectors"], statistics.eigenvectors)


def test_the_same_photos_give_the_same_bytes_whatever_the_order_of_writing(path, tmp_path):
    write_store(path, SETS)
    other = tmp_path / "other.h5"
    with new_store(other, SETS) as writer:
        for split in ("val", "train"):
            for i in reversed(range(len(SETS[split]))):
                writer.write_rows(split, i, SETS[split].images[i : i + 1])
        writer.write_rows("train", 7, SETS["train"].images[:0])  # nothing, at the very end
        writer.finish(LABELS)
    assert other.read_bytes() == path.read_bytes()


def test_images_need_not_lie_row_by_row_in_memory(path):
    images = SETS["train"].images
    with new_store(path, SETS) as writer:
        writer.write_rows("train", 0, np.asfortranarray(images))
        writer.write_rows("val", 0, SETS["val"].images[::-1])
        writer.finish(LABELS)
    with PhotoStore(path) as store:
        np.testing.assert_array_equal(rows(store.train, range(7)), images)
        np.testing.assert_array_equal(rows(store.val, [2, 1, 0]), SETS["val"].images)


def test_rows_beyond_the_labels_are_unused_room(path):
    """Three photos turned out to be damaged: those after them moved up."""
    with new_store(path, SETS, spare=3) as writer:
        fill(writer)
        writer.write_rows("train", 7, SETS["train"].images[:3])
        writer.finish(LABELS)
    with PhotoStore(path) as store:
        assert (len(store.train), len(store.val)) == (7, 3)
        assert store.train.fingerprint() == SETS["train"].fingerprint()
        np.testing.assert_array_equal(store.mean_image, SETS["train"].mean_image())
        store.verify()


def test_a_large_store_takes_its_length_but_not_the_disk(path):
    room = {"train": 1_281_167, "val": 50_000}
    with StoreWriter.create(path, **{**GOOD, "size": 256, "room": room}) as writer:
        writer.write_rows("val", 49_999, np.full((1, 256, 256, 3), 3, np.uint8))
        assert (writer.size, writer.room) == (256, room)
    status = path.stat()
    assert status.st_size > 1_331_167 * 256 * 256 * 3
    assert status.st_blocks * 512 < 2**20
    with h5py.File(path) as file:
        assert file["val/images"][49_999, 7, 9, 1] == 3 and not file["val/images"][49_998].any()


def test_images_come_last_and_small_things_together(path):
    write_store(path, SETS)
    lines = path.read_bytes()[:HEAD].rstrip(b"\0").decode().splitlines()
    (train, train_length), (val, val_length) = (map(int, line.split()[1:]) for line in lines[2:4])
    assert lines[0] == "tinyconv photos 1" and lines[1] == f"bytes {path.stat().st_size}"
    assert lines[4].startswith("sha256 ") and len(lines) == 5
    assert (train_length, val_length) == (7 * 75, 3 * 75)
    assert train + train_length <= val and val + val_length == path.stat().st_size


def test_progress_is_told_of_every_block(path, monkeypatch):
    monkeypatch.setattr("tinyconv.data.store_format.BLOCK", 2 * 75)
    seen = []

    def progress(blocks, total):
        for block in blocks:
            seen.append(total)
            yield block

    with new_store(path, SETS) as writer:
        fill(writer)
        writer.finish(LABELS, progress)
    assert seen == [6] * 6  # 4 of train, 2 of val
    with PhotoStore(path) as store:
        assert store.train.fingerprint() == SETS["train"].fingerprint()
        store.verify(progress)
    assert len(seen) == 12


# --- interrupted


def test_an_interrupted_store_goes_on_where_it_was(path):
    with new_store(path, SETS) as writer:
        writer.write_rows("train", 0, SETS["train"].images[:4])
        writer.flush()
    with StoreWriter.reopen(path) as writer:
        assert not writer.finished
        assert (writer.size, writer.room) == (5, {"train": 7, "val": 3})
        assert (writer.class_ids[2], writer.class_names[2]) == ("n00000002", "class2")
        assert writer.settings == SETTINGS
        writer.write_rows("train", 4, SETS["train"].images[4:])
        writer.write_rows("val", 0, SETS["val"].images)
        writer.finish(LABELS)
        assert writer.finished
    with PhotoStore(path) as store:
        store.verify()
        assert store.train.fingerprint() == SETS["train"].fingerprint()


def test_killed_at_any_write_the_store_is_not_complete_and_can_be_finished(path, monkeypatch):
    whole = write_store(path.with_name("whole.h5"), SETS).read_bytes()
    write = os.pwrite

    class Killed(BaseException):
        pass

    for last in range(100):
        left = [last]

        def some(descriptor, data, offset, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return write(descriptor, data[: 1 + len(data) // 2], offset)  # and short writes

        path.unlink(missing_ok=True)
        writer = new_store(path, SETS)
        with monkeypatch.context() as patch, writer:
            patch.setattr("tinyconv.data.store_writer.os.pwrite", some)
            try:
                fill(writer)
                writer.finish(LABELS)
            except Killed:
                pass
            else:
                break
        if path.read_bytes() != whole:  # all that the last write had left were zeros
            with pytest.raises(StoreError, match="not complete; prepare it again"):
                PhotoStore(path)
        with StoreWriter.reopen(path) as writer:
            fill(writer)
            writer.finish(LABELS)
        assert path.read_bytes() == whole
    assert 30 < last < 99 and path.read_bytes() == whole


def test_killed_for_good_in_the_middle_of_writing(path, tmp_path):
    program = f"""
        import os, signal, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}]
        from pathlib import Path
        from stores import new_store, photo_sets
        sets = photo_sets()
        writer = new_store(Path({str(path)!r}), sets)
        writer.write_rows("train", 0, sets["train"].images)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=120)
    assert done.returncode < 0
    with StoreWriter.reopen(path) as writer:
        writer.write_rows("val", 0, SETS["val"].images)
        writer.finish(LABELS)
    with PhotoStore(path) as store:
        assert store.train.fingerprint() == SETS["train"].fingerprint()


def test_writing_into_a_finished_store_makes_it_unfinished_until_the_next_finish(path):
    write_store(path, SETS)
    with StoreWriter.reopen(path) as writer:
        assert writer.finished
        writer.write_rows("val", 0, SETS["val"].images[::-1])
        assert not writer.finished
        with pytest.raises(StoreError, match="not complete"):
            PhotoStore(path)
        writer.finish(LABELS)
    with PhotoStore(path) as store:
        store.verify()
        np.testing.assert_array_equal(rows(store.val, [0]), SETS["val"].images[2:])


def test_what_is_no_store_cannot_be_gone_on_with(path, tmp_path):
    text = tmp_path / "text"
    text.write_text("tinyconv")
    with h5py.File(tmp_path / "other.h5", "w", userblock_size=512) as file:
        file["x"] = 1
    for other in (text, tmp_path / "other.h5", tmp_path / "absent", tmp_path):
        with pytest.raises(StoreError, match=f"{other}: "):
            StoreWriter.reopen(other)
    new_store(path, SETS).close()
    data = bytearray(path.read_bytes())
    data[HEAD : HEAD + 8] = b"damaged!"
    path.write_bytes(data)
    with pytest.raises(StoreError, match="cannot be gone on with .*begin again") as caught:
        StoreWriter.reopen(path)
    assert "\n" not in str(caught.value)
