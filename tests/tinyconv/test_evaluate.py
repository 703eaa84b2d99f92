"""Top-1, top-5 and loss."""

import math

import numpy as np
import pytest
from small import random_photos

from layers import SoftmaxCrossEntropy
from tinyconv import alexnet, evaluate
from tinyconv.data import PhotoSet
from tinyconv.data.augment import Augment
from tinyconv.evaluate import hits


def test_hits_counts_rows_whose_label_is_among_the_k_largest():
    probabilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    labels = np.array([2, 1, 0])
    assert [hits(probabilities, labels, k) for k in (1, 2, 3)] == [1, 2, 3]


def test_a_net_that_gives_every_class_the_same_does_not_pass_for_one_that_knows():
    same = np.full((10, 10), 0.1)
    assert hits(same, np.arange(10), 1) == 1
    assert hits(same, np.arange(10), 5) == 5


def test_nan_is_never_a_hit():
    assert hits(np.full((4, 3), np.nan), np.zeros(4, int), 3) == 0


def test_the_result_does_not_depend_on_the_batch_size_and_weighs_each_photo_the_same():
    photos = random_photos(10)
    net = alexnet(3, 0.05, 64, "robust")
    augment = Augment(photos.mean_image(), 64, 64.0)
    results = [evaluate(net, photos, augment, batch_size=size) for size in (1, 4, 10, 64)]
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
        assert (result.top1, result.top5) == (results[0].top1, results[0].top5)
    loss = SoftmaxCrossEntropy()
    whole = loss.forward(net.forward(augment.centre(photos.images), train=False), photos.labels)
    assert results[0].loss == pytest.approx(whole, rel=1e-5)
    assert results[0].top5 == 1.0 and "top-5 100.0%" in str(results[0])


def test_an_untrained_net_guesses():
    photos = random_photos(30)
    net = alexnet(3, 0.05, 64, "paper")
    result = evaluate(net, photos, Augment(photos.mean_image(), 64))
    assert result.loss == pytest.approx(math.log(3), rel=0.02)
    assert result.top1 == pytest.approx(1 / 3)


def test_an_empty_set_is_refused():
    empty = PhotoSet(np.zeros((0, 64, 64, 3), np.uint8), np.zeros(0, np.int64), ("a", "b"))
    with pytest.raises(ValueError, match="no photos"):
        evaluate(alexnet(2, 0.05, 64), empty, Augment(np.zeros((64, 64, 3), np.float32), 64))
