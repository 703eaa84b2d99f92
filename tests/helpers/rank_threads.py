"""Ranks that are threads of one process."""

import threading
from multiprocessing import Pipe

from tinyconv.parallel.replicas_memory import SharedMemory


def connected(size, board=None):
    """Communicators of so many ranks, which write on `board`."""
    pipes = [[None] * size for _ in range(size)]
    for a in range(size):
        for b in range(a):
            pipes[a][b], pipes[b][a] = Pipe()
    board = [0] * size if board is None else board
    return [SharedMemory(rank, row, board) for rank, row in enumerate(pipes)]


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
