"""From stored photos to the net's input: crop, flip, mean, colour (paper §2, §4.1).

    x[n, h, w, c] = (image[i, row, column, c] − mean[row, column, c] + shift[n, c]) / divisor

        i = n // views        row = top[n] + h
        column = left[n] + w, or left[n] + crop − 1 − w if flipped

Training has one view of an image, and draws its top, left, flip and shift anew each epoch. A
224-pixel crop of a 256-pixel square has 33 · 33 · 2 = 2178 versions, which keeps a net of 60
million parameters from memorizing its photos. (The paper counts 32 × 32 × 2 = 2048
versions; offsets 0 .. 32 are 33.) Testing takes the centre, not flipped, or ten views of each
image: its corners, its centre, and their mirror images.

The shift is one colour, the same for all pixels of the image:

    shift = p1 · a1 · s1 + p2 · a2 · s2 + p3 · a3 · s3        a1, a2, a3 from N(0, 0.1²)

The vectors p are the directions along which the colours of the training set's pixels vary without
correlation, the widest first: the eigenvectors of their covariance (`statistics.py`). `colour_axes`
says what the scales s are. In another light an object is still the same, and the net should say so.

The draws are a function of (seed, epoch, image), `layers/random_bits.py`: they do not depend on the
batch an image is in, nor on the device. The shift is computed on the host and rounded to float32
in every dtype. Images (N, S, S, 3) uint8, mean (S, S, 3), shift (N · views, 3), x (N · views, crop,
crop, 3) float32 or float64. docs/augment.md has an example to follow by hand.
"""

from typing import Any

import numpy as np
from numba import int32, njit

from layers import Device
from layers.device import cuda, grid_of
from layers.fast.bfloat16 import nearest_tf32
from layers.fast.conv.ptx import element, store_scalar, store_vec4
from layers.fast.conv.tensor_tile import quotient
from layers.fast.conv.tile import within
from layers.fast.host.threads import in_rows
from layers.fast.step import Step
from layers.layer import Buffers
from tinyconv.data.random_arrays import normals, words

COLOUR, TOP, LEFT, FLIP = 2**32 - 5, 2**32 - 3, 2**32 - 2, 2**32 - 1
"""Streams of the generator, counted down from the top: a net's layers count up from 0. The one
between them is `loader.ORDER`."""

COLOUR_STD = 0.1
"""Standard deviation of a1, a2, a3 (paper §4.1)."""

VIEWS = 10
"""Of each image, in `Augment.ten_views`."""

# --- host
#
# Loop and kernel do the same operations in one order, and no product stands beside a sum, which a
# GPU would round once instead of twice: they give the same bits.


@njit(nogil=True, cache=True)
def crop_host(x, source, top, left, flip, shift, images, mean, divisor):
    for n in range(x.shape[0]):
        i = source[n]
        for h in range(x.shape[1]):
            row = top[n] + h
            for w in range(x.shape[2]):
                column = left[n] + (x.shape[2] - 1 - w if flip[n] else w)
                for c in range(x.shape[3]):
                    value = mean.dtype.type(images[i, row, column, c])
                    x[n, h, w, c] = (value - mean[row, column, c] + shift[n, c]) / divisor


# --- kernel
#
# A block is QUADS × ROWS threads, for ROWS rows of a crop; a thread owns four neighbouring pixels,
# of which its image, row and colour shift are the same: nothing is divided to find them. It reads
# single bytes and means, as a crop begins anywhere, and neighbouring threads read neighbouring ones
# (backwards where the crop is flipped). Rows of whole fours are written by four numbers at a
# time. A photo's first byte is counted in 64 bits. No races, deterministic.
#
# x is (N, height, width, 3), or, if `s2d`, what conv1 multiplies (`space_to_depth.py`): the crop
# with a border of zeros that begins `before` pixels before it, in squares of 4 × 4 pixels. The four
# rows of a square are neighbouring threads, which write its 96 or 192 bytes.

QUADS, ROWS = 64, 4


@cuda.jit(inline="always", device=True)
def crop_pixel(images, mean, source, at, shifts, divisor, values, first):
    """Three channels of the pixel at `at` of a photo: less the mean, shifted, divided."""
    for c in range(3):
        value = values.dtype.type(element(images, source + at + c))
        values[first + c] = (value - element(mean, at + c) + shifts[c]) / divisor


@cuda.jit
def crop_kernel(
    images, mean, top, left, flip, shift, side, views, divisor, x, crop, height, width, before, s2d,
    rounded,
):  # fmt: skip
    values = cuda.local.array(12, mean.dtype)
    shifts = cuda.local.array(3, mean.dtype)
    n, row = cuda.blockIdx.x, int32(cuda.blockIdx.y * ROWS + cuda.threadIdx.x)
    if row >= height:
        return
    line, apart = (n * height + row) * width * 3, 12  # of x: the row, and from four to four
    if s2d:
        line, apart = (n * height + row - row % 4) * width * 3 + row % 4 * 12, 48
    h = int32(row - before)
    columns = int32(crop if within(h, crop) else 0)
    i = quotient(n, views)
    source = i * (side * side * 3)
    for c in range(3):
        shifts[c] = element(shift, 3 * n + c)
    step = int32(-3 if element(flip, n) else 3)
    first = element(left, n) + (crop - 1 if step < 0 else 0)
    begin = int32(((element(top, n) + h) * side + first) * 3)
    quad = int32(cuda.threadIdx.y)
    while 4 * quad < width:
        out = line + quad * apart
        w = int32(4 * quad - before)
        at = int32(begin + w * step)
        if width % 4 == 0:
            for pixel in range(4):
                if within(w + pixel, columns):
                    crop_pixel(images, mean, source, at, shifts, divisor, values, 3 * pixel)
                else:
                    for c in range(3):
                        values[3 * pixel + c] = 0
                at = int32(at + step)
            if rounded:
                for k in range(12):
                    values[k] = nearest_tf32(values[k])
            for part in range(3):
                store_vec4(x, out + 4 * part, values, 4 * part)
        else:
            for pixel in range(min(4, width - 4 * quad)):
                crop_pixel(images, mean, source, at, shifts, divisor, values, 0)
                at = int32(at + step)
                for c in range(3):
                    store_scalar(x, out + 3 * pixel + c, values, c)
        quad = int32(quad + QUADS)


# --- colour


def colour_axes(eigenvalues: np.ndarray, eigenvectors: np.ndarray, kind: str) -> np.ndarray | None:
    """The directions of the colour augmentation, each as long as its scale: p_i · s_i.

    eigenvalues (3,) and eigenvectors (3, 3), in columns, of the covariance of the training set's
    colours on the scale 0 to 255 (`Statistics`); kind: the recipe's `colour`. Returns float64
    (3, 3), column i = p_i · s_i in levels of that scale, or None for "none".

    "eigenvalue", s = λ: the paper's text. λ is a square, so it matters on which scale; here pixels
    are taken from 0 to 1 and the shift is brought back to 0 to 255, s = 255 · λ / 255² (§4.1 does
    not say; docs/augment.md argues). "deviation", s = √λ: the 2012 code.

    ValueError for another kind, shapes that do not fit, eigenvalues below 0 or not finite numbers.
    """
    if kind == "none":
        return None
    values, vectors = np.asarray(eigenvalues, np.float64), np.asarray(eigenvectors, np.float64)
    if values.shape != (3,) or vectors.shape != (3, 3):
        raise ValueError(
            f"colour_axes: eigenvalues {values.shape} and eigenvectors {vectors.shape} must be "
            "(3,) and (3, 3)"
        )
    if not (np.isfinite(vectors).all() and np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(
            f"colour_axes: eigenvalues must be finite and at least 0, not {values.tolist()}, and "
            f"eigenvectors finite, not {vectors.tolist()}"
        )
    if kind == "eigenvalue":
        return vectors * (values / 255)
    if kind == "deviation":
        return vectors * np.sqrt(values)
    raise ValueError(f"colour_axes: kind must be 'none', 'eigenvalue' or 'deviation', not {kind!r}")


# --- from photos to batches


class Augment:
    """Turns uint8 photos into input for the net, on the net's device.

    mean: (S, S, 3), the training set's mean image; crop: side of the net's input, at most S;
    divisor: the recipe's `input_divisor`; seed: of the random crops, flips and colours; colour:
    (3, 3) from `colour_axes`, or None to leave colours as they are. While `colour_on` is False
    they are left as well; crops and flips are the same either way. ValueError if the sizes do not
    fit.

    Images are NumPy arrays or, for a net on a GPU, may be there already; those are read where they
    are. What the methods return belongs to the Augment and is overwritten by the next call.
    """

    def __init__(
        self,
        mean: np.ndarray,
        crop: int,
        divisor: float = 1.0,
        seed: int = 0,
        colour: np.ndarray | None = None,
    ) -> None:
        if mean.ndim != 3 or mean.shape[0] != mean.shape[1] or not 1 <= crop <= mean.shape[0]:
            raise ValueError(f"Augment: crops of {crop} pixels do not fit a mean of {mean.shape}")
        self.mean, self.crop, self.divisor, self.seed = mean, crop, divisor, seed
        self.colour = None if colour is None else np.array(colour, np.float64)
        self.colour_on = True
        if self.colour is not None and self.colour.shape != (3, 3):
            raise ValueError(
                f"Augment: colour is {self.colour.shape}, expected (3, 3) as from colour_axes"
            )
        if self.colour is not None and not np.isfinite(self.colour).all():
            raise ValueError(f"Augment: colour must be finite, not {self.colour.tolist()}")
        self.to("cpu", np.float32)

    def to(self, device: Device | str, dtype: Any, reader: Any = None) -> "Augment":
        """Make batches on `device` in `dtype` from now on. Returns itself.

        reader: the first of a net's `steps`. If that is a convolution on tensor cores with a stride
        of 4, x is written as it multiplies x (`layers/fast/conv/space_to_depth.py`), for this net.
        """
        self.device, self.dtype = Device(device), np.dtype(dtype)
        image = self.crop, self.crop, 3
        self._s2d = reader.s2d_image(image, side=4) if isinstance(reader, Step) else None
        self._mean = self.device.array(self.mean, self.dtype)
        self._buffer = Buffers(self.device, self.dtype)
        return self

    def random(self, images: Any, ids: np.ndarray, epoch: int) -> Any:
        """Random crops, flips and colours of images (N, S, S, 3), x (N, crop, crop, 3).

        ids (N,) are the images' places in the set, which their draws belong to.
        """
        if np.shape(ids) != (len(images),):
            raise ValueError(f"Augment: {len(images)} images need as many ids, not {np.shape(ids)}")
        offsets = np.uint64(self.mean.shape[0] - self.crop + 1)
        # word · offsets / 2³² is uniform over 0 .. offsets − 1, but for one part in 2³² / offsets.
        top, left = (
            (words(self.seed, stream, epoch, ids) * offsets) >> np.uint64(32)
            for stream in (TOP, LEFT)
        )
        flip = words(self.seed, FLIP, epoch, ids) & np.uint32(1)
        return self._cut(images, top, left, flip, self._shift(ids, epoch))

    def centre(self, images: Any) -> Any:
        """The central crops of images (N, S, S, 3), not flipped: x (N, crop, crop, 3)."""
        offset = np.full(len(images), (self.mean.shape[0] - self.crop) // 2)
        return self._cut(images, offset, offset, np.zeros_like(offset))

    def ten_views(self, images: Any) -> Any:
        """Ten crops of each of images (N, S, S, 3), for testing: x (10 · N, crop, crop, 3).

        Row 10 · n + v is view v of image n: 0 top left, 1 top right, 2 bottom left, 3 bottom
        right, 4 centre, and 5 to 9 the mirror images of 0 to 4. The net's ten answers for an image
        are averaged (paper §4.1).
        """
        end = self.mean.shape[0] - self.crop
        corners = [0, 0, end, end, end // 2] * 2, [0, end, 0, end, end // 2] * 2
        flips = [0] * 5 + [1] * 5
        top, left, flip = (np.tile(each, len(images)) for each in (*corners, flips))
        return self._cut(images, top, left, flip, views=VIEWS)

    def _shift(self, ids: np.ndarray, epoch: int) -> np.ndarray | None:
        if self.colour is None or not self.colour_on:
            return None
        a = COLOUR_STD * normals(self.seed, COLOUR, epoch, ids)
        # Written out: a matrix product may round differently for another number of rows.
        first, second, third = (a[:, i, None] * self.colour[:, i] for i in range(3))
        return (first + second + third).astype(np.float32)

    def _cut(
        self, images: Any, top: Any, left: Any, flip: Any, shift: Any = None, views: int = 1
    ) -> Any:
        images = self._on_device(images)
        rows, s2d = len(images) * views, self._s2d
        shape = (self.crop, self.crop, 3) if s2d is None else s2d.shape
        x = self._buffer("x", (rows, *shape), s2d and s2d.dtype)
        draws = [self.device.array(draw, np.int32) for draw in (top, left, flip)]
        shift = np.zeros((rows, 3)) if shift is None else shift
        shifts = self.device.array(shift, self.dtype)
        divisor = self.dtype.type(self.divisor)
        if self.device.is_cuda:
            height, width = shape[:2] if s2d is None else (4 * shape[0], 4 * shape[1])
            before, rounded = (0, False) if s2d is None else (s2d.before, s2d.dtype == self.dtype)
            crop_kernel[grid_of((rows, -(-height // ROWS)), (ROWS, QUADS))](
                *(images.reshape(-1), self._mean.reshape(-1), *draws, shifts.reshape(-1)),
                *(self.mean.shape[0], views, divisor, x.reshape(-1), self.crop, height, width),
                *(before, s2d is not None, rounded),
            )
        else:
            crops = x, np.arange(rows) // views, *draws, shifts
            in_rows(crop_host, crops, images, self._mean, divisor)
        return x

    def _on_device(self, images: Any) -> Any:
        """The images where the net is: copied there only if they are not, after a check."""
        here = isinstance(images, self.device.xp.ndarray)
        if not here and not isinstance(images, np.ndarray):
            raise ValueError(
                f"Augment: images are a {type(images).__module__}.{type(images).__name__}, "
                f"expected a NumPy array, or one of {self.device.name}"
            )
        if images.shape[1:] != self.mean.shape or images.dtype != np.uint8:
            raise ValueError(
                f"Augment: images are {images.dtype} {images.shape}, expected uint8 (N, "
                f"{', '.join(str(side) for side in self.mean.shape)})"
            )
        if here and images.flags.c_contiguous:
            return images
        copy = self._buffer("images", images.shape, np.uint8)
        if here:
            copy[...] = images
        else:
            copy.set(images)
        return copy
