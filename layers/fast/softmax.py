"""Softmax, cross-entropy and their derivative on a GPU: a block for each image, one launch.

Replaces the kernels of `layers/softmax_cross_entropy.py`, which has the formulas, shapes and names.
There each image has one thread, which walks along 1,000 classes three times while most of the GPU
idles. Here 128 threads share the row: thread t takes classes t, t + 128, ..., and the largest logit
and the sum are found pairwise in shared memory. Once the sum is known, dL/dlogits is written in the
same pass: backward launches no kernel.

hits[n] is 1 if the label of image n has the largest logit (of equal ones the first counts), else 0.
So loss and accuracy of a batch stay on the GPU, and training reads them a step later (`pending`).
"""

import math

import numpy as np

from layers.device import THREADS, cuda, grid_of
from layers.fast.reductions import totals_of
from layers.fast.streams import Downloads, Pending
from layers.softmax_cross_entropy import SoftmaxCrossEntropy

# --- kernel
#
# One block owns row n of probabilities and dlogits, losses[n] and hits[n]. Neighbouring threads
# read and write neighbouring classes: coalesced. The exponentials are computed twice instead of
# being stored in between. A barrier separates the rounds of a tree, and one more its memory's next
# use. The order of additions is fixed: no races, deterministic.


@cuda.jit
def softmax_rows_kernel(logits, labels, probabilities, losses, hits, dlogits):
    shared = cuda.shared.array(THREADS, losses.dtype)
    places = cuda.shared.array(THREADS, np.int32)
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
    place = np.int32(logits.shape[1])  # the thread's first class with the largest logit
    for c in range(t, logits.shape[1], THREADS):
        total += math.exp(logits[n, c] - largest)
        if logits[n, c] == largest:
            place = min(place, np.int32(c))
    shared[t], places[t] = total, place
    cuda.syncthreads()
    active = THREADS // 2
    while active > 0:
        if t < active:
            shared[t] += shared[t + active]
            places[t] = min(places[t], places[t + active])
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
        hits[n] = losses.dtype.type(1 if places[0] == labels[n] and math.isfinite(total) else 0)


# --- loss


class SoftmaxRows(SoftmaxCrossEntropy):
    """SoftmaxCrossEntropy on a GPU by the kernel above, its totals on the device as well.

    After `compute`, `totals` (2,) are the mean loss and the number of hits, and `skip` (1,) int32
    is 1 once the mean loss of any batch was not finite.
    """

    computed_by = "softmax_rows_kernel, totals_kernel"

    def to(self, device, dtype=None):
        """As every loss; `skip` is cleared."""
        super().to(device, dtype)
        self.totals = self.device.zeros((2,), self.dtype)
        self.skip = self.device.zeros((1,), np.int32)
        self.downloads = Downloads(self.device, 2, self.dtype)
        return self

    def compute(self, logits):
        """Probabilities, losses, hits, totals and dL/dlogits, for the labels loaded last."""
        self.y = logits = self.check_array(logits, "logits")
        self.probabilities = self.buffer("probabilities", logits.shape)
        self.losses = self.buffer("losses", logits.shape[:1])
        self.hits = self.buffer("hits", logits.shape[:1])
        self.dlogits = self.buffer("dlogits", logits.shape)
        softmax_rows_kernel[grid_of(logits.shape[0], THREADS)](
            *(logits, self.labels, self.probabilities, self.losses, self.hits, self.dlogits)
        )
        totals_of(self.losses, self.hits, self.totals, self.skip)

    def value(self):
        """The mean loss of the last pass, a float; waits until the device has computed it."""
        return float(self.device.to_host(self.totals)[0])

    def pending(self):
        """Mean loss and hits of the last pass, `Pending`; to be read before the next but one."""
        values, event = self.downloads.begin(self.totals)
        return Pending(values, 0, event, self.skip), Pending(values, 1, event)

    def backward(self):
        """-> dL/dlogits (N, C) of the last forward pass."""
        if self.y is None:
            raise RuntimeError(f"{self.name}: backward() needs a forward() before it")
        return self.dlogits
