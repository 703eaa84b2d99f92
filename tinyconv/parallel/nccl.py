"""All-reduce of gradients on GPUs by NCCL, beside the backward pass.

The order of NCCL's sums depends on the machines and its version, not on chance: the same machines
give the same bits. NCCL connects its ranks over the first network interface that it finds.
"""

import importlib

import numpy as np

from layers import Device
from tinyconv.parallel.communicator import Communicator, CommunicatorError, one_line


class NCCL(Communicator):
    """Sums on GPUs, one GPU per rank. Not yet run on two GPUs; the tests emulate NCCL.

    hosts: the communicator for everything but the sums; device: a real GPU. The sums have a stream
    of their own: it waits for the work queued before `start`, and the work queued after `finish`
    waits for it. CommunicatorError, on all ranks, if one of them has no NCCL.
    """

    def __init__(self, hosts: Communicator, device: Device) -> None:
        super().__init__(hosts.rank, hosts.size)
        self._hosts, self._cuda = hosts, device.xp.cuda
        try:
            self._nccl = importlib.import_module(f"{device.xp.__name__}.cuda.nccl")
            missing = "" if self._nccl.available else "CuPy does not find it"
        except ImportError as error:
            missing = one_line(error)
        for rank, text in enumerate(hosts.texts(missing)):
            if text:
                raise CommunicatorError(
                    f"{device.name}: NCCL is missing on rank {rank} ({text}): pip install "
                    "-e '.[nccl12]' or '.[nccl13]', whichever CUDA CuPy is for"
                )
        identity = self._nccl.get_unique_id() if self.rank == 0 else ()
        shared = np.frombuffer(hosts.broadcast(np.array(identity, np.int64).tobytes()), np.int64)
        self._comm = self._nccl.NcclCommunicator(self.size, tuple(shared.tolist()), self.rank)
        self._stream = self._cuda.Stream(non_blocking=True)
        self._filled = self._cuda.Event(disable_timing=True)
        self._summed = self._cuda.Event(disable_timing=True)

    def exchange(self, values: np.ndarray) -> np.ndarray:
        """All-gather, between the hosts."""
        return self._hosts.exchange(values)

    def broadcast(self, data: bytes, root: int = 0) -> bytes:
        """Broadcast, between the hosts."""
        return self._hosts.broadcast(data, root)

    def start(self, stretch: slice) -> None:
        """Queue the sum after the work queued so far."""
        self._filled.record(self._cuda.get_current_stream())
        self._stream.wait_event(self._filled)
        flat, nccl = self._flat[stretch], self._nccl
        dtype = nccl.NCCL_FLOAT32 if flat.dtype == np.float32 else nccl.NCCL_FLOAT64
        pointer = flat.data.ptr
        self._comm.allReduce(pointer, pointer, flat.size, dtype, nccl.NCCL_SUM, self._stream.ptr)

    def finish(self) -> None:
        """Let the work queued from now on wait for the sums."""
        self._summed.record(self._stream)
        self._cuda.get_current_stream().wait_event(self._summed)

    def abort(self, status: int) -> None:
        """As the hosts' communicator does: NCCL itself would wait without end."""
        self._hosts.abort(status)

    def close(self) -> None:
        """End NCCL, then the hosts' communicator."""
        self._stream.synchronize()
        self._comm.destroy()
        self._hosts.close()
