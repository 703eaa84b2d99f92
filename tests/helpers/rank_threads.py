"""Ranks that are threads of one process."""

import threading

from layers import DeviceError
from tinyconv.parallel.communicator import SLOT, SharedMemory
from tinyconv.train import TrainingError


def connected(size, slot=SLOT):
    """Communicators of so many ranks."""
    barrier, memory = threading.Barrier(size, timeout=30), bytearray(2 * size * slot)
    return [SharedMemory(rank, barrier, memory) for rank in range(size)]


def on_all(ranks, work):
    """work(communicator) in a thread for each rank: what it returned or raised."""
    results = [None] * len(ranks)

    def run(rank):
        try:
            results[rank] = work(ranks[rank])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results


def explain(error, whose=""):
    """As the example does it."""
    if isinstance(error, (DeviceError, ValueError)):
        return 2, f"error: {whose}{error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    return (1, f"{whose}{error}") if isinstance(error, TrainingError) else None
