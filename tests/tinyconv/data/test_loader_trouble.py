"""A loader in trouble: errors come out as themselves, nobody waits for ever, no thread is left."""

import threading

import pytest
from loading import PHOTOS, WatchedPhotos, assert_equal, kept, no_thread_is_left, shuffled_batches
from small import random_photos
from stores import write_store

from tinyconv.data.loader import Loader, LoaderError
from tinyconv.data.store import PhotoStore

__all__ = ["no_thread_is_left"]  # a fixture: it runs around every test that can see it


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_thread_comes_out_as_itself_in_place_of_its_batch(threads):
    error = OSError(5, "Input/output error")

    def before(which):
        if 7 in which:
            raise error

    with Loader(WatchedPhotos(before), 3, threads=threads) as loader:
        batches = loader.ordered()
        assert [next(batches).ids[0] for _ in range(2)] == [0, 3]
        with pytest.raises(OSError) as caught:
            next(batches)
        assert caught.value is error
        assert not any(t.name.startswith("loader") for t in threading.enumerate())
        with pytest.raises(StopIteration):
            next(batches)


def test_leaving_an_iteration_early_ends_its_threads_and_another_can_begin():
    with Loader(PHOTOS, 2) as loader:
        for batch in loader.epoch(1):
            assert len(batch.images) == 2
            break
        assert not any(t.name.startswith("loader") for t in threading.enumerate())
        assert_equal(kept(loader.epoch(2)), shuffled_batches(PHOTOS, 2, 0, 2))


def test_closing_ends_an_iteration_under_way():
    with Loader(PHOTOS, 2) as loader:
        batches, not_begun = loader.epoch(1), loader.epoch(2)
        next(batches)
    with pytest.raises(LoaderError, match="closed; make a new one"):
        next(not_begun)
    assert not any(t.name.startswith("loader") for t in threading.enumerate())
    with pytest.raises(LoaderError, match="closed"):
        next(batches)
    loader.close()
    for begin in (loader.ordered, lambda: loader.epoch(0)):
        with pytest.raises(LoaderError, match="closed; make a new one"):
            begin()


def test_closing_from_elsewhere_ends_the_waiting():
    """Another thread closes the loader while the consumer waits for a batch."""
    begun, goes_on = threading.Event(), threading.Event()

    def before(which):
        begun.set()
        assert goes_on.wait(60)

    loader = Loader(WatchedPhotos(before), 2, ahead=2, threads=1)
    batches = loader.ordered()

    def close():
        assert begun.wait(60)
        closing = threading.Thread(target=loader.close)
        closing.start()
        while loader._pool is not None:  # it then waits for the thread that waits for us
            pass
        goes_on.set()
        closing.join()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(LoaderError, match="closed"):
        for _ in batches:
            pass
    closer.join()


def test_a_new_iteration_ends_the_one_before():
    with Loader(PHOTOS, 2) as loader:
        old, new = loader.epoch(1), loader.epoch(2)
        next(old)
        first = kept(new, 1)
        with pytest.raises(LoaderError, match="another iteration"):
            next(old)
        assert_equal(first + kept(new), shuffled_batches(PHOTOS, 2, 0, 2))


@pytest.mark.parametrize("first", [-1, 4])
def test_an_epoch_cannot_begin_outside_itself(first):
    with Loader(PHOTOS, 6) as loader, pytest.raises(ValueError, match="3 batches; cannot begin at"):
        loader.epoch(0, first)


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"ahead": 0}, {"threads": 0}])
def test_numbers_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="must be at least 1"):
        Loader(PHOTOS, **{"batch_size": 2, **setting})


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no photos"):
        Loader(random_photos(0, size=4), 2)


def test_a_store_closed_too_early_is_an_error(tmp_path):
    sets = {"train": PHOTOS, "val": random_photos(2, size=4)}
    with PhotoStore(write_store(tmp_path / "photos.h5", sets)) as store:
        loader = Loader(store.train, 2)
    with loader, pytest.raises(ValueError, match="closed"):
        next(loader.epoch(0))
