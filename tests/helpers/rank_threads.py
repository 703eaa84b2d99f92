"""Ranks that are threads of one process."""

import threading

from tinyconv.parallel.communicator import SLOT, SharedMemory


def connected(size):
    """Communicators of so many ranks."""
    barrier, memory = threading.Barrier(size), bytearray(2 * size * SLOT)
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
