"""Batches: in an order that only the seed decides, ahead of need, and never silently wrong."""

import itertools
import threading
import tracemalloc

import numpy as np
import pytest
from fake_gpus import Gpus
from loading import (
    PHOTOS,
    WatchedPhotos,
    assert_equal,
    kept,
    no_thread_is_left,
    ordered_batches,
    shuffled_batches,
)
from small import random_photos
from stores import write_store

from tinyconv.data.loader import Loader, batches_per_epoch
from tinyconv.data.store import PhotoStore

__all__ = ["no_thread_is_left"]  # a fixture: it runs around every test that can see it


@pytest.fixture(params=["memory", "mapped"])
def photos(request, tmp_path):
    if request.param == "memory":
        yield PHOTOS
    else:
        sets = {"train": PHOTOS, "val": random_photos(2, size=4)}
        path = write_store(tmp_path / "photos.h5", sets)
        with PhotoStore(path) as store:
            yield store.train


# --- the order


def ids(seed, epoch, batch_size=6):
    with Loader(PHOTOS, batch_size, seed=seed) as loader:
        return np.concatenate([batch.ids.copy() for batch in loader.epoch(epoch)])


def test_an_epoch_has_each_image_at_most_once_and_leaves_out_less_than_a_batch():
    drawn = ids(0, 1)
    assert len(drawn) == len(set(drawn)) == 18 and batches_per_epoch(20, 6) == 3
    assert Loader(PHOTOS, 6).batches_per_epoch == 3


def test_seed_and_epoch_decide_the_order_and_classes_are_mixed():
    assert (ids(0, 1) == ids(0, 1)).all()
    assert (ids(0, 1) != ids(0, 2)).any() and (ids(0, 1) != ids(1, 1)).any()
    assert sorted(ids(3, 1, 20)) == list(range(20))
    # What is left out changes, so that after a few epochs every image has had its turn.
    assert len(set(np.concatenate([ids(0, epoch) for epoch in range(5)]))) == 20


def test_the_order_is_the_one_that_it_always_was():
    """Results of earlier versions can be had again only if the order stays the same."""
    assert ids(3, 2).tolist() == [
        *(14, 17, 8, 0, 9, 10),
        *(19, 16, 1, 2, 5, 4),
        *(11, 15, 12, 13, 7, 6),
    ]


@pytest.mark.parametrize("ahead, threads", [(1, 1), (1, 3), (2, 2), (3, None), (7, 4)])
def test_batches_do_not_depend_on_threads_or_on_reading_ahead(photos, ahead, threads):
    with Loader(photos, 3, seed=5, ahead=ahead, threads=threads) as loader:
        for epoch in (1, 2):
            assert_equal(kept(loader.epoch(epoch)), shuffled_batches(PHOTOS, 3, 5, epoch))


def test_a_set_smaller_than_a_batch_is_one_batch():
    with Loader(PHOTOS, 64) as loader:
        ((images, _, which),) = loader.epoch(0)
        assert len(images) == len(which) == 20 and loader.batches_per_epoch == 1


def test_ordered_batches_give_every_photo_in_order(photos):
    with Loader(photos, 6) as loader:
        for _ in range(2):
            images, labels, which = zip(*kept(loader.ordered()), strict=True)
            assert [len(part) for part in images] == [6, 6, 6, 2]
            np.testing.assert_array_equal(np.concatenate(images), PHOTOS.images)
            np.testing.assert_array_equal(np.concatenate(labels), PHOTOS.labels)
            np.testing.assert_array_equal(np.concatenate(which), np.arange(20))
    assert_equal(zip(images, labels, strict=True), ordered_batches(PHOTOS, 6))


@pytest.mark.parametrize("first", range(7))
def test_a_run_that_goes_on_gets_the_batches_it_would_have_had(first):
    with Loader(PHOTOS, 3, seed=1) as loader:
        assert_equal(kept(loader.epoch(4, first)), kept(loader.epoch(4))[first:])


# --- the buffers


def test_a_batch_is_valid_until_the_next_but_one_is_asked_for():
    expected = list(shuffled_batches(PHOTOS, 2, 0, 1)) + list(shuffled_batches(PHOTOS, 2, 0, 2))
    with Loader(PHOTOS, 2, ahead=2) as loader:
        # Also from the last batch of an epoch to the first of the next.
        batches = itertools.chain(loader.epoch(1), loader.epoch(2))
        last = next(batches)
        for k, batch in enumerate(batches, 1):
            np.testing.assert_array_equal(last.images, expected[k - 1][0])
            np.testing.assert_array_equal(batch.images, expected[k][0])
            last = batch
        assert k == 19


def test_buffers_are_used_again_and_no_batch_allocates_another(photos):
    with Loader(photos, 5, ahead=2) as loader:
        places = [batch.images.ctypes.data for e in range(5) for batch in loader.epoch(e)]
    assert len(places) == 20 and len(set(places)) == 4
    large = random_photos(64, size=64)
    with Loader(large, 32) as loader:
        kept(loader.epoch(0), 1)
        tracemalloc.start()
        for epoch in range(3):
            for _ in loader.epoch(epoch):
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < large.images[:32].nbytes / 2


def test_on_a_simulated_gpu_images_are_arrays_of_its_kind(device):
    with Loader(PHOTOS, 6, device) as loader:
        images, _, which = next(loader.epoch(0))
        assert isinstance(images, device.xp.ndarray)
        np.testing.assert_array_equal(device.to_host(images), PHOTOS.images[which])


# --- ahead of need


def test_batches_come_in_order_even_if_read_in_another():
    """The first batch is not read before the third is there."""
    third = threading.Event()

    def before(which):
        if which[0] == 8:
            third.set()
        if which[0] == 0:
            assert third.wait(60)

    with Loader(WatchedPhotos(before), 4, ahead=2, threads=2) as loader:
        assert [batch.ids[0] for batch in loader.ordered()] == [0, 4, 8, 12, 16]


def test_so_many_batches_are_read_ahead_and_no_more():
    reads = threading.Semaphore(0)
    with Loader(WatchedPhotos(lambda which: reads.release()), 2, ahead=3, threads=2) as loader:
        batches = loader.ordered()
        assert not reads.acquire(blocking=False)  # nothing before it is asked for
        for k in range(10):
            next(batches)
            for _ in range(4 if k == 0 else int(k + 3 < 10)):
                assert reads.acquire(timeout=60)
            assert not reads.acquire(blocking=False)


def test_the_time_spent_waiting_is_counted_and_no_other(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("tinyconv.data.loader.time.perf_counter", lambda: clock[0])

    def before(which):
        clock[0] += 5 * (which[0] == 0)  # of the first batch, for which there is always a wait

    with Loader(WatchedPhotos(before), 6) as loader:
        for _ in loader.ordered():
            clock[0] += 1000
        assert loader.waited == 5
        for _ in loader.ordered():
            clock[0] += 1000
        assert loader.waited == 10


# --- a GPU, which does everything later


@pytest.mark.parametrize("seed", range(20))
def test_batches_arrive_on_a_gpu_whole_and_in_time(seed, monkeypatch):
    """Computing and copies are done in a random order, as far as events leave it open."""
    gpu, seen, expected = Gpus(monkeypatch, count=1, seed=seed), [], []

    def compute(images, which):
        images.compute(lambda values: seen.append(values.copy()))
        expected.append(PHOTOS.images[which])

    with Loader(PHOTOS, 3, "cuda:0", ahead=1 + seed % 3) as loader:
        assert gpu.pinned_bytes == (3 + seed % 3) * 3 * 48
        leave = iter(gpu.random.integers(1, 8, 5))
        last = None
        for batches in (loader.epoch(1), loader.ordered(), loader.epoch(2), loader.ordered()):
            for images, labels, which in itertools.islice(batches, int(next(leave))):
                np.testing.assert_array_equal(labels, PHOTOS.labels[which])
                gpu.run_some()
                compute(images, which)
                if last is not None:  # still valid
                    compute(*last)
                last = images, which
                gpu.run_some()
            batches.close()
    assert not any(stream.queue for stream in gpu.streams[1:])  # copies from freed memory
    gpu.run_all()
    assert len(seen) == len(expected) > 8
    for values, images in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(values, images)


def test_the_next_batch_is_on_its_way_while_the_gpu_computes(monkeypatch):
    monkeypatch.setattr("tinyconv.data.loader._is_read", lambda task: task.result() is None)
    Gpus(monkeypatch, count=1)
    with Loader(PHOTOS, 4, "cuda:0") as loader:
        begun = []
        begin = loader._uploads.begin
        monkeypatch.setattr(
            loader._uploads, "begin", lambda slot, rows: (begun.append(slot), begin(slot, rows))
        )
        for k, _ in enumerate(loader.epoch(0)):
            assert begun == [0, 1, 2, 0, 1][: k + 2]
