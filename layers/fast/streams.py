"""Copies to and from a GPU that run while it computes: pinned memory, streams, events.

Not yet run on a GPU; the tests run it in all sorts of orders against a fake CuPy.
"""

import math
from typing import Any

import numpy as np

from layers.device import Device


def pinned(device: Device, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A NumPy array, contents undefined, from which `Uploads` can copy.

    For a GPU it is pinned memory, which the system does not move: only from there can a copy run
    while the host continues. Elsewhere it is an ordinary array.
    """
    if not device.is_cuda or device.is_simulated:
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    memory = device.xp.cuda.alloc_pinned_memory(count * dtype.itemsize)
    # The block is rounded up; the array keeps it alive.
    return np.frombuffer(memory, dtype, count).reshape(shape)


class Uploads:
    """Copies from pinned memory into a ring of arrays on a GPU, while the GPU computes.

    device: a real GPU; count: arrays in the ring, of `shape` and `dtype`. The copies have a stream
    of their own; events order them with the stream on which the caller computes, CuPy's current
    one, so that the host need not wait:

        begin    the copy waits for all work queued so far, which may use that array
        take     the work queued from now on waits for the copy
    """

    def __init__(self, device: Device, count: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._cuda = device.xp.cuda
        self._arrays = [device.empty(shape, dtype) for _ in range(count)]
        # The default stream waits for every stream that is not "non-blocking", and they for it.
        self._stream = self._cuda.Stream(non_blocking=True)
        self._free = self._cuda.Event(disable_timing=True)
        self._copied = [self._cuda.Event(disable_timing=True) for _ in range(count)]

    def begin(self, slot: int, rows: np.ndarray) -> None:
        """Queue a copy of `rows` to the beginning of array `slot`, which is no longer in use.

        `rows` must stay as they are until `wait`.
        """
        self._free.record(self._cuda.get_current_stream())
        self._stream.wait_event(self._free)
        self._arrays[slot][: len(rows)].set(rows, stream=self._stream)
        self._copied[slot].record(self._stream)

    def take(self, slot: int, count: int) -> Any:
        """The first `count` rows of array `slot`, for computing that is queued from now on."""
        self._cuda.get_current_stream().wait_event(self._copied[slot])
        return self._arrays[slot][:count]

    def wait(self, slot: int) -> None:
        """Return when the last copy into array `slot` is done: its source may be overwritten."""
        self._copied[slot].synchronize()

    def synchronize(self) -> None:
        """Return when all copies are done."""
        self._stream.synchronize()


class Pending:
    """A number that a device has been told to compute: float(x) waits until it is on the host.

    Attribute `skip`: an int32 array (1,) on the device, set there once a loss was not finite, or
    None.
    """

    def __init__(self, values: np.ndarray, place: int, event: Any, skip: Any = None) -> None:
        self._values, self._place, self._event, self.skip = values, place, event, skip

    def __float__(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._values[self._place])


class Downloads:
    """Copies of a small array to the host, into two slots in turn, without waiting.

    A slot is overwritten by the next copy but one: read what `begin` returned before that.
    """

    def __init__(self, device: Device, size: int, dtype: Any) -> None:
        self._slots = [pinned(device, (size,), dtype) for _ in range(2)]
        self._events: list[Any] = [None, None]
        if device.is_cuda and not device.is_simulated:
            self._events = [device.xp.cuda.Event(disable_timing=True) for _ in self._slots]
        self._next = 0

    def begin(self, array: Any) -> tuple[np.ndarray, Any]:
        """Queue a copy of `array`; returns the host's array and the event that it is complete."""
        slot, event = self._slots[self._next], self._events[self._next]
        self._next = 1 - self._next
        if event is None:
            slot[...] = array
        else:
            array.get(out=slot, blocking=False)
            event.record()
        return slot, event
