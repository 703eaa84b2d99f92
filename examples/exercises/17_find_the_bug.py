"""Exercise 17. Find the bug: a net that does not learn.

Points in the plane belong to class 1 if both coordinates have the same sign. Two linear layers with
a ReLU between them can learn that, in a hundred steps. This net does not, without any error. There
is no gap to fill, but a line to correct. What does the loss do from step to step? Are the
derivatives right (compare one with a central difference)? If they are, what becomes of them?

    python examples/exercises/17_find_the_bug.py
"""

import numpy as np

from tinyconv.lab.exercise import mark_training


def train():
    """The loss of each of 100 steps."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 2))
    label = (x[:, 0] * x[:, 1] > 0).astype(int)
    weights = [rng.standard_normal((2, 16)), np.zeros(16), rng.standard_normal((16, 2)) / 4]
    velocities = [np.zeros_like(w) for w in weights]
    losses = []
    for _ in range(100):
        w1, b1, w2 = weights
        # Forward: linear, ReLU, linear, softmax, cross-entropy.
        z = x @ w1 + b1
        hidden = np.maximum(z, 0)
        logits = hidden @ w2
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        losses.append(float(-np.log(probabilities[np.arange(256), label]).mean()))
        # Backward, in reverse order.
        dlogits = (probabilities - np.eye(2)[label]) / 256
        dw2 = hidden.T @ dlogits
        dz = dlogits @ w2.T * (z > 0)
        dw1, db1 = x.T @ dz, dz.sum(axis=0)
        # Momentum SGD.
        for w, v, gradient in zip(weights, velocities, [dw1, db1, dw2], strict=True):
            v = 0.9 * v - 0.5 * gradient
            w = w + v
    return losses


if __name__ == "__main__":
    mark_training(train, below=0.1)
