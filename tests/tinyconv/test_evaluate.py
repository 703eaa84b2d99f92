"""Top-1, top-5 and loss, from the centre and from ten views."""

import math

import numpy as np
import pytest
from marks import long
from small import random_photos

from layers import Flatten, Linear, SoftmaxCrossEntropy
from tinyconv import Sequential, alexnet, evaluate
from tinyconv.data import PhotoSet
from tinyconv.data.augment import Augment
from tinyconv.evaluate import Tally, average, count_hits, likeliest, log_probabilities

CROP, SIDE = 4, 7


def test_hits_counts_rows_whose_label_is_among_the_k_largest():
    probabilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    labels = np.array([2, 1, 0])
    assert [count_hits(probabilities, labels, k) for k in (1, 2, 3)] == [1, 2, 3]


def test_a_net_that_gives_every_class_the_same_does_not_pass_for_one_that_knows():
    same = np.full((10, 10), 0.1)
    assert count_hits(same, np.arange(10), 1) == 1
    assert count_hits(same, np.arange(10), 5) == 5


def test_nan_is_never_a_hit():
    assert count_hits(np.full((4, 3), np.nan), np.zeros(4, int), 3) == 0


def test_of_equal_values_the_first_is_the_likeliest():
    assert likeliest(np.array([[1.0, 3, 3, 2], [5, 5, 5, 5]]), 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert likeliest(np.array([[1.0, 2]]), 5).tolist() == [[1, 0]]
    ties = np.random.default_rng(0).integers(0, 4, (50, 9)).astype(float)
    np.testing.assert_array_equal(likeliest(ties, 1), likeliest(ties, 9)[:, :1])


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


@pytest.mark.parametrize("views", ["centre", "ten"])
def test_an_empty_set_is_refused(views):
    empty = PhotoSet(np.zeros((0, 64, 64, 3), np.uint8), np.zeros(0, np.int64), ("a", "b"))
    augment = Augment(np.zeros((64, 64, 3), np.float32), 64)
    with pytest.raises(ValueError, match="no photos"):
        evaluate(alexnet(2, 0.05, 64), empty, augment, views=views)


# --- a net of one matrix, whose answers can be computed by hand


def linear_net(classes=6, seed=0, scale=0.01, crop=CROP, device="cpu"):
    """logits = w · pixels of the crop."""
    net = Sequential({"flatten": Flatten(), "fc": Linear(crop * crop * 3, classes)})
    weight = np.random.default_rng(seed).standard_normal((classes, crop * crop * 3)) * scale
    net.to(device)
    net["fc"].weight.value[...] = net.device.array(weight, np.float32)
    return net


def photos_of(count=13, classes=6, size=SIDE, seed=1):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    names = tuple(f"class{i}" for i in range(classes))
    return PhotoSet(images, rng.integers(0, classes, count), names)


def crops_of(image, mean, crop=CROP):
    """The ten crops of one image, cut out by slices (paper §4.1)."""
    end = len(image) - crop
    centred = image.astype(np.float64) - mean
    corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    plain = [centred[top : top + crop, left : left + crop] for top, left in corners]
    return plain + [each[:, ::-1] for each in plain]


def softmax_by_hand(net, crop):
    weight = net.device.to_host(net["fc"].weight.value).astype(np.float64)
    exponentials = np.exp(weight @ crop.ravel())
    return exponentials / exponentials.sum()


def ten_by_hand(net, photos, mean):
    return np.array(
        [
            np.mean([softmax_by_hand(net, crop) for crop in crops_of(image, mean)], axis=0)
            for image in photos.images
        ]
    )


@pytest.mark.parametrize("device", ["cpu", long("cuda:0")], indirect=True)
def test_ten_views_are_the_mean_of_ten_softmaxes(device):
    net, photos = linear_net(device=device), photos_of()
    mean = photos.mean_image()
    augment = Augment(mean, CROP).to(device, np.float32)
    expected = ten_by_hand(net, photos, mean)
    logs = log_probabilities(net, augment, photos.images, "ten")
    assert logs.shape == (10, 13, 6) and logs.dtype == np.float64
    # float32 products of 48 terms.
    np.testing.assert_allclose(np.exp(average(logs)), expected, rtol=1e-4)
    result = evaluate(net, photos, augment, batch_size=30, views="ten")
    chosen = expected[np.arange(13), photos.labels]
    assert result.loss == pytest.approx(-np.log(chosen).mean(), rel=1e-4)
    assert result.top1 == np.mean(expected.argmax(axis=1) == photos.labels)
    assert 0 < result.top5 < 1


def test_the_centre_is_the_fifth_of_the_ten_views():
    net, photos = linear_net(), photos_of()
    augment = Augment(photos.mean_image(), CROP)
    ten = log_probabilities(net, augment, photos.images, "ten")
    centre = log_probabilities(net, augment, photos.images, "centre")
    np.testing.assert_allclose(ten[4], centre[0], rtol=1e-5, atol=1e-6)
    assert abs(ten[9] - centre[0]).max() > 0.01  # its mirror image is something else


def test_both_ways_of_asking_about_the_centre_agree():
    net, photos = linear_net(), photos_of()
    augment = Augment(photos.mean_image(), CROP)
    result, tally = evaluate(net, photos, augment, batch_size=5), Tally()
    tally.add(log_probabilities(net, augment, photos.images, "centre")[0], photos.labels)
    assert tally.evaluation().loss == pytest.approx(result.loss, rel=1e-5)
    assert tally.evaluation().top1 == result.top1 and tally.evaluation().top5 == result.top5


def test_views_do_not_depend_on_the_batch_and_a_batch_counts_crops():
    net, photos = linear_net(), photos_of(7)
    augment = Augment(photos.mean_image(), CROP)
    rows = []
    forward = net.forward

    def counted(x, train=True):
        rows.append(len(x))
        return forward(x, train)

    net.forward = counted
    results = [evaluate(net, photos, augment, size, "ten") for size in (1, 29, 500)]
    assert rows == [10] * 7 + [20, 20, 20, 10] + [70]
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-6)
        assert (result.top1, result.top5) == (results[0].top1, results[0].top5)


def test_a_probability_too_small_for_a_number_leaves_the_loss_finite():
    net, photos = linear_net(2, scale=0), photos_of(3, classes=2)
    net["fc"].bias.value[...] = [4000, -4000]
    photos = PhotoSet(photos.images, np.array([1, 1, 1]), photos.class_names)
    augment = Augment(photos.mean_image(), CROP)
    for views in ("centre", "ten"):
        assert evaluate(net, photos, augment, views=views).loss == pytest.approx(8000)


def test_a_net_gone_to_nan_is_told_by_its_results():
    net, photos = linear_net(), photos_of()
    net["fc"].weight.value[0, 0] = np.nan
    result = evaluate(net, photos, Augment(photos.mean_image(), CROP), views="ten")
    assert math.isnan(result.loss) and result.top1 == result.top5 == 0


@pytest.mark.parametrize("views", ["centre", "ten"])
def test_after_each_batch_training_may_end(views):
    class Stop(Exception):
        pass

    calls = []

    def on_batch():
        calls.append(None)
        if len(calls) == 2:
            raise Stop

    photos, size = photos_of(9), {"centre": 4, "ten": 40}[views]
    with pytest.raises(Stop):
        evaluate(linear_net(), photos, Augment(photos.mean_image(), CROP), size, views, on_batch)
    assert len(calls) == 2


def test_wrong_arguments_are_refused():
    net, photos = linear_net(classes=3), photos_of(classes=6)
    augment = Augment(photos.mean_image(), CROP)
    with pytest.raises(ValueError, match="views must be 'centre' or 'ten', not 'eleven'"):
        evaluate(net, photos, augment, views="eleven")
    for views in ("centre", "ten"):
        with pytest.raises(ValueError, match="batch_size"):
            evaluate(net, photos, augment, batch_size=0, views=views)
        with pytest.raises(ValueError, match="label"):
            evaluate(net, photos, augment, views=views)


# --- averages and tallies


def test_the_average_is_that_of_probabilities_not_of_their_logarithms():
    given = np.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.01, 0.99]]])
    expected = given.mean(axis=0)
    np.testing.assert_allclose(np.exp(average(np.log(given))), expected, rtol=1e-12)
    tiny = np.array([[[-5000.0, 0.0]], [[-6000.0, 0.0]]])
    assert average(tiny)[0, 0] == pytest.approx(-5000 - math.log(2))


def test_a_tally_over_batches_of_any_size():
    logs = np.log(photos_of().images[:, 0, 0, :1] * 0 + np.array([[0.2, 0.5, 0.3]]))
    labels = np.array([1, 0, 2, 1, 1, 0, 0, 0, 2, 2, 1, 1, 1])
    whole, parts = Tally(), Tally()
    whole.add(logs, labels)
    for part in (slice(0, 1), slice(1, 8), slice(8, 13)):
        parts.add(logs[part], labels[part])
    assert parts.evaluation().top1 == whole.evaluation().top1 == 6 / 13
    assert parts.evaluation().loss == pytest.approx(whole.evaluation().loss)
    kept, answers, among = parts.photos()
    assert kept.tolist() == labels.tolist() and set(answers) == {1} and among.all()
