"""Random numbers: the generator's published vectors, everywhere alike, and their statistics."""

import math

import numpy as np
import pytest

from layers.device import cuda
from layers.random_bits import random_words, random_words_device, random_words_host
from tinyconv.data.random_arrays import normal, normals, permutation, words

# Known answers of philox4x32-10, from the Random123 distribution (Salmon et al. 2011): four
# counter words, two key words, four result words.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def arguments(counter, key):
    """The published words as our (seed, layer, step, element)."""
    element, seed = counter[0] | counter[1] << 32, key[0] | key[1] << 32
    return [np.uint64(number) for number in (seed, counter[3], counter[2], element)]


@cuda.jit
def words_kernel(seed, layer, step, elements, out):
    i = cuda.grid(1)
    if i < elements.size:
        a, b, c, d = random_words_device(seed, layer, step, elements[i])
        out[i, 0] = a
        out[i, 1] = b
        out[i, 2] = c
        out[i, 3] = d


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_published_vectors_come_out_of_plain_python(counter, key, result):
    assert tuple(int(word) for word in random_words(*arguments(counter, key))) == result


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_published_vectors_come_out_of_the_compiled_function(counter, key, result):
    assert random_words_host(*arguments(counter, key)) == result


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_published_vectors_come_out_of_a_kernel(counter, key, result, cuda_device):
    seed, layer, step, element = arguments(counter, key)
    elements = cuda_device.array(np.array([element, 7], np.uint64))
    out = cuda_device.zeros((2, 4), np.uint64)
    words_kernel[1, 32](seed, layer, step, elements, out)
    assert tuple(cuda_device.to_host(out)[0]) == result
    expected = random_words(seed, layer, step, np.uint64(7))
    assert tuple(cuda_device.to_host(out)[1]) == tuple(int(word) for word in expected)


def test_words_are_the_first_of_each_counters_four_in_the_shape_of_the_elements():
    elements = np.array([[0, 1, 2], [2**32 - 1, 2**32 + 1, 2**63 + 5]], np.uint64)
    result = words(2**50 + 1, 3, 4, elements)
    assert result.shape == elements.shape
    assert result.dtype == np.uint32
    seed, layer, step = np.uint64(2**50 + 1), np.uint64(3), np.uint64(4)
    for i in np.ndindex(elements.shape):
        assert result[i] == random_words(seed, layer, step, elements[i])[0]


def test_elements_beyond_32_bits_draw_numbers_of_their_own():
    near, far = np.arange(100), np.arange(100) + 2**32
    assert (words(1, 2, 3, near) != words(1, 2, 3, far)).all()


@pytest.mark.parametrize(
    "other",
    [(1 + 2**32, 2, 3), (5, 2, 3), (1, 5, 3), (1, 2, 5)],
    ids=["high", "low", "layer", "step"],
)
def test_seed_layer_and_step_each_change_the_words(other):
    elements = np.arange(100)
    assert (words(1, 2, 3, elements) != words(*other, elements)).all()


def test_every_bit_of_the_words_is_set_half_the_time():
    drawn = words(0, 0, 0, np.arange(40_000))
    for bit in range(32):
        # Five standard deviations of a binomial share; the draw is the same every time.
        assert abs(((drawn >> np.uint32(bit)) & 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(40_000)


def test_normal_numbers_have_the_moments_of_a_normal_distribution():
    count = 200_000
    z = normal((count,), 1.0, 3, 4).astype(np.float64)
    # Five standard errors of each moment: variances of z, z², z³, z⁴ are 1, 2, 15, 96.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * np.sqrt(variance / count)
    # 4.55 % of them lie beyond two standard deviations.
    assert abs((np.abs(z) > 2).mean() - 0.0455) < 5 * np.sqrt(0.0455 / count)
    # The two normals of one Box-Muller pair, and of one counter, are independent.
    for distance in (1, 2):
        assert abs((z[:-distance] * z[distance:]).mean()) < 5 / np.sqrt(count)


def test_normal_numbers_are_float32_in_the_shape_asked_for_and_scale_with_std():
    z, wide = normal((3, 5, 7), 1.0, 1, 2), normal((3, 5, 7), 0.25, 1, 2)
    assert z.shape == (3, 5, 7)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(wide, z / 4)  # a power of two: exact
    assert not normal((3, 5), 0.0, 1, 2).any()


def test_normal_numbers_repeat_and_follow_seed_and_layer():
    first = normal((50,), 1.0, 1, 2)
    np.testing.assert_array_equal(normal((50,), 1.0, 1, 2), first)
    for seed, layer in ((2, 2), (1, 3), (1 + 2**32, 2)):
        assert (normal((50,), 1.0, seed, layer) != first).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 99])
def test_fewer_normal_numbers_are_the_beginning_of_more(count):
    np.testing.assert_array_equal(normal((count,), 1.0, 1, 2), normal((100,), 1.0, 1, 2)[:count])


def test_four_normal_numbers_an_element_are_box_and_mullers():
    elements = np.array([3, 2**32 + 3, 0, 3, 2**63 + 5], np.uint64)
    z = normals(2**50 + 1, 3, 4, elements)
    assert (z.shape, z.dtype) == ((5, 4), np.float64)
    seed, layer, step = np.uint64(2**50 + 1), np.uint64(3), np.uint64(4)
    for row, element in zip(z, elements, strict=True):
        a, b, c, d = (int(word) for word in random_words(seed, layer, step, element))
        expected = []
        for word, other in ((a, b), (c, d)):
            radius, angle = math.sqrt(-2 * math.log((word + 1) / 2**32)), math.tau * other / 2**32
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
        # The compiler's logarithm and cosine may differ from Python's in the last bits.
        np.testing.assert_allclose(row, expected, rtol=1e-13, atol=1e-13)


def test_four_normal_numbers_an_element_are_those_of_a_layers_weights_at_step_0():
    weights = normal((4 * 25,), 1.0, 5, 6)
    np.testing.assert_array_equal(
        normals(5, 6, 0, np.arange(25)).reshape(-1).astype(np.float32), weights
    )


def test_normal_numbers_belong_to_their_element_alone():
    together = normals(1, 2, 3, np.arange(1000))
    for element in (0, 1, 511, 999):
        np.testing.assert_array_equal(normals(1, 2, 3, np.array([element]))[0], together[element])
    for other in ((4, 2, 3), (1, 4, 3), (1, 2, 4)):
        assert (normals(*other, np.arange(1000)) != together).all()
    # Five standard errors: of a mean 1, of a variance √2, of a covariance 1, over √1000.
    assert np.abs(together.mean(axis=0)).max() < 5 / math.sqrt(1000)
    assert np.abs(np.cov(together.T) - np.eye(4)).max() < 5 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(count):
    order = permutation(count, 1, 2, 3)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_permutations_repeat_and_differ_by_seed_layer_and_step():
    first = permutation(1000, 1, 2, 3)
    np.testing.assert_array_equal(permutation(1000, 1, 2, 3), first)
    assert (first != np.arange(1000)).mean() > 0.98
    for other in ((4, 2, 3), (1, 4, 3), (1, 2, 4)):
        assert (permutation(1000, *other) != first).mean() > 0.98
