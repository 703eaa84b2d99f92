"""Exercise 15. A layer of your own: write backward so that the slopes agree.

A layer is a pair. forward computes y from x and keeps what the derivative needs; backward takes
dL/dy and returns dL/dx. Swish is x times a sigmoid:

    y = x * s(x),   s(x) = 1 / (1 + exp(-x)),   s'(x) = s(x) * (1 - s(x))

The gradient check moves each x by a little, in float64, looks how much the output moves, and
compares that with what backward says. It knows nothing of formulas, so it cannot be fooled by one.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers import Layer
from tinyconv.lab.exercise import mark_layer, numbers


class Swish(Layer):
    """y = x * s(x)."""

    def forward(self, x, train=True):
        """x -> y, of any shape."""
        self.x = x
        self.s = 1 / (1 + np.exp(-x))
        return x * self.s

    def backward(self, dy):
        """dL/dy -> dL/dx."""
        return ...


if __name__ == "__main__":
    mark_layer(Swish(), numbers(3, 5))
