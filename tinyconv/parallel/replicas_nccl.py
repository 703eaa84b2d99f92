"""Gradients on GPUs, summed by NCCL while the backward pass goes on.

NCCL adds in an order of its own, which depends on the machines and its version, not on chance: the
same machines give the same bits. It connects its ranks over the network interface it finds first.
"""

import importlib
from typing import Any

import numpy as np

from layers import Device
from tinyconv.parallel.communicator import Communicator, CommunicatorError, one_line


class NCCL(Communicator):
    """Sums on GPUs, one GPU a rank. Not yet run on two GPUs; the tests run it on a stand-in.

    others: the ranks' connection for everything but the sums; device: a real GPU. The sums have a
    stream of their own, which waits for the computing queued so far and is waited for in `finish`.
    CommunicatorError without NCCL.
    """

    def __init__(self, others: Communicator, device: Device) -> None:
        super().__init__(others.rank, others.size)
        self._others = others
        try:
            self._nccl = importlib.import_module(f"{device.xp.__name__}.cuda.nccl")
            missing = "" if self._nccl.available else "CuPy does not find it"
        except ImportError as error:
            missing = one_line(error)
        for rank, text in enumerate(others.texts(missing)):
            if text:
                raise CommunicatorError(
                    f"{device.name}: NCCL is not there on rank {rank} ({text}): pip install "
                    "'.[nccl12]' or '.[nccl13]', whichever CUDA CuPy is for"
                )
        self._cuda = device.xp.cuda
        identity = np.zeros(0, np.int64)
        if self.rank == 0:
            identity = np.array(self._nccl.get_unique_id(), np.int64)
        shared = np.frombuffer(others.broadcast(identity.tobytes()), np.int64)
        self._comm = self._nccl.NcclCommunicator(self.size, tuple(shared.tolist()), self.rank)
        self._stream = self._cuda.Stream(non_blocking=True)
        self._filled = self._cuda.Event(disable_timing=True)
        self._summed = self._cuda.Event(disable_timing=True)

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """As the ranks' other connection does it."""
        return self._others.exchange(values)

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """As the ranks' other connection does it."""
        return self._others.broadcast(data, root)

    def attach(self, flat: Any) -> None:
        """Name the array."""
        self._flat = flat
        single = flat.dtype == np.float32
        self._type = self._nccl.NCCL_FLOAT32 if single else self._nccl.NCCL_FLOAT64

    def start(self, stretch: slice) -> None:
        """Queue the sum behind what is queued for computing by now."""
        self._filled.record(self._cuda.get_current_stream())
        self._stream.wait_event(self._filled)
        place = self._flat[stretch]
        self._comm.allReduce(
            place.data.ptr, place.data.ptr, place.size, self._type, self._nccl.NCCL_SUM,
            self._stream.ptr,
        )  # fmt: skip

    def finish(self) -> None:
        """Let computing wait for the sums."""
        self._summed.record(self._stream)
        self._cuda.get_current_stream().wait_event(self._summed)

    def close(self) -> None:
        """End NCCL, then the other connection."""
        self._stream.synchronize()
        self._comm.destroy()
        self._others.close()

    def abort(self, status: int) -> None:
        """As the other connection does it: NCCL itself would wait for ever."""
        self._others.abort(status)
