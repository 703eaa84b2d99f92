"""Exercise 3. A place in an image: from a thread's number to (n, h, w, c).

Images are stored as (N, H, W, C), channels last: c is the fastest index, then w, h, n. Take the
mean of its channel from every pixel. The threads are numbered 0, 1, 2, ... and you have to find
each one's n, h, w, c with // and %.

Any assignment of threads to elements gives the right result. But a warp, 32 threads with
neighbouring numbers, reads memory together, in sectors of 32 bytes. If neighbours in the warp are
neighbours in memory, no byte of a sector is wasted: the access is coalesced. That is the goal.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np

from layers.device import cuda
from tinyconv.lab.exercise import Goal, mark, numbers


def specification(x, mean):
    return x - mean


@cuda.jit
def centre(x, mean, y):
    index = cuda.grid(1)
    if index >= x.size:
        return
    c = ...
    w = ...
    h = ...
    n = ...
    y[n, h, w, c] = x[n, h, w, c] - mean[c]


if __name__ == "__main__":
    images = [numbers(2, 3, 5, 7), numbers(1, 1, 1, 1), numbers(2, 4, 6, 12)]
    mark(
        centre,
        specification,
        [(x, numbers(x.shape[3])) for x in images],
        goal=Goal(coalescing=1),
    )
