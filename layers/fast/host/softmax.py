"""Softmax and cross-entropy on the host, by NumPy's vectorized functions.

Replaces the forward loop of `layers/softmax_cross_entropy.py`, which has the formulas, shapes and
names. There `math.exp` is a function call for each logit; NumPy computes several at once. For a few
classes the calls of NumPy take longer, and the loop computes them. One thread: it is done before
another would be awake.
"""

import numpy as np

from layers.softmax_cross_entropy import SoftmaxCrossEntropy

WORTH_IT = 256
"""Classes from which on NumPy is faster than the loop, with a batch of 64. It does not depend on
the batch, so that an image has the same bits in any."""


class SoftmaxVectorized(SoftmaxCrossEntropy):
    """SoftmaxCrossEntropy on the host; of many classes forward by NumPy, else the book's loops."""

    computed_by = "NumPy, softmax_backward_host"

    def compute(self, logits):
        """Probabilities and losses for logits (N, C) and the labels loaded last."""
        if logits.shape[1] < WORTH_IT:
            super().compute(logits)
            return
        self.y = logits = self.check_array(logits, "logits")
        self.probabilities = p = self.buffer("probabilities", logits.shape)
        self.losses = self.buffer("losses", logits.shape[:1])
        with np.errstate(all="ignore"):  # the loss of logits that are not finite says so itself
            np.subtract(logits, logits.max(axis=1, keepdims=True), out=p)
            right = p[np.arange(len(p)), self.labels]
            np.exp(p, out=p)
            total = p.sum(axis=1)
            p /= total[:, None]
            np.subtract(np.log(total), right, out=self.losses)
