"""Who hangs: whatever a rank has been doing when it fell silent, the board shows its number."""

import threading
import time

import numpy as np
import pytest
from rank_threads import connected, on_all

from tinyconv.parallel import replicas_memory
from tinyconv.parallel.launch import Patience


class Pipe:
    """A pipe that stands still before, or after, its rank's n-th use of any."""

    def __init__(self, pipe, uses, stop_at, go_on):
        self.pipe, self.uses, self.stop_at, self.go_on = pipe, uses, stop_at, go_on

    def _stop(self):
        self.uses.append(1)
        if len(self.uses) == self.stop_at:
            assert self.go_on.wait(30)

    def send_bytes(self, data):
        self._stop()
        self.pipe.send_bytes(data)

    def recv_bytes(self):
        self._stop()
        data = self.pipe.recv_bytes()
        self._stop()
        return data

    def fileno(self):
        self._stop()
        return self.pipe.fileno()

    def close(self):
        self.pipe.close()


def everything(ranks):
    """All that ranks do, and then once more a word with each other."""
    flat = np.full(11, ranks.rank, np.float32)
    ranks.exchange(np.zeros(1))
    ranks.attach(flat)
    weights = ranks.broadcast(bytes(100) if ranks.rank == 0 else b"")
    ranks.broadcast(b"abc" if ranks.rank == 2 else b"", 2)
    ranks.start(slice(5, 11))
    ranks.start(slice(0, 5))
    ranks.finish()
    ranks.exchange(np.zeros(1))
    uses = [len(pipe.uses) for pipe in ranks._pipes.values() if isinstance(pipe, Pipe)]
    ranks.exchange(np.zeros(1))
    ranks.close()
    return max(uses, default=0), weights, flat.tolist()


def hanging(size, who, board, stop_at, go_on):
    """Communicators, of which that of rank `who` stops."""
    ranks, uses = connected(size, board), []
    pipes = ranks[who]._pipes.items()
    ranks[who]._pipes = {peer: Pipe(pipe, uses, stop_at, go_on) for peer, pipe in pipes}
    return ranks


def find_late(board, who, go_on, found):
    """Note who is late when all others have come as far as they can; then the run goes on."""
    deadline = time.monotonic() + 20
    while not found and time.monotonic() < deadline:
        time.sleep(0.001)
        others = [number for rank, number in enumerate(board) if rank != who]
        if all(number % 2 and number > board[who] for number in others):
            patience = Patience(board, 0.0)
            patience.late()
            found.append(patience.late())
    go_on.set()


@pytest.mark.parametrize("who", [0, 1, 2])
@pytest.mark.parametrize("size", [3, 4])
def test_whenever_a_rank_hangs_its_number_becomes_the_lowest(monkeypatch, size, who):
    monkeypatch.setattr(replicas_memory, "PIECE", 40)
    total = on_all(hanging(size, who, [0] * size, 0, None), everything)[who][0]
    assert total > 12 * (size - 1)
    for stop_at in range(1, total + 1):
        board, go_on, found = [0] * size, threading.Event(), []
        watcher = threading.Thread(target=find_late, args=(board, who, go_on, found))
        watcher.start()
        results = on_all(hanging(size, who, board, stop_at, go_on), everything)
        watcher.join()
        assert found == [[who]], f"at the {stop_at}th use of a pipe"
        assert all(result[1:] == (bytes(100), [sum(range(size))] * 11) for result in results)


def test_a_root_that_a_full_pipe_holds_up_is_ahead_of_the_rank_that_hangs():
    board, go_on = [0] * 2, threading.Event()

    def work(ranks):
        ranks.exchange(np.zeros(1))
        if ranks.rank == 1:
            threading.Thread(target=watch).start()
            ranks._board = board_of_one_that_stops
        return len(ranks.broadcast(bytes(2**22) if ranks.rank == 0 else b""))

    class Stops(list):
        """A board at which rank 1 stands still in the middle of the broadcast."""

        def __setitem__(self, rank, number):
            board[rank] = number
            if number == 21:
                assert go_on.wait(30)

        def __getitem__(self, rank):
            return board[rank]

    board_of_one_that_stops, seen = Stops(), []

    def watch():
        while not (board[1] == 21 and board[0] > 23):
            time.sleep(0.001)
        patience = Patience(board, 0.0)
        patience.late()
        seen.append(patience.late())
        go_on.set()

    assert on_all(connected(2, board), work) == [2**22] * 2
    assert seen == [[1]]
