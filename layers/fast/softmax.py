"""Softmax, cross-entropy and their derivative on a GPU: a block for each image, one launch.

Replaces the kernels of `layers/softmax_cross_entropy.py`, which has the formulas, shapes and names.
There each image has one thread, which walks along 1,000 classes three times while most of the GPU
idles. Here 128 threads share the row: thread t takes classes t, t + 128, ..., and the largest logit
and the sum are found pairwise in shared memory. Once the sum is known, dL/dlogits is written in the
same pass: backward launches no kernel.
"""

import math

from layers.device import THREADS, cuda, grid_of
from layers.fast.reductions import mean
from layers.softmax_cross_entropy import SoftmaxCrossEntropy

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
    largest = logits[n, 0]
    for c in range(t, logits.shape[1], THREADS):
        largest = max(largest, logits[n, c])
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
        total += math.exp(logits[n, c] - largest)
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
        probability = math.exp(logits[n, c] - largest) / total
        probabilities[n, c] = probability
        target = losses.dtype.type(1 if c == labels[n] else 0)
        dlogits[n, c] = (probability - target) / images
    if t == 0:
        losses[n] = math.log(total) - (logits[n, labels[n]] - largest)


# --- loss


class SoftmaxRows(SoftmaxCrossEntropy):
    """SoftmaxCrossEntropy on a GPU by the kernel above, the mean loss on the device as well."""

    computed_by = "softmax_rows_kernel, mean_kernel"

    def compute(self, logits):
        """Probabilities, losses, their mean and dL/dlogits, for the labels loaded last."""
        self.y = logits = self.check_array(logits, "logits")
        self.probabilities = self.buffer("probabilities", logits.shape)
        self.losses = self.buffer("losses", logits.shape[:1])
        self.mean = self.buffer("mean", (1,))
        self.dlogits = self.buffer("dlogits", logits.shape)
        softmax_rows_kernel[grid_of(logits.shape[0], THREADS)](
            logits, self.labels, self.probabilities, self.losses, self.dlogits
        )
        mean(self.losses, self.mean)

    def value(self):
        """The mean loss of the last pass, a float; waits until the device has computed it."""
        return float(self.device.to_host(self.mean)[0])

    def backward(self):
        """-> dL/dlogits (N, C) of the last forward pass."""
        if self.y is None:
            raise RuntimeError(f"{self.name}: backward() needs a forward() before it")
        return self.dlogits
