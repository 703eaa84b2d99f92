"""Softmax and cross-entropy in one: multinomial logistic regression (paper §3.5).

    p[n, c] = exp(z[n, c] − m[n]) / Σ_j exp(z[n, j] − m[n])         m[n] = max_j z[n, j]
    L       = − 1/N Σ_n log p[n, label[n]]
    dL/dz[n, c] = (p[n, c] − [c = label[n]]) / N

Subtracting the largest logit changes nothing in exact arithmetic and keeps exp from overflowing.
The loss is computed as log Σ_j exp(z[n, j] − m) − (z[n, label] − m), which stays finite where p
itself has become 0. Softmax and logarithm together have the simple derivative above; apart, they
would divide by that 0.

Shapes: logits z, p, dL/dz (N, C); labels (N,) integers from 0 to C − 1. float32 or float64;
in kernels z and dL/dz may be bfloat16.
An untrained net that knows nothing gives every class 1 / C: the first loss should be about
ln(C), 6.908 for a thousand classes.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from layers.device import cuda, grid_for
from layers.fast.bfloat16 import narrow, round_bf16, widen
from layers.fast.reductions import mean
from layers.fast.softmax import softmax_rows
from layers.layer import OnDevice

# --- host
#
# One thread: it is done before another would be awake.

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
def softmax_forward_host(logits, labels, probabilities, losses):
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


@njit(cache=True, error_model="numpy")
def softmax_backward_host(probabilities, labels, dlogits):
    images = probabilities.dtype.type(probabilities.shape[0])
    for n in range(probabilities.shape[0]):
        for c in range(probabilities.shape[1]):
            target = probabilities.dtype.type(c == labels[n])
            dlogits[n, c] = (probabilities[n, c] - target) / images


# --- kernels
#
# Forward: one thread per image n, which walks along its row three times. Threads of a warp are C
# elements apart: not coalesced, and of no account, since logits are a few thousandths of a step's
# memory traffic. Backward: one thread per element, coalesced. No races, deterministic.


@cuda.jit
def softmax_forward_kernel(logits, labels, probabilities, losses):
    n = cuda.grid(1)
    if n >= logits.shape[0]:
        return
    largest = widen(logits[n, 0])
    for c in range(1, logits.shape[1]):
        largest = max(largest, widen(logits[n, c]))
    total = losses.dtype.type(0)
    for c in range(logits.shape[1]):
        value = math.exp(widen(logits[n, c]) - largest)
        probabilities[n, c] = value
        total += value
    for c in range(logits.shape[1]):
        probabilities[n, c] /= total
    losses[n] = math.log(total) - (widen(logits[n, labels[n]]) - largest)


@cuda.jit
def softmax_backward_kernel(probabilities, labels, dlogits):
    index = cuda.grid(1)
    if index >= probabilities.size:
        return
    n = index // probabilities.shape[1]
    c = index % probabilities.shape[1]
    target = probabilities.dtype.type(1 if c == labels[n] else 0)
    images = probabilities.dtype.type(probabilities.shape[0])
    dlogits[n, c] = narrow((probabilities[n, c] - target) / images, dlogits)


# --- layer


class SoftmaxCrossEntropy(OnDevice):
    """Mean cross-entropy of softmax(logits) against the labels (paper §3.5).

    After `forward`, `probabilities` (N, C) is the softmax. ValueError for labels of another
    shape, of no integer type, or outside 0 .. C − 1. fuse: on a GPU compute the gradient along with
    the loss, by the kernel of `layers/fast/softmax.py`.

    `forward` is `load_labels`, `compute`, `value`, one after the other. Only `value` waits for a
    GPU: whoever calls the three by themselves can leave the loss there until it is wanted.
    """

    def __init__(self, fuse=True):
        super().__init__()
        self.fuse = fuse
        self.probabilities: Any = None
        self.losses: Any = None
        self.labels: Any = None

    def forward(self, logits, labels):
        """logits (N, C), labels (N,) on the host or the device -> the mean loss, a float."""
        logits = self.check_array(logits, "logits")
        self.load_labels(labels, logits.shape)
        self.compute(logits)
        return self.value()

    def load_labels(self, labels, shape):
        """Check labels (N,) for logits of `shape` (N, C), and write them to the device."""
        labels = self._checked(labels, shape)
        self.labels = self.buffer("labels", labels.shape, np.int64)
        self.device.write(self.labels, labels)

    def compute(self, logits):
        """Probabilities, losses and their mean for logits (N, C) and the labels loaded last."""
        self.y = logits = self.check_array(logits, "logits")
        self.probabilities = self.buffer("probabilities", logits.shape)
        self.losses = self.buffer("losses", logits.shape[:1])
        self.mean = self.buffer("mean", (1,))
        results = self.labels, self.probabilities, self.losses
        if not self.device.is_cuda:
            softmax_forward_host(logits, *results)
            return
        arguments = logits, *results
        if self.fuse:
            softmax_rows(*arguments, self.buffer("dlogits", logits.shape, self.storage))
        else:
            softmax_forward_kernel[grid_for(logits.shape[0])](*arguments)
        mean(self.losses, self.mean)

    def value(self):
        """The mean loss of the last pass, a float; waits until the device has it."""
        if self.device.is_cuda:
            return float(self.device.to_host(self.mean)[0])
        return sum(self.losses.tolist()) / len(self.losses)

    def backward(self):
        """-> dL/dlogits (N, C) of the last forward pass."""
        if self.y is None:
            raise RuntimeError("SoftmaxCrossEntropy: backward() needs a forward() before it")
        dlogits = self.buffer("dlogits", self.probabilities.shape, self.storage)
        if self.device.is_cuda and self.fuse:
            return dlogits
        arguments = self.probabilities, self.labels, dlogits
        if self.device.is_cuda:
            softmax_backward_kernel[grid_for(dlogits.size)](*arguments)
        else:
            softmax_backward_host(*arguments)
            if self.precision == "bf16":
                round_bf16(dlogits, dlogits)
        return dlogits

    def _checked(self, labels, shape):
        labels = self.device.to_host(labels)
        if len(shape) != 2 or labels.shape != shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: logits {shape} need integer labels {shape[:1]}, "
                f"got {labels.dtype} {labels.shape}"
            )
        wrong = [n for n, label in enumerate(labels.tolist()) if not 0 <= label < shape[1]]
        if wrong:
            raise ValueError(
                f"{self.name}: labels[{wrong[0]}] is {labels[wrong[0]]}, and {len(wrong)} label(s) "
                f"in all are outside 0..{shape[1] - 1} for logits {shape}"
            )
        return labels
