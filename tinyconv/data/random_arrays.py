"""Arrays of random numbers: initial weights, crops, colours, the order of an epoch.

Each number is a function of (seed, layer, step, element), the Philox generator of
`layers/random_bits.py`; always computed on the host, so that a run does not depend on its device.
"""

import math

import numpy as np
from numba import njit

from layers.fast.host.threads import in_parallel, shares
from layers.random_bits import random_words_host

_WORD_RANGE = 2.0**-32
_TURN = 2.0 * math.pi


@njit(cache=True)
def _fill_words(seed, layer, step, elements, out):
    for i in range(elements.size):
        out[i] = random_words_host(seed, layer, step, elements[i])[0]


@njit(cache=True)
def _polar(word, other):
    # Box and Muller: two uniform words make two normals, radius · cos(angle), radius · sin(angle).
    # (0, 1]: the logarithm of 0 must not occur.
    radius = math.sqrt(-2.0 * math.log((np.float64(word) + 1.0) * _WORD_RANGE))
    return radius, _TURN * (np.float64(other) * _WORD_RANGE)


@njit(nogil=True, cache=True)
def _fill_normal(seed, layer, std, first, out):
    # A counter's four words make four normals; `first` counters are before those of `out`.
    for block in range((out.size + 3) // 4):
        words = random_words_host(seed, layer, np.uint64(0), np.uint64(first + block))
        for pair in range(2):
            radius, angle = _polar(words[2 * pair], words[2 * pair + 1])
            i = 4 * block + 2 * pair
            if i < out.size:
                out[i] = std * radius * math.cos(angle)
            if i + 1 < out.size:
                out[i + 1] = std * radius * math.sin(angle)


@njit(cache=True)
def _fill_normals(seed, layer, step, elements, out):
    for i in range(elements.size):
        words = random_words_host(seed, layer, step, elements[i])
        for pair in range(2):
            radius, angle = _polar(words[2 * pair], words[2 * pair + 1])
            out[i, 2 * pair] = radius * math.cos(angle)
            out[i, 2 * pair + 1] = radius * math.sin(angle)


def words(seed: int, layer: int, step: int, elements: np.ndarray) -> np.ndarray:
    """One 32-bit word for each of `elements` (integers of any shape), as uint32 of that shape."""
    flat = np.ascontiguousarray(elements).astype(np.uint64).reshape(-1)
    out = np.empty(flat.size, np.uint32)
    _fill_words(np.uint64(seed), np.uint64(layer), np.uint64(step), flat, out)
    return out.reshape(np.shape(elements))


def normal(shape: tuple[int, ...], std: float, seed: int, layer: int) -> np.ndarray:
    """float32 numbers of `shape` drawn from N(0, std²): a layer's initial weights.

    Always computed on the host, in float64 and then rounded, so that the weights are the same
    whatever device trains them.
    """
    out = np.empty(math.prod(shape), np.float32)
    key = np.uint64(seed), np.uint64(layer)

    def fill(_: int, part: slice) -> None:
        _fill_normal(*key, float(std), part.start, out[4 * part.start : 4 * part.stop])

    in_parallel(fill, shares(-(-out.size // 4)))
    return out.reshape(shape)


def normals(seed: int, layer: int, step: int, elements: np.ndarray) -> np.ndarray:
    """Four numbers drawn from N(0, 1) for each of `elements` (integers (N,)): float64 (N, 4).

    Computed on the host, whatever device uses them.
    """
    flat = np.ascontiguousarray(elements).astype(np.uint64).reshape(-1)
    out = np.empty((flat.size, 4))
    _fill_normals(np.uint64(seed), np.uint64(layer), np.uint64(step), flat, out)
    return out


def permutation(count: int, seed: int, layer: int, step: int) -> np.ndarray:
    """A random order of 0 .. count-1 (int64): the ranks of `count` random words."""
    return np.argsort(words(seed, layer, step, np.arange(count)), kind="stable")
