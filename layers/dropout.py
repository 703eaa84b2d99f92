"""Dropout (paper §4.2): in training each unit is set to zero with probability p.

    mode "paper"      training  y = m · x                testing  y = (1 − p) · x
    mode "inverted"   training  y = m · x / (1 − p)      testing  y = x

    dL/dx = dL/dy times the same factor that multiplied x

m is 1 with probability 1 − p and 0 otherwise, drawn for each unit, image and step. The paper
halves the outputs at test time (p = 0.5); the inverted form, common today, scales in training
instead, so that testing needs nothing. In expectation both give the next layer the same ratio of
training to testing input.

The mask is not stored: m[i] is a function of (seed, layer, step, i), `layers/random_bits.py`, and
the backward pass computes it again. `forward(train=True)` advances to the next step by itself;
`set_step` puts the layer at a given step, as a resumed run or a gradient check needs. The key of
the mask (seed, layer, step, first element) is in device memory and not an argument of the launch,
because a launch recorded in a CUDA graph keeps its arguments and would repeat one mask forever.

Any shape; float32 or float64; the mask does not depend on the device or the dtype.
"""

import numpy as np
from numba import njit, prange

from layers.device import cuda, grid_for
from layers.layer import Layer
from layers.random_bits import random_words_device, random_words_host

# --- host


@njit(parallel=True, cache=True)
def dropout_host(x, y, factor, threshold, key):
    seed, layer, step, first = key[0], key[1], key[2], key[3]
    for i in prange(x.size):
        word = random_words_host(seed, layer, step, first + np.uint64(i))[0]
        y[i] = x[i] * factor if word >= threshold else x.dtype.type(0)


# --- kernel
#
# One thread per element of the flat arrays: coalesced, no races, deterministic. It serves both
# passes: backward runs it on dy with the same key, which all threads share (a broadcast). Each
# thread computes four random words and uses one; the arithmetic hides behind the loads of x.


@cuda.jit
def dropout_kernel(x, y, factor, threshold, key):
    i = cuda.grid(1)
    if i >= x.size:
        return
    word = random_words_device(key[0], key[1], key[2], key[3] + np.uint64(i))[0]
    y[i] = x[i] * factor if word >= threshold else x.dtype.type(0)


# --- layer


class Dropout(Layer):
    """Zero each unit with probability p while training (paper §4.2).

    mode: "paper" (test outputs are multiplied by 1 − p) or "inverted". 0 <= p < 1, else
    ValueError. `seed`, `stream` and `step` choose the mask; a net gives each of its layers its own
    `stream`. Where several processes share a batch, `first_row` is the first row of this one's.
    """

    def __init__(self, p=0.5, mode="paper"):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be at least 0 and below 1, not {p}")
        if mode not in ("paper", "inverted"):
            raise ValueError(f"Dropout: mode must be 'paper' or 'inverted', not {mode!r}")
        self.p, self.mode = p, mode
        self.seed, self.stream, self.step = 0, 0, 0
        self.first_row, self.first = 0, 0
        self.key, self._written = None, None

    def to(self, device, dtype=None):
        """Move the layer; it keeps its step."""
        self.key, self._written = None, None
        return super().to(device, dtype)

    def set_step(self, step):
        """The next training pass is that of step `step`."""
        self.step = step

    def set_seed(self, seed, stream):
        """Masks follow `seed` and `stream` from the next pass on."""
        self.seed, self.stream = seed, stream

    def forward(self, x, train=True):
        """x (N, ...) -> y of the same shape."""
        x = self.check_input(x)
        self.y = self.buffer("y", x.shape)
        self.begin_pass(train, x.size // len(x))
        return self._apply(x, self.y)

    def backward(self, dy):
        """dy -> dx, both of x's shape, with the mask of the last forward pass."""
        dy = self.check_gradient(dy)
        return self._apply(dy, self.buffer("dx", dy.shape))

    def begin_pass(self, train, row):
        """Set factor, threshold and key of a pass over rows of `row` elements.

        A training pass advances to the next step.
        """
        self.first = self.first_row * row
        keep = 1 - self.p
        if train:
            drop, factor = self.p, 1.0 if self.mode == "paper" else 1 / keep
        else:
            drop, factor = 0.0, keep if self.mode == "paper" else 1.0
        self.factor, self.threshold = self.dtype.type(factor), np.uint64(drop * 2**32)
        self.write_key()
        if train:
            self.step += 1

    def write_key(self):
        """Write the key of the next pass to where kernels read it, unless it is there already."""
        words = self.seed, self.stream, self.step, self.first
        if self.key is None:
            self.key = self.device.zeros((4,), np.uint64)
        if words != self._written:
            self.device.write(self.key, np.array(words, np.uint64))
            self._written = words

    def _apply(self, x, y):
        arguments = x.reshape(-1), y.reshape(-1), self.factor, self.threshold, self.key
        if self.device.is_cuda:
            dropout_kernel[grid_for(x.size)](*arguments)
        else:
            dropout_host(*arguments)
        return y
