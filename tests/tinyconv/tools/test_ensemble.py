"""Several nets that answer together: by hand, by slices, and with what does not fit together."""

import numpy as np
import pytest
from photo_bytes import encoded, noisy_jpeg, put
from PIL import Image
from small import saved_net

from layers import Device, Flatten, Linear
from tinyconv import Sequential, evaluate
from tinyconv.data import PhotoSet
from tinyconv.data.augment import Augment
from tinyconv.data.photos import PhotoError, decode_square
from tinyconv.evaluate import average, log_probabilities
from tinyconv.run.checkpoint import CheckpointError
from tinyconv.tools.ensemble import (
    Member,
    check_members,
    evaluate_members,
    first_other_class,
    load_member,
    predict,
)

CLASSES = [f"class{i}" for i in range(6)]


def member(name, seed, *, crop=4, side=7, divisor=1.0, ids=None):
    """A net of one random matrix on crops of `side`-pixel photos."""
    net = Sequential({"flatten": Flatten(), "fc": Linear(crop * crop * 3, 6)})
    rng = np.random.default_rng(seed)
    net["fc"].weight.value[...] = rng.standard_normal((6, crop * crop * 3)) * 0.01 * divisor
    mean = rng.uniform(90, 160, (side, side, 3)).astype(np.float32)
    return Member(name, net, Augment(mean, crop, divisor), list(ids or CLASSES), CLASSES)


def photos_of(count=13, size=7):
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    return PhotoSet(images, rng.integers(0, 6, count), tuple(CLASSES))


def said_by(member, photos, views):
    return np.exp(average(log_probabilities(member.net, member.augment, photos.images, views)))


def test_the_average_of_two_nets_is_the_mean_of_their_probabilities():
    one, two, photos = member("one", 1), member("two", 2, crop=3, divisor=64.0), photos_of()
    rows = evaluate_members([one, two], {7: photos}, batch_size=30)
    assert [(row.name, row.views) for row in rows] == [
        (name, views) for name in ("one", "two", "") for views in ("centre", "ten")
    ]
    for views, row in zip(("centre", "ten"), rows[4:], strict=True):
        expected = (said_by(one, photos, views) + said_by(two, photos, views)) / 2
        chosen = expected[np.arange(13), photos.labels]
        result = row.tally.evaluation()
        assert result.loss == pytest.approx(-np.log(chosen).mean(), rel=1e-6)
        assert result.top1 == np.mean(expected.argmax(axis=1) == photos.labels)
    assert len({row.tally.evaluation().loss for row in rows}) == 6  # the nets differ


@pytest.mark.parametrize("views", [("centre",), ("ten",), ("centre", "ten"), ("ten", "centre")])
def test_each_row_is_what_evaluate_says_of_the_net_alone(views):
    one, photos = member("one", 1), photos_of()
    rows = evaluate_members([one], {7: photos}, views, 30)
    assert [row.views for row in rows] == list(views)
    for row in rows:
        alone, result = (
            evaluate(one.net, photos, one.augment, 30, row.views),
            row.tally.evaluation(),
        )
        assert result.loss == pytest.approx(alone.loss, rel=1e-5)
        assert (result.top1, result.top5) == (alone.top1, alone.top5)


def test_nets_of_several_sizes_get_their_own_photos():
    small, large = member("small", 1), member("large", 2, side=9)
    photos = {7: photos_of(), 9: photos_of(size=9)}
    photos[9] = PhotoSet(photos[9].images, photos[7].labels, tuple(CLASSES))
    rows = evaluate_members([small, large], photos, ("ten",), 20)
    for row, each in zip(rows, (small, large), strict=False):
        expected = evaluate(each.net, photos[each.size], each.augment, 20, "ten")
        assert row.tally.evaluation() == expected
    other = PhotoSet(photos[9].images, (photos[9].labels + 1) % 6, tuple(CLASSES))
    with pytest.raises(ValueError, match="in one size but not in another"):
        evaluate_members([small, large], {7: photos[7], 9: other})


def test_two_equal_answers_go_to_the_first_class():
    """One net is sure of class 4, another as sure of class 2: their average is a tie."""
    nets = []
    for name, label in (("one", 4), ("two", 2)):
        each = member(name, 0)
        each.net["fc"].weight.value[...] = 0
        each.net["fc"].bias.value[label] = 3
        nets.append(each)
    photos = PhotoSet(photos_of(2).images, np.array([2, 4]), tuple(CLASSES))
    _, answers, among = evaluate_members(nets, {7: photos}, ("ten",))[-1].tally.photos()
    assert answers.tolist() == [2, 2] and among.all()
    rows = evaluate_members(nets[::-1], {7: photos}, ("ten",))
    assert rows[-1].tally.photos()[1].tolist() == [2, 2]


def test_progress_is_told_the_number_of_batches():
    totals = []

    def progress(batches, total):
        totals.append(total)
        batches = list(batches)
        totals.append(len(batches))
        return batches

    # All batches at once, so that their buffers are overwritten: only the count is looked at.
    evaluate_members([member("one", 1)], {7: photos_of()}, ("ten",), 30, progress)
    assert totals == [5, 5]


def test_an_empty_set_and_unknown_views_are_refused():
    empty = PhotoSet(np.zeros((0, 7, 7, 3), np.uint8), np.zeros(0, np.int64), tuple(CLASSES))
    with pytest.raises(ValueError, match="no photos"):
        evaluate_members([member("one", 1)], {7: empty})
    with pytest.raises(ValueError, match="views must be"):
        evaluate_members([member("one", 1)], {7: photos_of()}, ("both",))


# --- classes


def test_the_first_difference_between_lists_of_classes_is_named():
    assert first_other_class("a", ["x", "y"], "b", ["x", "y"]) == ""
    assert first_other_class("a", ["x", "y"], "b", ["x", "z", "w"]) == (
        "class 1 is 'y' in a and 'z' in b"
    )
    assert first_other_class("a", ["x"], "b", ["x", "y"]) == "a has 1 classes and b has 2"


def test_nets_of_other_classes_are_not_averaged():
    check_members([member("one", 1), member("two", 2)])
    other = member("three", 3, ids=[*CLASSES[:5], "cat"])
    with pytest.raises(ValueError, match="class 5 is 'class5' in one and 'cat' in three: their"):
        check_members([member("one", 1), member("two", 2), other])


# --- from files


def test_a_net_comes_with_its_mean_size_divisor_and_classes(tmp_path, device):
    ids = ["n1", "n2"]
    net = saved_net(tmp_path / "weights.h5", ["dark", "light"], class_ids=ids)
    loaded = load_member(tmp_path, Device(device))
    assert (loaded.name, loaded.size, loaded.augment.crop) == (str(tmp_path), 73, 64)
    assert loaded.augment.divisor == 32 and loaded.augment.mean.max() == 100
    assert loaded.class_ids == ids and loaded.class_names == ["dark", "light"]
    assert loaded.net.device == loaded.augment.device == device
    for one, other in zip(net.parameters(), loaded.net.parameters(), strict=True):
        np.testing.assert_array_equal(one.value, device.to_host(other.value))


def test_without_ids_the_names_are_the_ids(tmp_path):
    saved_net(tmp_path / "weights.h5", ["dark", "light"], class_ids=None)
    assert load_member(tmp_path / "weights.h5", Device("cpu")).class_ids == ["dark", "light"]


def test_a_mean_that_does_not_fit_the_crop_is_one_line(tmp_path):
    saved_net(tmp_path / "weights.h5", ["dark", "light"], mean=np.zeros((50, 50, 3), np.float32))
    with pytest.raises(CheckpointError, match="weights.h5: its mean image does not fit .*64 pix"):
        load_member(tmp_path / "weights.h5", Device("cpu"))


# --- single photos


def test_the_likeliest_classes_of_a_photo_are_those_of_ten_views_of_all_nets(tmp_path):
    nets = [member("one", 1), member("two", 2, side=9)]
    path = put(tmp_path / "a photo.jpg", noisy_jpeg())
    expected = np.zeros(6)
    for each in nets:
        square = PhotoSet(decode_square(path, each.size)[None], np.zeros(1, int), tuple(CLASSES))
        expected += said_by(each, square, "ten")[0] / 2
    found = predict(nets, path)
    assert [label for label, _ in found] == np.argsort(-expected)[:5].tolist()
    assert [p for _, p in found] == pytest.approx(sorted(expected)[:0:-1])
    assert predict(nets, path, "centre") != found
    assert sum(p for _, p in predict(nets, path, k=99)) == pytest.approx(1)


def test_what_is_no_photo_is_refused_with_the_reason(tmp_path):
    nets = [member("one", 1)]
    for name, content, reason in (
        ("text.jpg", b"hello", "not a photo"),
        ("empty.jpg", b"", "not a photo"),
        ("cut.jpg", noisy_jpeg()[:2000], "truncated"),
    ):
        with pytest.raises(PhotoError, match=reason):
            predict(nets, put(tmp_path / name, content))
    with pytest.raises(PhotoError, match="No such file"):
        predict(nets, tmp_path / "absent.jpg")
    with pytest.raises(PhotoError, match="not an ordinary file"):
        predict(nets, tmp_path)


def test_a_net_gone_to_nan_gives_no_answer(tmp_path):
    bad = member("one", 1)
    bad.net["fc"].weight.value[0, 0] = np.nan
    image = encoded(Image.new("RGB", (20, 20), "red")).getvalue()
    with pytest.raises(ValueError, match="predictions are not finite"):
        predict([bad], put(tmp_path / "red.png", image))
