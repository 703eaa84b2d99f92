"""Exercise 2. Guard: more threads than elements.

Threads come in blocks, here of 128, so 1,000 elements take eight blocks and 1,024 threads. The last
24 have no element. On a GPU nothing stops them from reading and writing beyond the end of an array,
where other data is. So almost every kernel begins with a guard, which keeps these threads away.

Write the whole body.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers


def specification(x):
    return x * x


@cuda.jit
def square(x, y):
    i = cuda.grid(1)
    ...


if __name__ == "__main__":
    mark(
        square,
        specification,
        [(numbers(1),), (numbers(129),), (numbers(1000),)],
        goal=Goal(coalescing=0.95),
    )
