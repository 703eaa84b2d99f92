"""The mean image of the training photos, and the covariance of their colours.

The mean image is subtracted from every photo (paper §2); the covariance of the colours, through
its eigenvectors and eigenvalues, gives the directions and sizes of the shifts of the colour
augmentation (§4.1, `augment.py`):

    mean_image[h, w, c] = Σ_n image[n, h, w, c] / N
    covariance[a, b]    = Σ pixel[a] · pixel[b] / M − (Σ pixel[a] / M) · (Σ pixel[b] / M)

with N photos and M = N · S² pixels, each of three numbers from 0 to 255.

The sums are integers. So the result is the same, to the bit, for any order and blocks of photos,
and the difference of two large, nearly equal numbers above is exact. 64 bits hold a sum of levels
of 3.6·10¹⁶ pixels, more than 10¹¹ photos of 512×512. A sum of products, each up to 255², would
overflow after 1.4·10¹⁴, so each block has its own sum, and Python's unbounded integers add them up.
"""

import numpy as np
from numba import njit

from layers.fast.host.threads import in_parallel, shares

# --- host


@njit(nogil=True, cache=True)
def add_host(images, sums, products):
    """`sums` (S, S, 3) grow by the images; `products` (S, 6) are each row's rr rg rb gg gb bb."""
    for h in range(images.shape[1]):
        rr = rg = rb = gg = gb = bb = 0
        for n in range(images.shape[0]):
            for w in range(images.shape[2]):
                r = np.int64(images[n, h, w, 0])
                g = np.int64(images[n, h, w, 1])
                b = np.int64(images[n, h, w, 2])
                sums[h, w, 0] += r
                sums[h, w, 1] += g
                sums[h, w, 2] += b
                rr += r * r
                rg += r * g
                rb += r * b
                gg += g * g
                gb += g * b
                bb += b * b
        for i, total in enumerate((rr, rg, rb, gg, gb, bb)):
            products[h, i] = total


class Statistics:
    """Mean image and colour covariance of square photos that arrive block by block.

    size: side S of the photos in pixels. `count` is the number of photos so far. Memory is that
    of the mean image alone, whatever the number of photos. For one thread at a time; it uses all
    cores. ValueError for a size below 1; the results of no photos are a ValueError too.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"Statistics: size must be at least 1 pixel, not {size}")
        self.size, self.count = size, 0
        self._sums = np.zeros((size, size, 3), np.int64)
        self._products = [0] * 6

    def add(self, images: np.ndarray) -> None:
        """Count photos in: NumPy, uint8 (N, S, S, 3), any N. ValueError for others."""
        wanted = f"uint8 (N, {self.size}, {self.size}, 3)"
        if not isinstance(images, np.ndarray):
            raise ValueError(
                f"Statistics: images are a {type(images).__name__}, expected a NumPy array {wanted}"
            )
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self._sums.shape:
            raise ValueError(
                f"Statistics: images are {images.dtype} {images.shape}, expected {wanted}"
            )
        products = np.empty((self.size, 6), np.int64)
        in_parallel(
            lambda _, part: add_host(images[:, part], self._sums[part], products[part]),
            shares(self.size),
        )
        for i, total in enumerate(products.sum(axis=0).tolist()):
            self._products[i] += total
        self.count += len(images)

    def mean_image(self) -> np.ndarray:
        """The mean of every pixel, float32 (S, S, 3) from 0 to 255, as `PhotoSet.mean_image`."""
        self._check_count()
        return (self._sums / self.count).astype(np.float32)

    @property
    def covariance(self) -> np.ndarray:
        """Population covariance of red, green and blue over all pixels, float64 (3, 3).

        On the scale 0 to 255, in squared levels; each element is the exact number, rounded once.
        """
        self._check_count()
        pixels = self.count * self.size**2
        totals = self._sums.sum(axis=(0, 1)).tolist()
        result = np.empty((3, 3))
        pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        for (a, b), product in zip(pairs, self._products, strict=True):
            # Python's integers, and its division, which rounds their exact quotient.
            exact = (pixels * product - totals[a] * totals[b]) / pixels**2
            result[a, b] = result[b, a] = exact
        return result

    @property
    def eigenvalues(self) -> np.ndarray:
        """Variances along the eigenvectors of `covariance`, float64 (3,), the largest first."""
        return self._eigen()[0]

    @property
    def eigenvectors(self) -> np.ndarray:
        """Unit eigenvectors of `covariance`, float64 (3, 3): column i belongs to eigenvalue i.

        Of the two directions each could have, the one whose largest component is positive.
        """
        return self._eigen()[1]

    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(self.covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        largest = np.abs(vectors).argmax(axis=0)
        signs = np.sign(vectors[largest, np.arange(3)])
        # Grey photos vary in one direction only; rounding may put the other two below zero.
        return np.maximum(values, 0), np.ascontiguousarray(vectors * signs)

    def _check_count(self) -> None:
        if not self.count:
            raise ValueError("Statistics: no photos were added, so there is no mean of them")
