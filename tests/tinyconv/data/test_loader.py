"""Batches: every image once, in an order that only the seed decides."""

import numpy as np
from small import random_photos

from tinyconv.data.loader import batches_per_epoch, ordered_batches, shuffled_batches

PHOTOS = random_photos(20, size=4)


def ids(seed, epoch, batch_size=6):
    return np.concatenate([i for _, _, i in shuffled_batches(PHOTOS, batch_size, seed, epoch)])


def test_an_epoch_has_each_image_at_most_once_and_leaves_out_less_than_a_batch():
    drawn = ids(0, 1)
    assert len(drawn) == len(set(drawn)) == 18 and batches_per_epoch(20, 6) == 3


def test_images_and_labels_belong_to_their_ids():
    for images, labels, which in shuffled_batches(PHOTOS, 6, 0, 1):
        np.testing.assert_array_equal(images, PHOTOS.images[which])
        np.testing.assert_array_equal(labels, PHOTOS.labels[which])


def test_seed_and_epoch_decide_the_order_and_classes_are_mixed():
    assert (ids(0, 1) == ids(0, 1)).all()
    assert (ids(0, 1) != ids(0, 2)).any() and (ids(0, 1) != ids(1, 1)).any()
    assert sorted(ids(3, 1, 20)) == list(range(20))
    # What is left out changes, so that after a few epochs every image has had its turn.
    assert len(set(np.concatenate([ids(0, epoch) for epoch in range(5)]))) == 20


def test_a_set_smaller_than_a_batch_is_one_batch():
    ((images, _, which),) = shuffled_batches(PHOTOS, 64, 0, 0)
    assert len(images) == len(which) == 20


def test_ordered_batches_give_every_photo_in_order():
    images, labels = zip(*ordered_batches(PHOTOS, 6), strict=True)
    assert [len(part) for part in images] == [6, 6, 6, 2]
    np.testing.assert_array_equal(np.concatenate(images), PHOTOS.images)
    np.testing.assert_array_equal(np.concatenate(labels), PHOTOS.labels)
