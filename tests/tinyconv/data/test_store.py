"""Reading a store: what was written, by a memory map or without, in any order."""

import os
import re
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import SETTINGS, photo_sets, rows, write_store

from tinyconv.data import PhotoSet
from tinyconv.data.store import PhotoStore

SETS = photo_sets()


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "photos.h5", SETS, spare=1)


# --- what is in it


def test_what_was_written_is_read(path):
    with PhotoStore(path) as store:
        assert (store.path, store.size, store.settings) == (path, 5, SETTINGS)
        assert store.class_ids == ("n00000000", "n00000001", "n00000002")
        assert store.class_names == ("class0", "class1", "class2")
        np.testing.assert_array_equal(store.mean_image, SETS["train"].mean_image())
        assert store.mean_image.dtype == np.float32
        pixels = SETS["train"].images.reshape(-1, 3).astype(float)
        np.testing.assert_allclose(store.covariance, np.cov(pixels.T, bias=True), rtol=1e-12)
        restored = store.eigenvectors @ np.diag(store.eigenvalues) @ store.eigenvectors.T
        np.testing.assert_allclose(restored, store.covariance, rtol=1e-10, atol=1e-9)
        assert store.eigenvalues[0] >= store.eigenvalues[1] >= store.eigenvalues[2] >= 0
        for split, photos in SETS.items():
            stored = getattr(store, split)
            assert len(stored) == len(photos) and stored.size == photos.size == 5
            assert stored.labels.dtype == np.int64 and stored.class_names == photos.class_names
            np.testing.assert_array_equal(stored.labels, photos.labels)
            np.testing.assert_array_equal(rows(stored, range(len(photos))), photos.images)
            np.testing.assert_array_equal(stored.mean_image(), store.mean_image)
        store.verify()


def test_opening_leaves_nothing_open_but_the_file_and_closing_nothing(path):
    before = len(os.listdir("/proc/self/fd"))
    store = PhotoStore(path)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # the file, and the map's of it
    store.close()
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match=f"{path}: the store is closed; open it again"):
        rows(store.train, [0])


def test_two_may_read_a_store_at_once_and_it_may_be_write_protected(path):
    path.chmod(0o444)
    with PhotoStore(path) as one, PhotoStore(str(path)) as two, h5py.File(path):
        np.testing.assert_array_equal(rows(one.val, [2]), rows(two.val, [2]))


# --- rows, in memory and in a file


@pytest.fixture(params=["memory", "mapped", "read"])
def photos(request, path):
    if request.param == "memory":
        yield SETS["train"]
    else:
        with PhotoStore(path, mapped=request.param == "mapped") as store:
            assert (store.train.mapped is None) == (request.param == "read")
            yield store.train


@pytest.mark.parametrize("ids", [[3], [6, 0, 6, 2], [], range(7)])
def test_rows_are_copied_in_any_order_and_no_others_touched(photos, ids):
    ids = np.array(list(ids), np.int64)
    out = np.full((9, 5, 5, 3), 77, np.uint8)
    photos.copy_rows(ids, out)
    np.testing.assert_array_equal(out[: len(ids)], SETS["train"].images[ids])
    assert (out[len(ids) :] == 77).all()


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.uint64])
def test_ids_are_integers_of_any_kind(photos, dtype):
    out = np.empty((2, 5, 5, 3), np.uint8)
    photos.copy_rows(np.array([5, 1], dtype), out)
    np.testing.assert_array_equal(out, SETS["train"].images[[5, 1]])


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
    prints = {
        PhotoSet(*parts).fingerprint()
        for parts in (
            (images, labels, names),
            (other_images, labels, names),
            (images, other_labels, names),
            (images, labels, ("class0", "class1", "other")),
            (images, labels, (*names, "one more")),
            (images[:6], labels[:6], names),
            (images[::-1], labels, names),
        )
    }
    assert len(prints) == 7
    sideways = np.asfortranarray(images)
    assert PhotoSet(sideways, labels, names).fingerprint() == SETS["train"].fingerprint()


def test_where_no_memory_map_can_be_had_rows_are_read(path, monkeypatch):
    def refused(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr("tinyconv.data.store.mmap.mmap", refused)
    with PhotoStore(path) as store:
        assert store.train.mapped is None
        np.testing.assert_array_equal(rows(store.train, range(7)), SETS["train"].images)
        np.testing.assert_array_equal(rows(store.val, [1]), SETS["val"].images[1:2])


def test_a_map_cannot_be_written_and_outlives_the_store_where_it_is_in_use(path):
    store = PhotoStore(path)
    mapped = store.train.mapped
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    store.close()
    np.testing.assert_array_equal(mapped[:7], SETS["train"].images)
    with pytest.raises(ValueError, match="closed"):
        rows(store.train, [0])


def test_a_store_needs_no_memory_for_its_images(tmp_path):
    """A store of 3 GB, nearly all a hole, opened where 1 GB more cannot be had."""
    path = tmp_path / "large.h5"
    sets = photo_sets(train=2, val=1, size=256)
    write_store(path, sets, spare=8_000)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        with PhotoStore(path) as store:
            assert store.val.mapped is None  # addresses are limited too
            np.testing.assert_array_equal(rows(store.val, [0]), sets["val"].images)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
