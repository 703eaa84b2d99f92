"""Shares of a filter: low frequencies and colour."""

import numpy as np
import pytest

from tinyconv.run.filters import colourfulness, low_frequencies, low_frequencies_of_noise

Y, X = np.mgrid[:11, :11]


def grating(u, v):
    """u periods down and v across, in 11 pixels."""
    return np.cos(2 * np.pi * (u * Y + v * X) / 11 + 1)


PATTERNS = {
    "a constant": (np.ones((11, 11)), 1, 1),
    "two periods": (grating(2, 0), 1, 1),
    "three periods, oblique": (grating(-2, 3), 1, 1),  # 3.05 pixels each
    "four periods": (grating(0, 4), 0, 0),  # 2.75 pixels each
    "four periods, oblique": (grating(3, 3), 0, 0),  # 2.6 pixels each
    "an edge": (np.where(X < 5, 1.0, -1.0), 0.93, 0.95),
    "an oblique edge": (np.where(X + Y < 10, 1.0, -1.0), 0.85, 0.87),
    "a blob": (np.exp(-((X - 5.0) ** 2 + (Y - 5.0) ** 2) / 8), 0.99, 1),
    "a checkerboard": ((-1.0) ** (X + Y), 0, 0.01),  # 11 is odd: at the border it does not repeat
    "zeros": (np.zeros((11, 11)), 0, 0),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_edges_blobs_and_coarse_gratings_are_low_frequencies(name):
    pattern, low, high = PATTERNS[name]
    filters = np.stack([factor * pattern[..., None] * [0.5, -1.0, 3.0] for factor in (1, 9, -0.1)])
    found = low_frequencies(filters.astype(np.float32))
    assert found.shape == (3,)
    assert (low - 1e-6 <= found).all() and (found <= high + 1e-6).all()


def test_energies_add_up():
    """Three gratings in one filter, one in each colour, and two in one colour."""
    fine = np.stack([grating(1, 2), 2 * grating(0, 5), 3 * grating(0, 1)], axis=-1)
    mixed = (2 * grating(1, 1) + grating(5, 5))[..., None] * np.ones(3)
    np.testing.assert_allclose(low_frequencies(np.stack([fine, mixed])), [10 / 14, 4 / 5])


def test_white_noise_has_the_share_of_the_frequencies():
    weight = np.random.default_rng(2).normal(size=(400, 11, 11, 3)).astype(np.float32)
    assert low_frequencies_of_noise(11, 11) == 45 / 121
    # A filter's share has a standard deviation of about 0.035, the mean of 400 of 0.002.
    assert low_frequencies(weight).mean() == pytest.approx(45 / 121, abs=0.01)


def test_the_limit_itself_is_low():
    """If 3 divides a side, 1/3 cycle is a frequency of the transform; (3, 4) of 15×15 has it."""
    assert low_frequencies_of_noise(3, 1) == 1
    assert low_frequencies_of_noise(1, 12) == 9 / 12
    within = [(u, v) for u in range(-7, 8) for v in range(-7, 8) if u * u + v * v <= 25]
    assert (3, 4) in within and low_frequencies_of_noise(15, 15) == len(within) / 225


def test_sides_may_differ():
    down, across = (np.cos(np.pi * k / 2) * np.ones((8, 12)) for k in np.mgrid[:8, :12])
    finer = np.cos(2 * np.pi * np.arange(12) * 5 / 12) * np.ones((8, 1))
    filters = np.stack([down, across, finer])[..., None] * np.ones(3)
    np.testing.assert_allclose(low_frequencies(filters), [1, 1, 0], atol=1e-12)


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


@pytest.mark.parametrize("share", [colourfulness, low_frequencies])
@pytest.mark.parametrize("shape", [(4, 5, 5, 4), (5, 5, 3), (4, 5, 5, 1)])
def test_filters_have_three_colours(shape, share):
    with pytest.raises(ValueError, match="expected"):
        share(np.ones(shape))
