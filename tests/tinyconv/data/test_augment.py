"""Crops, flips, mean and colour: the right pixels, the same draws everywhere."""

import tracemalloc

import numpy as np
import pytest

from tinyconv import RECIPES
from tinyconv.data.augment import COLOUR, Augment, colour_axes
from tinyconv.data.random_arrays import normals
from tinyconv.data.statistics import Statistics

SIDE, CROP = 13, 9


def photos(count=6):
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def mean():
    return np.random.default_rng(1).uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32)


def axes():
    """Large, and not symmetric: a transposed matrix, or a component forgotten, is far off."""
    return np.array([[900.0, 200, -70], [-400, 500, 30], [100, -600, 90]])


def shifts(seed, epoch, ids):
    """The formula of the paper, image by image: Σ p_i · s_i · a_i, rounded to float32."""
    a = 0.1 * normals(seed, COLOUR, epoch, np.array(ids))
    columns = axes().T
    return [
        (row[0] * columns[0] + row[1] * columns[1] + row[2] * columns[2]).astype(np.float32)
        for row in a
    ]


def versions(image):
    """Every crop of the centred image, unflipped and flipped: (top, left, flip) -> pixels."""
    result = {}
    for top in range(SIDE - CROP + 1):
        for left in range(SIDE - CROP + 1):
            crop = image[top : top + CROP, left : left + CROP]
            result[top, left, 0], result[top, left, 1] = crop, crop[:, ::-1]
    return result


def test_each_result_is_one_of_the_versions_and_all_versions_occur():
    images, augment = photos(), Augment(mean(), CROP, 2.0, seed=3)
    seen = set()
    for epoch in range(60):
        x = augment.random(images, np.arange(6), epoch)
        for n in range(6):
            wanted = versions((images[n].astype(np.float32) - mean()) / np.float32(2))
            (match,) = [key for key, pixels in wanted.items() if (pixels == x[n]).all()]
            seen.add(match)
    # 360 draws of 50: that one of them stays out has a chance of 50 · 0.98³⁶⁰ = 3 %, and the
    # seed is fixed.
    assert len(seen) == 50


def test_the_centre_is_the_centre():
    images = photos(2)
    x = Augment(mean(), CROP).centre(images)
    expected = (images.astype(np.float32) - mean())[:, 2:11, 2:11]
    np.testing.assert_array_equal(x, expected)


def test_draws_belong_to_the_image_not_to_its_batch():
    images = photos()
    augment = Augment(mean(), CROP, seed=5, colour=axes())
    together = augment.random(images, np.arange(6), 2).copy()
    alone = augment.random(images[4:5], np.array([4]), 2).copy()
    np.testing.assert_array_equal(together[4:5], alone)
    order = [4, 0, 4, 5]
    np.testing.assert_array_equal(
        augment.random(images[order], np.array(order), 2), together[order]
    )


def test_epoch_and_seed_change_the_draws():
    images, ids = photos(), np.arange(6)
    first = Augment(mean(), CROP, seed=5).random(images, ids, 1).copy()
    assert (Augment(mean(), CROP, seed=5).random(images, ids, 2) != first).any()
    assert (Augment(mean(), CROP, seed=6).random(images, ids, 1) != first).any()
    assert (Augment(mean(), CROP, seed=5).random(images, ids, 1) == first).all()


def test_a_crop_as_large_as_the_photo_only_flips():
    images = photos(4)
    x = Augment(np.zeros((SIDE, SIDE, 3), np.float32), SIDE).random(images, np.arange(4), 0)
    for n in range(4):
        assert (x[n] == images[n]).all() or (x[n] == images[n, :, ::-1]).all()


# --- host and device


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_on_host_and_device(cuda_device, dtype):
    images, ids = photos(3), np.array([5, 9, 2])
    host, device = (
        Augment(mean(), CROP, 1.1, seed=4, colour=axes()).to(where, dtype)
        for where in ("cpu", cuda_device)
    )
    for cut in (
        lambda augment: augment.random(images, ids, 7),
        lambda augment: augment.centre(images),
        lambda augment: augment.ten_views(images[:2]),
    ):
        ours = cut(host)
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, cuda_device.to_host(cut(device)))


def test_photos_that_are_on_the_device_are_read_where_they_are(device):
    augment = Augment(mean(), CROP, seed=4, colour=axes()).to(device, "float32")
    images, ids = photos(3), np.arange(3)
    expected = device.to_host(augment.random(images, ids, 1)).copy()
    there = device.array(images)
    np.testing.assert_array_equal(device.to_host(augment.random(there, ids, 1)), expected)
    np.testing.assert_array_equal(device.to_host(there), images)
    # Every second pixel of a wider photo: not in one piece, so it has to be copied together.
    wide = device.array(images.repeat(2, axis=2))[:, :, ::2]
    np.testing.assert_array_equal(device.to_host(augment.random(wide, ids, 1)), expected)


def test_photos_that_may_not_be_written_will_do(device, tmp_path):
    augment = Augment(mean(), CROP).to(device, "float32")
    images = photos(2)
    expected = device.to_host(augment.centre(images)).copy()
    images.tofile(tmp_path / "photos")
    mapped = np.memmap(tmp_path / "photos", np.uint8, "r", shape=images.shape)
    np.testing.assert_array_equal(device.to_host(augment.centre(mapped)), expected)


def test_a_step_of_training_allocates_nothing_of_the_size_of_an_image():
    images, ids = np.zeros((4, 120, 120, 3), np.uint8), np.arange(4)
    augment = Augment(np.zeros((120, 120, 3), np.float32), 110, colour=axes())
    x = augment.random(images, ids, 0)
    tracemalloc.start()
    try:
        again = augment.random(images, ids, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again is x
    assert peak < images[0].nbytes / 2


# --- colour


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("divisor", [1.0, 1.1])
def test_colour_is_the_papers_formula(device, dtype, divisor):
    images, ids = photos(4), [7, 0, 2**33, 3]
    augment = Augment(mean(), SIDE, divisor, seed=2, colour=axes()).to(device, dtype)
    x = device.to_host(augment.random(images, np.array(ids), 5))
    for n, shift in enumerate(shifts(2, 5, ids)):
        assert np.abs(shift).max() > 5
        wanted = (images[n].astype(dtype) - mean().astype(dtype) + shift) / dtype(divisor)
        assert (x[n] == wanted).all() or (x[n] == wanted[:, ::-1]).all()


def test_the_colours_drawn_have_the_covariance_asked_for():
    count = 20_000
    augment = Augment(np.zeros((1, 1, 3), np.float32), 1, seed=1, colour=axes())
    x = augment.random(np.zeros((count, 1, 1, 3), np.uint8), np.arange(count), 3)
    drawn = np.linalg.solve(axes(), x.reshape(count, 3).T.astype(np.float64)) / 0.1
    # Five standard errors: of a mean 1, of a variance √2, of a covariance 1, over √count.
    assert np.abs(drawn.mean(axis=1)).max() < 5 / np.sqrt(count)
    assert np.abs(np.cov(drawn) - np.eye(3)).max() < 5 * np.sqrt(2 / count)


def test_each_epoch_seed_and_image_has_a_colour_of_its_own():
    images = np.zeros((3, 1, 1, 3), np.uint8)

    def drawn(seed, epoch, ids=(0, 1, 2)):
        augment = Augment(np.zeros((1, 1, 3), np.float32), 1, seed=seed, colour=axes())
        return augment.random(images, np.array(ids), epoch).reshape(3, 3)

    first = drawn(1, 1)
    np.testing.assert_array_equal(drawn(1, 1), first)
    np.testing.assert_array_equal(drawn(1, 1, (2, 1, 0)), first[::-1])
    for other in (drawn(2, 1), drawn(1, 2), drawn(1, 1, (3, 4, 5)), first[[1, 2, 0]]):
        assert (other != first).all()


def test_colour_moves_no_crop_and_can_be_switched_off():
    images, ids = photos(), np.arange(6)
    plain = Augment(mean(), CROP, 1.1, seed=6).random(images, ids, 4)
    augment = Augment(mean(), CROP, 1.1, seed=6, colour=axes())
    coloured = augment.random(images, ids, 4).copy()
    # Both are rounded to 2⁻¹⁶ or finer at these sizes, below 2⁹.
    moved = (coloured.astype(np.float64) - plain) * 1.1
    for n, shift in enumerate(shifts(6, 4, ids)):
        np.testing.assert_allclose(moved[n], np.broadcast_to(shift, moved[n].shape), atol=1e-4)
    augment.colour_on = False
    np.testing.assert_array_equal(augment.random(images, ids, 4), plain)
    augment.colour_on = True
    np.testing.assert_array_equal(augment.random(images, ids, 4), coloured)


def test_testing_draws_no_colour():
    augment, plain = Augment(mean(), CROP, colour=axes()), Augment(mean(), CROP)
    np.testing.assert_array_equal(augment.centre(photos()), plain.centre(photos()))
    np.testing.assert_array_equal(augment.ten_views(photos()), plain.ten_views(photos()))


def test_axes_of_the_recipes():
    values = np.array([14835.24, 1376.41, 388.09])  # 121.8², 37.1², 19.7²
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    lengths = {
        "none": None,
        "eigenvalue": [58.1774, 5.3977, 1.5219],  # λ / 255
        "deviation": [121.8, 37.1, 19.7],
    }
    assert {recipe.colour for recipe in RECIPES.values()} == set(lengths)
    for kind, expected in lengths.items():
        made = colour_axes(values, vectors, kind)
        if expected is None:
            assert made is None
            continue
        np.testing.assert_allclose(np.linalg.norm(made, axis=0), expected, rtol=1e-4)
        np.testing.assert_allclose(made / np.linalg.norm(made, axis=0), vectors, rtol=1e-12)


def test_the_scale_of_the_text_is_the_covariance_of_pixels_from_0_to_1():
    images = np.random.default_rng(3).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    statistics = Statistics(SIDE)
    statistics.add(images)
    made = colour_axes(statistics.eigenvalues, statistics.eigenvectors, "eigenvalue")
    pixels = images.reshape(-1, 3).T / 255
    values = np.linalg.eigvalsh(np.cov(pixels, bias=True))[::-1]
    np.testing.assert_allclose(np.linalg.norm(made, axis=0) / 255, values, rtol=1e-9)


# --- ten views


@pytest.mark.parametrize("side, crop", [(13, 9), (12, 7), (8, 1), (5, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ten_views_are_the_corners_the_centre_and_their_mirror_images(device, dtype, side, crop):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    average = np.random.default_rng(1).uniform(0, 255, (side, side, 3))
    x = Augment(average, crop, 1.1).to(device, dtype).ten_views(images)
    x = device.to_host(x)
    assert x.shape == (20, crop, crop, 3)
    first, middle = slice(None, crop), slice((side - crop) // 2, (side - crop) // 2 + crop)
    last = slice(side - crop, None)
    places = [(first, first), (first, last), (last, first), (last, last), (middle, middle)]
    for n in range(2):
        centred = (images[n].astype(dtype) - average.astype(dtype)) / dtype(1.1)
        for v, place in enumerate(places):
            np.testing.assert_array_equal(x[10 * n + v], centred[place])
            np.testing.assert_array_equal(x[10 * n + v + 5], centred[place][:, ::-1])


def test_the_fifth_view_is_the_centre_of_testing():
    augment = Augment(mean(), CROP, 1.1)
    centre = augment.centre(photos()).copy()
    np.testing.assert_array_equal(augment.ten_views(photos())[4::10], centre)


# --- what does not fit


def test_sizes_and_types_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="crops of 14 pixels do not fit"):
        Augment(mean(), SIDE + 1)
    augment = Augment(mean(), CROP)
    with pytest.raises(ValueError, match=r"uint8 \(N, 13, 13, 3\)"):
        augment.centre(photos()[:, :12])
    with pytest.raises(ValueError, match="float32"):
        augment.centre(photos().astype(np.float32))
    with pytest.raises(ValueError, match="images are a builtins.list, expected a NumPy array"):
        augment.ten_views(photos().tolist())
    for ids in (np.arange(5), np.arange(7), np.zeros((6, 1), np.int64)):
        with pytest.raises(ValueError, match="6 images need as many ids"):
            augment.random(photos(), ids, 0)


def test_colours_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"colour is \(3,\), expected \(3, 3\)"):
        Augment(mean(), CROP, colour=np.ones(3))
    with pytest.raises(ValueError, match="colour must be finite"):
        Augment(mean(), CROP, colour=np.full((3, 3), np.nan))
    for values, kind, says in (
        ([3, 2, 1], "Eigenvalue", "must be 'none', 'eigenvalue' or 'deviation', not 'Eigenvalue'"),
        ([3, 2], "deviation", r"eigenvalues \(2,\)"),
        ([3, 2, -1], "deviation", "at least 0"),
        ([3, np.inf, 1], "eigenvalue", "must be finite"),
    ):
        with pytest.raises(ValueError, match=says):
            colour_axes(np.array(values), np.eye(3), kind)
