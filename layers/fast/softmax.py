"""Softmax, cross-entropy and their derivative, rung 2: a block for each image, one launch.

Formulas, shapes and names are those of `layers/softmax_cross_entropy.py`, whose kernels stay what
to read and step through. Rung 1 gives each image a thread, which walks along 1,000 classes three
times while the rest of the GPU looks on. Here 128 threads share the walk: thread t takes classes t,
t + 128, ..., and the largest logit and the sum are found pairwise in shared memory. As soon as the
sum is known, so is dL/dlogits, which is written in the same pass: the backward pass has no launch.
"""

import math

from layers.device import THREADS, cuda, grid_of
from layers.fast.bfloat16 import narrow, widen

# --- kernel
#
# One block owns row n of probabilities and dlogits, and losses[n]. Neighbouring threads read and
# write neighbouring classes: coalesced. The exponentials are computed twice instead of being
# stored in between. All threads meet between the rounds of a tree, and once more before its memory
# is used again. The order of additions is fixed: no races, deterministic.


@cuda.jit
def softmax_rows_kernel(logits, labels, probabilities, losses, dlogits):
    shared = cuda.shared.array(THREADS, losses.dtype)
    n, t = cuda.blockIdx.x, cuda.threadIdx.x
    largest = widen(logits[n, 0])
    for c in range(t, logits.shape[1], THREADS):
        largest = max(largest, widen(logits[n, c]))
    shared[t] = largest
    cuda.syncthreads()
    active = THREADS // 2
    while active > 0:
        if t < active:
            shared[t] = max(shared[t], shared[t + active])
        cuda.syncthreads()
        active //= 2
    largest = shared[0]
    cuda.syncthreads()
    total = losses.dtype.type(0)
    for c in range(t, logits.shape[1], THREADS):
        total += math.exp(widen(logits[n, c]) - largest)
    shared[t] = total
    cuda.syncthreads()
    active = THREADS // 2
    while active > 0:
        if t < active:
            shared[t] += shared[t + active]
        cuda.syncthreads()
        active //= 2
    total = shared[0]
    images = losses.dtype.type(logits.shape[0])
    for c in range(t, logits.shape[1], THREADS):
        probability = math.exp(widen(logits[n, c]) - largest) / total
        probabilities[n, c] = probability
        target = losses.dtype.type(1 if c == labels[n] else 0)
        dlogits[n, c] = narrow((probability - target) / images, dlogits)
    if t == 0:
        losses[n] = math.log(total) - (widen(logits[n, labels[n]]) - largest)


# --- launch


def softmax_rows(logits, labels, probabilities, losses, dlogits):
    """Fill probabilities, losses and dlogits from logits (N, C) and labels (N)."""
    launch = softmax_rows_kernel[grid_of(logits.shape[0], THREADS)]
    launch(logits, labels, probabilities, losses, dlogits)
