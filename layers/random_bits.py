"""Random numbers as a function, not a sequence: the same bits on the host and on a GPU.

A usual generator produces its numbers in order, the n-th after the n-1 before it; ten thousand GPU
threads cannot wait for that. A counter-based generator is a pure function: bits = philox(counter,
key). Each thread computes the numbers of its own elements, in any order and as often as it needs;
a mask need not be stored, because the backward pass can compute it again; and a run resumed at
step 1000 draws what the uninterrupted run drew there.

The function is Philox-4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers:
As Easy as 1, 2, 3", SC 2011). One round multiplies two of the four 32-bit counter words by
constants and mixes the high halves with the other two words and with the key; the key grows by
constants from round to round.

    counter = (element low, element high, step, layer)        four 32-bit words
    key     = (seed low, seed high)

Everything is written in uint64: a product of two 32-bit words fits, and Numba would turn a mix of
signed and unsigned into floating point. The one function below is compiled for the host, compiled
for the GPU, and run as plain Python in the simulator.
"""

import numpy as np
from numba import njit

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


random_words_host = njit(random_words, inline="always")  # the compiler vectorizes its caller
random_words_device = cuda.jit(random_words, device=True, inline="always")
