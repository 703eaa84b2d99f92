"""Random numbers as a function, not a sequence: the same bits on the host and on a GPU.

A usual generator hands out its numbers in order, so the n-th number exists only after the n-1
before it; ten thousand GPU threads cannot queue for that. A counter-based generator is a pure
function: bits = philox(counter, key). Each thread computes the numbers of its own elements, in
any order, as often as it likes; a mask need not be stored, since the backward pass can compute it
again; and a run resumed at step 1000 draws what the uninterrupted run drew there.

The function is Philox-4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers:
As Easy as 1, 2, 3", SC 2011). One round multiplies two of the four 32-bit counter words by
constants and mixes the high halves with the other two words and with the key; the key grows by
constants from round to round.

    counter = (element low, element high, step, layer)        four 32-bit words
    key     = (seed low, seed high)

Everything is written in uint64: a product of two 32-bit words fits, and Numba would turn a mix of
signed and unsigned into floating point. The one function below is compiled for the host, compiled
for the GPU, and run as it stands in the simulator.
"""

import math

import numpy as np
from numba import njit, prange

from layers.device import cuda

MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
KEY_STEP_0 = np.uint64(0x9E3779B9)
KEY_STEP_1 = np.uint64(0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def random_words(seed, layer, step, element):
    """The four 32-bit words of one counter, as uint64.

    seed, layer, step, element: uint64 (in kernels and njit functions write `np.uint64(...)`);
    `layer` and `step` count modulo 2³². Source: Philox-4x32-10, Salmon et al. 2011.
    """
    c0 = element & LOW
    c1 = element >> HALF
    c2 = step & LOW
    c3 = layer & LOW
    k0 = seed & LOW
    k1 = seed >> HALF
    for _ in range(10):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0 = (product_1 >> HALF) ^ c1 ^ k0
        c1 = product_1 & LOW
        c2 = (product_0 >> HALF) ^ c3 ^ k1
        c3 = product_0 & LOW
        k0 = (k0 + KEY_STEP_0) & LOW
        k1 = (k1 + KEY_STEP_1) & LOW
    return c0, c1, c2, c3


random_words_host = njit(random_words, cache=True)
random_words_device = cuda.jit(random_words, device=True, inline="always")

_WORD_RANGE = 2.0**-32
_TURN = 2.0 * math.pi


@njit(parallel=True, cache=True)
def _fill_words(seed, layer, step, elements, out):
    for i in prange(elements.size):
        out[i] = random_words_host(seed, layer, step, elements[i])[0]


@njit(cache=True)
def _polar(word, other):
    # Box and Muller: two uniform words make two normals, radius · cos(angle), radius · sin(angle).
    # (0, 1]: the logarithm of 0 must not occur.
    radius = math.sqrt(-2.0 * math.log((np.float64(word) + 1.0) * _WORD_RANGE))
    return radius, _TURN * (np.float64(other) * _WORD_RANGE)


@njit(parallel=True, cache=True)
def _fill_normal(seed, layer, std, out):
    # A counter's four words make four normals.
    for block in prange((out.size + 3) // 4):
        words = random_words_host(seed, layer, np.uint64(0), np.uint64(block))
        for pair in range(2):
            radius, angle = _polar(words[2 * pair], words[2 * pair + 1])
            i = 4 * block + 2 * pair
            if i < out.size:
                out[i] = std * radius * math.cos(angle)
            if i + 1 < out.size:
                out[i + 1] = std * radius * math.sin(angle)


@njit(parallel=True, cache=True)
def _fill_normals(seed, layer, step, elements, out):
    for i in prange(elements.size):
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
    _fill_normal(np.uint64(seed), np.uint64(layer), float(std), out)
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
