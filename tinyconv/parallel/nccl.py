"""All-reduce of gradients on GPUs by NCCL, beside the backward pass.

The order of NCCL's sums depends on the machines and its version, not on chance: the same machines
give the same bits. NCCL connects its ranks over the first network interface that it finds.
"""

import importlib
from typing import Any

import numpy as np

from layers import Device, DeviceError
from tinyconv.parallel.communicator import Communicator, one_line


class NCCL:
    """Sums on GPUs, one GPU per rank. Not yet run on two GPUs; the tests emulate NCCL.

    hosts: connects the ranks for everything else; device: a real GPU. The sums have a stream of
    their own: it waits for the work queued before `start`, and the work queued after `finish` waits
    for it. DeviceError, on all ranks, if one of them has no NCCL.
    """

    def __init__(self, hosts: Communicator, device: Device) -> None:
        self._cuda, missing, own = device.xp.cuda, "", ()
        try:
            self._nccl = importlib.import_module(f"{device.xp.__name__}.cuda.nccl")
            if not self._nccl.available:
                missing = "CuPy does not find it"
            elif hosts.rank == 0:
                own = self._nccl.get_unique_id()
        except ImportError as error:
            missing = one_line(error)
        found = hosts.exchange((missing, own))
        for rank, (text, _) in enumerate(found):
            if text:
                raise DeviceError(
                    f"{device.name}: NCCL is missing on rank {rank} ({text}): pip install "
                    "-e '.[nccl12]' or '.[nccl13]', whichever CUDA CuPy is for"
                )
        self._comm = self._nccl.NcclCommunicator(hosts.size, found[0][1], hosts.rank)
        self._stream = self._cuda.Stream(non_blocking=True)
        self._filled = self._cuda.Event(disable_timing=True)
        self._summed = self._cuda.Event(disable_timing=True)

    def start(self, flat: Any) -> None:
        """Queue the sum after the work queued so far."""
        self._filled.record(self._cuda.get_current_stream())
        self._stream.wait_event(self._filled)
        nccl, pointer = self._nccl, flat.data.ptr
        dtype = nccl.NCCL_FLOAT32 if flat.dtype == np.float32 else nccl.NCCL_FLOAT64
        self._comm.allReduce(pointer, pointer, flat.size, dtype, nccl.NCCL_SUM, self._stream.ptr)

    def finish(self) -> None:
        """Let the work queued from now on wait for the sums."""
        self._summed.record(self._stream)
        self._cuda.get_current_stream().wait_event(self._summed)

    def close(self) -> None:
        """End NCCL."""
        self._stream.synchronize()
        self._comm.destroy()
