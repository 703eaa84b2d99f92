"""Exercise 8. A sum: threads that work together.

Each block adds up 128 numbers. Its threads share an array, `tile`, fast memory on the chip. First
every thread copies one number into it. Then half of the threads add the other half's number to
their own, then half of those, until tile[0] holds the sum, after seven rounds.

Threads run at their own pace. So between writing an element and another thread's reading of it
stands a barrier, `cuda.syncthreads()`, that all threads of the block have to reach: no `return`
before it, no `if` around it. In which order you pair the threads decides whether their 32 lanes
read from 32 banks of shared memory, or queue at a few.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np
from numba import float32

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers

BLOCK = 128


def specification(x):
    return x.reshape(-1, BLOCK).sum(axis=1)


@cuda.jit
def block_sums(x, total):
    tile = cuda.shared.array(BLOCK, float32)
    t = cuda.threadIdx.x
    tile[t] = x[cuda.grid(1)]
    ...
    if t == 0:
        total[cuda.blockIdx.x] = tile[0]


if __name__ == "__main__":
    inputs = [(numbers(BLOCK),), (numbers(5 * BLOCK),)]
    mark(
        block_sums,
        specification,
        inputs,
        launch=lambda total: (total.size, BLOCK),
        goal=Goal(coalescing=0.9, conflicts=1),
    )
