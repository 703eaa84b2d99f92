"""Exercise 14. A tensor core: a warp multiplies two matrices in one instruction.

`mma_tf32(a, 0, b, 0, sums, 0)` computes sums += A B, for A of 16x8 and B of 8x8. No thread has a
whole matrix: lane l holds four numbers of A, two of B and four sums. With g = l // 4, t = l % 4:

    a       A[g, t]         A[g + 8, t]     A[g, t + 4]     A[g + 8, t + 4]
    b       B[t, g]         B[t + 4, g]
    sums    C[g, 2t]        C[g, 2t + 1]    C[g + 8, 2t]    C[g + 8, 2t + 1]

Load the fragments, multiply, and store the sums. x and w hold the bits of float32 numbers, as the
instruction takes them. All 32 lanes have to execute it.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # kernels run in the simulator: no GPU is needed

import numpy as np
from numba import float32, uint32

from layers.device import cuda
from layers.fast.conv.mma import mma_tf32
from tinyconv.lab.exercise import Goal, mark


def specification(x, w):
    return x.view(np.float32) @ w.view(np.float32)


@cuda.jit
def warp_product(x, w, y):
    a = cuda.local.array(4, uint32)
    b = cuda.local.array(2, uint32)
    sums = cuda.local.array(4, float32)
    g, t = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    for i in range(4):
        sums[i] = 0
    ...


def whole_numbers(*shape):
    """Bits of numbers that TF32 holds exactly."""
    return np.random.default_rng(shape).integers(-9, 9, shape).astype(np.float32).view(np.uint32)


if __name__ == "__main__":
    mark(
        warp_product,
        specification,
        [(whole_numbers(16, 8), whole_numbers(8, 8))],
        launch=lambda y: (1, 32),
        goal=Goal(coalescing=0.5),
    )
