"""Softmax and cross-entropy on the host, by NumPy's vectorized functions.

Replaces the forward loop of `layers/softmax_cross_entropy.py`, which has the formulas, shapes and
names. There `math.exp` is a function call for each logit; NumPy computes several at once. One
thread: it is done before another would be awake.
"""

import numpy as np

from layers.softmax_cross_entropy import SoftmaxCrossEntropy


class SoftmaxVectorized(SoftmaxCrossEntropy):
    """SoftmaxCrossEntropy on the host; forward by NumPy, backward as in the book."""

    computed_by = "NumPy, softmax_backward_host"

    def compute(self, logits):
        """Probabilities and losses for logits (N, C) and the labels loaded last."""
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
