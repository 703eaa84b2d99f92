"""The filters of both columns, and how colourful they are."""

import numpy as np
import pytest
from PIL import Image

from tinyconv.run.plots import colourfulness, plot_column_filters


def test_grey_is_0_and_a_difference_of_colours_is_1():
    rng = np.random.default_rng(0)
    grey = rng.normal(size=(1, 5, 5, 1)) * np.ones(3)
    opponent = rng.normal(size=(1, 5, 5, 1)) * np.array([1.0, -1.0, 0.0])
    both = grey[:, ::-1] * np.sqrt(np.square(opponent).sum() / np.square(grey).sum()) + opponent
    found = colourfulness(np.concatenate([grey, opponent, both, 7 * both, np.zeros((1, 5, 5, 3))]))
    # Grey and colour differences are at right angles, so shares of equal size are halves.
    np.testing.assert_allclose(found, [0, 1, 0.5, 0.5, 0], atol=1e-12)


def test_one_colour_alone_is_two_thirds_as_are_random_weights():
    red = np.zeros((1, 4, 4, 3))
    red[..., 0] = 1
    assert colourfulness(red) == pytest.approx(2 / 3)
    drawn = np.random.default_rng(1).normal(size=(200, 11, 11, 3)).astype(np.float32)
    # The mean of 200 filters of 363 numbers each is within 0.01 of its expectation.
    assert colourfulness(drawn).mean() == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("shape", [(4, 5, 5, 4), (5, 5, 3), (4, 5, 5, 1)])
def test_filters_have_three_colours(shape):
    with pytest.raises(ValueError, match="expected"):
        colourfulness(np.ones(shape))


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_picture_has_both_columns_and_is_the_same_each_time(count, tmp_path):
    weight = np.random.default_rng(0).normal(size=(count, 11, 11, 3)).astype(np.float32)
    for name in ("a.png", "b.png"):
        plot_column_filters(weight, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width >= 400
