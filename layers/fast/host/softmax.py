"""Softmax and cross-entropy on the host, several classes at a time.

Replaces the forward loop of `layers/softmax_cross_entropy.py`, which has the formulas, shapes and
names. There `math.exp` is a function call for each logit; here maxima, exponentials and sums are
written so that the compiler vectorizes them. One thread: it is done before another would be awake.
"""

import math

import numpy as np
from numba import njit

from layers.softmax_cross_entropy import SoftmaxCrossEntropy

# --- host

TAYLOR = tuple(np.float32(1 / math.factorial(k)) for k in range(7, -1, -1))
LOG2_E = np.float32(1 / math.log(2))
LN_2_HIGH = np.float32(0.693359375)  # 10 bits: n · LN_2_HIGH is exact
LN_2_LOW = np.float32(math.log(2) - 0.693359375)
TO_INTEGER = np.float32(1.5 * 2**23)


@njit(cache=True)
def in_order(bits):
    """The bits of a float32 as an int32 that is larger for a larger number; its own inverse."""
    return bits ^ (bits >> 31 & np.int32(0x7FFFFFFF))


@njit(cache=True)
def largest_host(x):
    """max x[i]; if there is a NaN it may be anything, since then the sum will be one."""
    if x.itemsize == 8:
        largest = x[0]
        for i in range(1, x.size):
            largest = max(largest, x[i])
        return largest
    # Of integers the compiler compares several at once; of floats it may not, because of NaN.
    bits = x.view(np.int32)
    key = in_order(bits[0])
    for i in range(1, x.size):
        key = max(key, in_order(bits[i]))
    return np.int32(in_order(key)).view(np.float32)


@njit(cache=True, fastmath={"contract"})
def exp_host(x):
    """x[i] = e^x[i] in place, for x[i] <= 0; in float32 0 below e^-87, to one last digit."""
    if x.itemsize == 8:
        for i in range(x.size):
            x[i] = math.exp(x[i])
        return
    # math.exp is a function call for each number; this is arithmetic, done for several at once.
    # With n = x / ln 2, rounded, and r = x − n ln 2, e^x is 2^n e^r, and |r| <= 0.35: Taylor's
    # series needs eight terms.
    for i in range(x.size):
        # The sum is so large that its last digit stands for 1: it holds n in its last bits.
        shifted = np.float32(x[i] * LOG2_E + TO_INTEGER)
        n = shifted - TO_INTEGER
        r = x[i] - n * LN_2_HIGH - n * LN_2_LOW
        series = np.float32(0)
        for coefficient in TAYLOR:
            series = series * r + coefficient
        # The exponent of a float32 is stored in bits 23 to 30, with 127 added.
        power = np.int32(shifted.view(np.int32) + 127 << 23).view(np.float32)
        x[i] = 0 if x[i] < -87 else series * power


@njit(cache=True, fastmath={"reassoc", "nsz"})
def sum_host(x):
    """Σ x[i], in an order that the compiler chooses: several sums side by side."""
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i]
    return total


@njit(cache=True, error_model="numpy")
def softmax_vectorized_host(logits, labels, probabilities, losses):
    for n in range(logits.shape[0]):
        p = probabilities[n]
        largest = largest_host(logits[n])
        for c in range(p.size):
            p[c] = logits[n, c] - largest
        right = p[labels[n]]
        exp_host(p)
        total = sum_host(p)
        for c in range(p.size):
            p[c] /= total
        losses[n] = math.log(total) - right


# --- loss


class SoftmaxVectorized(SoftmaxCrossEntropy):
    """SoftmaxCrossEntropy on the host; forward by the loop above, backward as in the book."""

    computed_by = "softmax_vectorized_host, softmax_backward_host"

    def compute(self, logits):
        """Probabilities and losses for logits (N, C) and the labels loaded last."""
        self.y = logits = self.check_array(logits, "logits")
        self.probabilities = self.buffer("probabilities", logits.shape)
        self.losses = self.buffer("losses", logits.shape[:1])
        softmax_vectorized_host(logits, self.labels, self.probabilities, self.losses)
