"""Exercise 16. Momentum: the optimizer of the paper.

A step changes every weight w by its velocity v, a decaying sum of earlier steps (paper, section 5):

    v = momentum * v - lr * decay * w - lr * gradient
    w = w + v

The weight that decays is that before the step. One thread owns one weight and its velocity, and
changes both in place. Each number is read once and written once; that is the goal.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers


def specification(w, v, gradient, lr, momentum, decay):
    v = momentum * v - lr * decay * w - lr * gradient
    return w + v, v


@cuda.jit
def sgd(w, v, gradient, lr, momentum, decay):
    i = cuda.grid(1)
    ...


if __name__ == "__main__":
    settings = np.float32(0.1), np.float32(0.9), np.float32(0.5)
    inputs = [(numbers(n), numbers(n, seed=1), numbers(n, seed=2), *settings) for n in (1, 1000)]
    mark(sgd, specification, inputs, goal=Goal(coalescing=0.95, bytes=1.05), updates=("w", "v"))
