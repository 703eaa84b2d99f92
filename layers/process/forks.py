"""A process that was forked from one that has computed cannot compute.

Neither CUDA nor GNU's OpenMP, on which Numba's loops run, survives a fork: the child would be
terminated by OpenMP, or wait without end for threads that only its parent has. A child that is
forked before the first computation is not affected.
"""

import os
from typing import Any

import numba

from layers import device
from layers.layer import Buffers

MESSAGE = (
    "this process was forked from one that had already computed, and cannot compute itself: start "
    "it by multiprocessing.get_context('spawn')"
)


def has_computed() -> bool:
    """Whether a GPU is in use, or the threads of OpenMP have started."""
    try:
        return device._cupy is not None or numba.threading_layer() == "omp"
    except ValueError:  # no loop has run yet
        return False


def _refuse(*_: Any) -> Any:
    raise device.DeviceError(MESSAGE)


def _in_child() -> None:
    # Every pass of a layer, a step or an augmentation takes its arrays from a `Buffers`.
    if has_computed():
        setattr(Buffers, "__call__", _refuse)  # noqa: B010


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
