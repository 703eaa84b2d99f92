"""Two numbers for each first filter (paper, figure 3): how coarse it is, and how colourful.

Both are shares of the filter's sum of squares, from 0 to 1, with a known expectation for
white noise, that is for independent random weights. Filters of zeros count as 0.
"""

import numpy as np


def low_frequencies(weight: np.ndarray) -> np.ndarray:
    """How much of each filter is edges, blobs and coarse gratings: its share of low frequencies.

    weight (K, R, S, 3). F is the 2-D discrete Fourier transform of one colour of a filter, and |F|²
    its energy by frequency. The result (K,) is the energy at periods of 3 pixels and more,
    √(u² + v²) ≤ 1/3 cycle per pixel, divided by the whole, both summed over the colours. So a
    uniform patch and a grating of three periods in 11 pixels have 1, sharp edges 0.86 to 0.94, and
    finer gratings 0. White noise is expected at `low_frequencies_of_noise`. ValueError if there are
    not three colours.
    """
    energy = np.square(np.abs(np.fft.fft2(_checked(weight), axes=(1, 2)))).sum(axis=3)
    return _share(energy[:, _is_low(*weight.shape[1:3])].sum(axis=1), energy.sum(axis=(1, 2)))


def low_frequencies_of_noise(rows: int, columns: int) -> float:
    """The expectation of `low_frequencies` for filters of white noise: 45/121 for 11×11.

    White noise has the same energy at each frequency: its share is that of the frequencies.
    """
    return float(_is_low(rows, columns).mean())


def _is_low(rows: int, columns: int) -> np.ndarray:
    """Which frequencies of the transform are low, (rows, columns); in integers, exact at 1/3."""
    u, v = np.arange(rows), np.arange(columns)
    u, v = np.minimum(u, rows - u), np.minimum(v, columns - v)
    # (u / rows)² + (v / columns)² ≤ 1 / 3²
    return 9 * ((columns * u[:, None]) ** 2 + (rows * v) ** 2) <= (rows * columns) ** 2


def colourfulness(weight: np.ndarray) -> np.ndarray:
    """How far each filter is from grey: 0 sees brightness only, 1 colour differences only.

    weight (K, R, S, 3). A filter's three numbers at one place have a mean, which answers to grey,
    and deviations from it, which answer to colour. The result (K,) is the share of the deviations
    in the sum of squares over all places: Σ (w − mean)² / Σ w². White noise is expected at 2/3, as
    two of three directions in colour space are not grey. ValueError if there are not three colours.
    """
    weight = _checked(weight)
    deviation = weight - weight.mean(axis=3, keepdims=True)
    return _share(*(np.square(each).sum(axis=(1, 2, 3)) for each in (deviation, weight)))


def _checked(weight: np.ndarray) -> np.ndarray:
    if weight.ndim != 4 or weight.shape[3] != 3:
        raise ValueError(f"filters are {weight.shape}, expected (K, R, S, 3)")
    return np.asarray(weight, np.float64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole > 0, whole, 1)
