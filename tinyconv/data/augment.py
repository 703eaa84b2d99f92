"""From stored photos to the net's input: crop, flip, subtract the mean (paper §2, §4.1).

    x[n, h, w, c] = (image[n, row, column, c] − mean[row, column, c]) / divisor

        row = top[n] + h        column = left[n] + w, or left[n] + crop − 1 − w if flipped

Training draws top, left and the flip for
each image anew each epoch: a 224-pixel crop of a 256-pixel square has 33 · 33 · 2 = 2178 versions,
which keeps a net of 60 million parameters from learning its photos by heart. Testing takes the
centre and does not flip.

(The paper counts 32 × 32 × 2 = 2048 versions; offsets 0 .. 32 are 33.)

The draws are a function of (seed, epoch, image), `layers/random_bits.py`: they do not depend on the
batch an image is in, nor on the device. Images (N, S, S, 3) uint8, mean (S, S, 3), x (N, crop,
crop, 3) float32 or float64.
"""

from typing import Any

import numpy as np
from numba import njit, prange

from layers import Device
from layers.device import cuda, grid_for
from layers.layer import Buffers
from layers.random_bits import words

TOP, LEFT, FLIP = 2**32 - 3, 2**32 - 2, 2**32 - 1
"""Streams of the generator, counted down from the top: a net's layers count up from 0."""

# --- host


@njit(parallel=True, cache=True)
def crop_host(images, mean, top, left, flip, divisor, x):
    for n in prange(x.shape[0]):
        for h in range(x.shape[1]):
            row = top[n] + h
            for w in range(x.shape[2]):
                column = left[n] + (x.shape[2] - 1 - w if flip[n] else w)
                for c in range(x.shape[3]):
                    value = mean.dtype.type(images[n, row, column, c])
                    x[n, h, w, c] = (value - mean[row, column, c]) / divisor


# --- kernel
#
# One thread per element of x, c fastest: the threads of a warp read neighbouring bytes of one row
# (backwards by pixel where it is flipped) and write neighbouring floats. No races, deterministic.


@cuda.jit
def crop_kernel(images, mean, top, left, flip, divisor, x):
    index = cuda.grid(1)
    if index >= x.size:
        return
    c = index % x.shape[3]
    w = index // x.shape[3] % x.shape[2]
    h = index // (x.shape[3] * x.shape[2]) % x.shape[1]
    n = index // (x.shape[3] * x.shape[2] * x.shape[1])
    row = top[n] + h
    column = left[n] + (x.shape[2] - 1 - w if flip[n] else w)
    value = mean.dtype.type(images[n, row, column, c])
    x[n, h, w, c] = (value - mean[row, column, c]) / divisor


class Augment:
    """Turns uint8 photos into input for the net, on the net's device.

    mean: (S, S, 3), the training set's mean image; crop: side of the net's input, at most S;
    divisor: the recipe's `input_divisor`; seed: of the random crops and flips.
    ValueError if the sizes do not fit.
    """

    def __init__(self, mean: np.ndarray, crop: int, divisor: float = 1.0, seed: int = 0) -> None:
        if mean.ndim != 3 or mean.shape[0] != mean.shape[1] or not 1 <= crop <= mean.shape[0]:
            raise ValueError(f"Augment: crops of {crop} pixels do not fit a mean of {mean.shape}")
        self.mean, self.crop, self.divisor, self.seed = mean, crop, divisor, seed
        self.to("cpu", np.float32)

    def to(self, device: Device | str, dtype: Any) -> "Augment":
        """Make batches on `device` in `dtype` from now on. Returns itself."""
        self.device, self.dtype = Device(device), np.dtype(dtype)
        self._mean = self.device.array(self.mean, self.dtype)
        self._buffer = Buffers(self.device, self.dtype)
        return self

    def random(self, images: np.ndarray, ids: np.ndarray, epoch: int) -> Any:
        """Random crops and flips of images (N, S, S, 3); ids (N,) are their places in the set."""
        offsets = np.uint64(self.mean.shape[0] - self.crop + 1)
        # word · offsets / 2³² is uniform over 0 .. offsets − 1, but for one part in 2³² / offsets.
        top, left = (
            (words(self.seed, stream, epoch, ids) * offsets) >> np.uint64(32)
            for stream in (TOP, LEFT)
        )
        flip = words(self.seed, FLIP, epoch, ids) & np.uint32(1)
        return self._cut(images, top, left, flip)

    def centre(self, images: np.ndarray) -> Any:
        """The central crops of images (N, S, S, 3), not flipped."""
        offset = np.full(len(images), (self.mean.shape[0] - self.crop) // 2)
        return self._cut(images, offset, offset, np.zeros_like(offset))

    def _cut(self, images: np.ndarray, top: Any, left: Any, flip: Any) -> Any:
        if images.shape[1:] != self.mean.shape or images.dtype != np.uint8:
            raise ValueError(
                f"Augment: images are {images.dtype} {images.shape}, expected uint8 (N, "
                f"{', '.join(str(side) for side in self.mean.shape)})"
            )
        x = self._buffer("x", (len(images), self.crop, self.crop, 3))
        on_device = self._buffer("images", images.shape, np.uint8)
        on_device[...] = images if self.device.xp is np else self.device.array(images)
        draws = (self.device.array(draw, np.int32) for draw in (top, left, flip))
        arguments = (on_device, self._mean, *draws, self.dtype.type(self.divisor), x)
        if self.device.is_cuda:
            crop_kernel[grid_for(x.size)](*arguments)
        else:
            crop_host(*arguments)
        return x
