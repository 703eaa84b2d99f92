"""Exercise 1. Map: a thread for each element.

A kernel is a function that thousands of threads run at once, each with a number of its own:
`cuda.grid(1)`. Here there are exactly as many threads as elements. Thread i reads x[i] and writes
y[i]; no other thread touches these, so no thread has to wait.

What the kernel has to compute is said in NumPy, by the function above it.

Fill the gap `...`, and run the file: python examples/exercises/01_relu.py
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers


def specification(x):
    return np.maximum(x, 0)


@cuda.jit
def relu(x, y):
    i = cuda.grid(1)
    y[i] = ...


if __name__ == "__main__":
    mark(relu, specification, [(numbers(128),), (numbers(384),)], goal=Goal(coalescing=1, bytes=1))
