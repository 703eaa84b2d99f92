"""The error of Winograd's algorithm in float32, by the size of its tiles.

    python benchmarks/winograd_error.py        # the table of docs/winograd.md

One convolution of 64 channels and 64 filters with normally distributed x, weights and dL/dy, by
`layers/fast/host/winograd.py` with tiles of each size, and by im2col. Errors are root mean squares
of the difference from im2col in float64, relative to that of the result.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from layers import Conv2D, Device  # noqa: E402, I001 (before NumPy)
from layers.fast.host import winograd  # noqa: E402
from layers.fast.host.im2col import Im2colConv  # noqa: E402

import numpy as np  # noqa: E402
from machine import machine  # noqa: E402
from measuring import table  # noqa: E402

TILES = (4, 3), (2, 5), (5, 3), (3, 5), (4, 5)
"""Outputs of a tile in each direction, and the side of the filter."""


def results(kind, r, dtype, channels):
    """y, dx and dw by a step of this kind; the same numbers, rounded to float32, in any dtype."""
    conv, rng = (
        Conv2D(channels, channels, r, padding=r // 2).to("cpu", dtype),
        np.random.default_rng(0),
    )
    x, w, dy = (
        rng.standard_normal(shape).astype(np.float32).astype(dtype)
        for shape in ((8, 20, 20, channels), conv.weight.value.shape, (8, 20, 20, channels))
    )
    conv.weight.value[...] = w
    step = kind([conv], Device("cpu"), dtype)
    y = step.forward(x).astype(np.float64)
    return y, step.backward(dy).astype(np.float64), conv.weight.grad.astype(np.float64)


def errors(kind, r, channels):
    """Of y, dx and dw in float32."""
    exact = results(Im2colConv, r, np.float64, channels)
    found = results(kind, r, np.float32, channels)
    return [
        float(np.sqrt(np.mean((mine - right) ** 2) / np.mean(right**2)))
        for mine, right in zip(found, exact, strict=True)
    ]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--channels", type=int, default=64)
    options = parser.parse_args(arguments)
    rows = []
    chosen = winograd.tile_side
    try:
        for m, r in TILES:
            winograd.tile_side = lambda outputs, side, m=m: m
            found = errors(winograd.WinogradConv, r, options.channels)
            rows.append([f"{m + r - 1}", f"{m}", f"{r}×{r}", *(f"{error:.1e}" for error in found)])
    finally:
        winograd.tile_side = chosen
    for r in (3, 5):
        found = errors(Im2colConv, r, options.channels)
        rows.append(["im2col", "", f"{r}×{r}", *(f"{error:.1e}" for error in found)])
    print(f"{options.channels} channels and filters\n{machine('numba', 'numpy')}\n")
    print(table(["n", "m", "filter", "y", "dx", "dw"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
