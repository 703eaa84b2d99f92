"""Arrays of other libraries as input: anything with `__dlpack__`, without a copy where possible."""

from typing import Any

import numpy as np

from layers import Device


def array_on(device: Device, array: Any, what: str = "x") -> Any:
    """`array` as an array of the device's library; NumPy's and CuPy's own pass unchanged.

    array: NumPy's, CuPy's, or anything with `__dlpack__` (a tensor of PyTorch, JAX, ...) on
    `device`: its memory is shared. ValueError for one that is elsewhere, or that has no
    `__dlpack__`.
    """
    if isinstance(array, np.ndarray | device.xp.ndarray):
        return array  # a layer's own check says if it is on the wrong device
    kind = f"{type(array).__module__}.{type(array).__name__}"
    if not hasattr(array, "__dlpack__"):
        raise ValueError(
            f"{what} is a {kind}, expected an array, or a tensor with __dlpack__; for paths and "
            "images see tinyconv.load_model(...).predict"
        )
    if getattr(array, "requires_grad", False):
        array = array.detach()
    try:
        return device.xp.from_dlpack(array)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise ValueError(
            f"{what}, a {kind}, cannot be used on {device.name} ({error}); move it there first"
        ) from None


def check_channels_last(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    """ValueError if an input of `shape` (N, ...) has the net's channels first.

    expected: (H, W, C) of one image, None where the net has not said. Images are (N, H, W, C).
    """
    if len(shape) != 4 or expected is None or len(expected) != 3:
        return
    height, width, channels = expected
    if shape[1:] != (height, width, channels) and shape[1:] == (channels, height, width):
        raise ValueError(
            f"x has shape {shape}: channels first (NCHW), and nets here take channels last "
            f"{('N', *expected)}; use numpy.moveaxis(x, 1, 3), or x.permute(0, 2, 3, 1) in PyTorch"
        )
