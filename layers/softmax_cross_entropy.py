"""Softmax and cross-entropy in one: multinomial logistic regression (paper §3.5).

    p[n, c] = exp(z[n, c] − m[n]) / Σ_j exp(z[n, j] − m[n])         m[n] = max_j z[n, j]
    L       = − 1/N Σ_n log p[n, label[n]]
    dL/dz[n, c] = (p[n, c] − [c = label[n]]) / N

Subtracting the largest logit changes nothing in exact arithmetic and keeps exp from overflowing.
The loss is computed as log Σ_j exp(z[n, j] − m) − (z[n, label] − m), which stays finite where p
itself has become 0. Softmax and logarithm together have the simple derivative above; apart, they
would divide by that 0.

Shapes: logits z, p, dL/dz (N, C); labels (N,) integers from 0 to C − 1; losses (N,). float32 or
float64. An untrained net gives every class about 1 / C: the first loss should be about ln(C), 6.908
for a thousand classes.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from layers.device import cuda, grid_for
from layers.layer import OnDevice

# --- host


@njit(cache=True)
def softmax_forward_host(logits, labels, probabilities, losses):
    for n in range(logits.shape[0]):
        largest = logits[n].max()
        total = losses.dtype.type(0)
        for c in range(logits.shape[1]):
            probabilities[n, c] = math.exp(logits[n, c] - largest)
            total += probabilities[n, c]
        for c in range(logits.shape[1]):
            probabilities[n, c] /= total
        losses[n] = math.log(total) - (logits[n, labels[n]] - largest)


@njit(cache=True)
def softmax_backward_host(probabilities, labels, dlogits):
    images = probabilities.dtype.type(probabilities.shape[0])
    for n in range(probabilities.shape[0]):
        for c in range(probabilities.shape[1]):
            target = probabilities.dtype.type(1 if c == labels[n] else 0)
            dlogits[n, c] = (probabilities[n, c] - target) / images


# --- kernels
#
# Forward: one thread per image n, which walks along its row three times. The threads of a warp are
# C elements apart: not coalesced, but logits are a few thousandths of a step's memory traffic.
# Backward: one thread per element, coalesced. No races, deterministic.


@cuda.jit
def softmax_forward_kernel(logits, labels, probabilities, losses):
    n = cuda.grid(1)
    if n >= logits.shape[0]:
        return
    largest = logits[n, 0]
    for c in range(1, logits.shape[1]):
        largest = max(largest, logits[n, c])
    total = losses.dtype.type(0)
    for c in range(logits.shape[1]):
        value = math.exp(logits[n, c] - largest)
        probabilities[n, c] = value
        total += value
    for c in range(logits.shape[1]):
        probabilities[n, c] /= total
    losses[n] = math.log(total) - (logits[n, labels[n]] - largest)


@cuda.jit
def softmax_backward_kernel(probabilities, labels, dlogits):
    index = cuda.grid(1)
    if index >= probabilities.size:
        return
    n = index // probabilities.shape[1]
    c = index % probabilities.shape[1]
    target = probabilities.dtype.type(1 if c == labels[n] else 0)
    images = probabilities.dtype.type(probabilities.shape[0])
    dlogits[n, c] = (probabilities[n, c] - target) / images


# --- layer


class SoftmaxCrossEntropy(OnDevice):
    """Mean cross-entropy of softmax(logits) against the labels (paper §3.5).

    After `forward`, `probabilities` (N, C) is the softmax. ValueError for labels of another
    shape, of no integer type, or outside 0 .. C − 1.

    `forward` is `load_labels`, `compute`, `value`, one after the other. Only `value` waits for a
    GPU: a caller of the three can leave the loss there until it is needed.
    """

    def __init__(self):
        super().__init__()
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
        """Probabilities and losses for logits (N, C) and the labels loaded last."""
        self.y = logits = self.check_array(logits, "logits")
        self.probabilities = self.buffer("probabilities", logits.shape)
        self.losses = self.buffer("losses", logits.shape[:1])
        arguments = logits, self.labels, self.probabilities, self.losses
        if self.device.is_cuda:
            softmax_forward_kernel[grid_for(logits.shape[0])](*arguments)
        else:
            softmax_forward_host(*arguments)

    def value(self):
        """The mean loss of the last pass, a float; waits until the device has computed it."""
        losses = self.device.to_host(self.losses)
        return sum(losses.tolist()) / len(losses)

    def backward(self):
        """-> dL/dlogits (N, C) of the last forward pass."""
        if self.y is None:
            raise RuntimeError(f"{self.name}: backward() needs a forward() before it")
        dlogits = self.buffer("dlogits", self.probabilities.shape)
        arguments = self.probabilities, self.labels, dlogits
        if self.device.is_cuda:
            softmax_backward_kernel[grid_for(dlogits.size)](*arguments)
        else:
            softmax_backward_host(*arguments)
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
