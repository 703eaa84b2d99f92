"""Copies from one device to another, queued beside the computing.

The paper's GPUs read and wrote each other's memory without going through the host's (§3.5). Where
the hardware can, so do these; elsewhere a copy goes through pinned memory of the host.
"""

from typing import Any

import numpy as np

from layers import Device
from layers.fast.streams import pinned

ALREADY_ENABLED = 704
"""CUDA's error number cudaErrorPeerAccessAlreadyEnabled."""


class Link:
    """Copies of arrays from one device to another, beside the computing.

    source, target: two hosts or simulated GPUs, two GPUs, or one GPU twice. Attribute `way`:
    "memory" within one memory; "peer" from GPU to GPU; "pinned", where the GPUs cannot reach each
    other, through pinned memory of the host. Copies between GPUs have streams of their own; events
    order them with the streams on which the two devices compute, and the host never waits:

        send    the copy waits for all the computing queued so far, on both devices
        take    the computing queued from now on, on both devices, waits for the copy

    ValueError for a host and a GPU. Not yet run on two GPUs; the tests run it in all sorts of
    orders against a fake CuPy.
    """

    def __init__(self, source: Device, target: Device) -> None:
        if source.is_cuda != target.is_cuda:
            raise ValueError(
                f"cannot link {source.name} and {target.name}: use two GPUs, or the host twice"
            )
        self.source, self.target, self.way = source, target, "memory"
        if source == target:
            return
        self._cuda = target.xp.cuda
        self._staged: np.ndarray = np.empty(0, np.uint8)
        with source.current():
            self._computed = self._event()
            self._left = self._event()
            self._leaving = self._cuda.Stream(non_blocking=True)
        with target.current():
            self._free = self._event()
            self._arrived = self._event()
            self._arriving = self._cuda.Stream(non_blocking=True)
            self.way = "peer" if self._reach_peer() else "pinned"

    def send(self, array: Any, into: Any) -> None:
        """Queue a copy of `array` on the source to `into` on the target; `take` has to follow.

        Both are C-contiguous, of one shape and dtype, and stay as they are until then.
        """
        if self.way == "memory":
            into[...] = array
            return
        with self.source.current():
            self._computed.record(self._cuda.get_current_stream())
        with self.target.current():
            self._free.record(self._cuda.get_current_stream())
            self._arriving.wait_event(self._free)
        if self.way == "peer":
            self._copy_to_peer(array, into)
        else:
            self._copy_through_host(array, into)

    def take(self) -> None:
        """Let the computing queued from now on, on both devices, wait for the copy."""
        if self.way != "memory":
            for device in (self.source, self.target):
                with device.current():
                    self._cuda.get_current_stream().wait_event(self._arrived)

    def _copy_to_peer(self, array: Any, into: Any) -> None:
        places = into.data.ptr, self.target.index, array.data.ptr, self.source.index
        with self.target.current():
            self._arriving.wait_event(self._computed)
            self._cuda.runtime.memcpyPeerAsync(*places, array.nbytes, self._arriving.ptr)
            self._arrived.record(self._arriving)

    def _copy_through_host(self, array: Any, into: Any) -> None:
        if self._staged.size < array.nbytes:
            self._arriving.synchronize()  # the memory that is given back may still be read
            self._staged = pinned(self.source, (array.nbytes,), np.uint8)
        staged = self._staged[: array.nbytes].view(array.dtype).reshape(array.shape)
        with self.source.current():
            self._leaving.wait_event(self._computed)
            self._leaving.wait_event(self._arrived)  # the last copy has left the pinned memory
            array.get(stream=self._leaving, out=staged, blocking=False)
            self._left.record(self._leaving)
        with self.target.current():
            self._arriving.wait_event(self._left)
            into.set(staged, stream=self._arriving)
            self._arrived.record(self._arriving)

    def _event(self) -> Any:
        return self._cuda.Event(disable_timing=True)

    def _reach_peer(self) -> bool:
        """Let the target read the source's memory; False if the hardware cannot."""
        runtime = self._cuda.runtime
        if not runtime.deviceCanAccessPeer(self.target.index, self.source.index):
            return False
        try:
            runtime.deviceEnablePeerAccess(self.source.index)
        except runtime.CUDARuntimeError as error:
            if error.status != ALREADY_ENABLED:
                raise
        return True
