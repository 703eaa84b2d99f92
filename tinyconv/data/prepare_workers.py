"""Processes that decode photos, and their results in the order of the photos.

Each process has a pipe of its own: a process that is killed, even in the middle of a result, ends
its pipe, and that is noticed at once. It works the other way round as well: when the program is
killed, its processes find the pipe closed and end. They are spawned, not forked, and open files
for themselves.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from tinyconv.data.listing import Found, PrepareError, quoted
from tinyconv.data.photos import PhotoError, central_square, decode_square

IN_FLIGHT = 2
"""Batches a process holds: one to work on, one to begin with at once."""

AHEAD = 4
"""Batches for each process that may be finished before their turn."""


class Decoded(NamedTuple):
    """A batch of squares, uint8 (n, S, S, 3), and for each why it is not there, or ""."""

    images: np.ndarray
    reasons: list[str]


class Decoder:
    """Decodes batches of files in this process.

    Raises PrepareError if a file cannot be read at all: that says nothing about the photo.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._path = ""
        self._file: IO[bytes] | None = None  # the last one, left open: often an archive

    def batch(self, batch: Sequence[Found]) -> Decoded:
        """Decode each file of a batch; what is no readable photo leaves its square black."""
        images = np.zeros((len(batch), self.size, self.size, 3), np.uint8)
        reasons = []
        with warnings.catch_warnings():
            # Pillow's remarks on odd metadata: the pixels are read completely or not at all.
            warnings.simplefilter("ignore")
            for row, found in enumerate(batch):
                try:
                    if found.trouble:
                        raise PhotoError(found.trouble)
                    images[row] = decode_square(io.BytesIO(self._read(found)), self.size)
                    reasons.append("")
                except PhotoError as error:
                    if isinstance(error.__cause__, MemoryError):
                        raise PrepareError(
                            f"not enough memory to decode {quoted(found.name)}: use fewer --workers"
                        ) from error
                    reasons.append(_printable(str(error)))
        return Decoded(images, reasons)

    def close(self) -> None:
        """Close what is open."""
        if self._file:
            self._file.close()
        self._path, self._file = "", None

    def _read(self, found: Found) -> bytes:
        try:
            if self._path != found.path or self._file is None:
                self.close()
                self._file = open(found.path, "rb", buffering=0)  # noqa: SIM115
                self._path = found.path
            self._file.seek(found.offset)
            content = b""
            while len(content) < found.size:
                more = self._file.read(found.size - len(content))
                if not more:
                    raise PrepareError(
                        f"{quoted(found.path)} has become shorter since it was listed: leave the "
                        "source alone and run the same command again"
                    )
                content += more
            return content
        except PermissionError as error:
            raise PhotoError("no permission to read it") from error
        except OSError as error:
            raise PrepareError(
                f"cannot read {quoted(found.path)}: {error.strerror}; when that is fixed, run the "
                "same command again and it goes on"
            ) from error


def decode_here(batches: Sequence[Sequence[Found]], size: int) -> Iterator[Decoded]:
    """The batches, decoded in this process."""
    decoder = Decoder(size)
    try:
        for batch in batches:
            yield decoder.batch(batch)
    finally:
        decoder.close()


def decode_raw(raw: np.ndarray, bounds: Sequence[tuple[int, int]], size: int) -> Iterator[Decoded]:
    """Pixels that are in memory already, cut into batches and brought to the size."""
    for first, last in bounds:
        images = raw[first:last]
        if images.shape[1:3] != (size, size):
            squares = [central_square(Image.fromarray(image), size) for image in images]
            images = np.stack([np.asarray(square) for square in squares])
        yield Decoded(images, [""] * (last - first))


def decode_in_processes(
    batches: Sequence[Sequence[Found]], size: int, workers: int
) -> Iterator[Decoded]:
    """The batches in their order, decoded by `workers` processes; close it to end them.

    Raises PrepareError if a process dies, or reports that a file cannot be read.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[connection.Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for _ in range(min(workers, len(batches))):
            ours, theirs = context.Pipe()
            started = context.Process(target=_serve, args=(theirs, size), daemon=True)
            _start_deaf_to_ctrl_c(started)
            theirs.close()  # the process must be the only one to hold it
            processes[ours] = started
        yield from _in_order(batches, processes)
    finally:
        for process in processes.values():
            process.terminate()
        for ours, process in processes.items():
            process.join()
            ours.close()


def _in_order(
    batches: Sequence[Sequence[Found]],
    processes: dict[connection.Connection, multiprocessing.process.BaseProcess],
) -> Iterator[Decoded]:
    free = deque(list(processes) * IN_FLIGHT)
    done: dict[int, Decoded] = {}
    given = 0
    for wanted in range(len(batches)):
        while wanted not in done:
            while free and given < min(len(batches), wanted + AHEAD * len(processes)):
                _send(processes, free.popleft(), (given, batches[given]))
                given += 1
            for pipe in connection.wait(list(processes)):
                assert isinstance(pipe, connection.Connection)
                number, outcome = _receive(processes, pipe)
                if isinstance(outcome, str):
                    raise PrepareError(outcome)
                done[number] = outcome
                free.append(pipe)
        yield done.pop(wanted)


def _send(processes, pipe, message) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _died(processes[pipe]) from error


def _receive(processes, pipe) -> tuple[int, Decoded | str]:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise _died(processes[pipe]) from error


def _died(process: multiprocessing.process.BaseProcess) -> PrepareError:
    process.join(5)
    status = process.exitcode
    how = f"was killed (signal {-status})" if status and status < 0 else f"ended (status {status})"
    hint = "; if memory was short, use fewer --workers" if status == -9 else ""
    return PrepareError(f"a worker process {how}{hint}; run the same command again and it goes on")


def _start_deaf_to_ctrl_c(process: multiprocessing.process.BaseProcess) -> None:
    """Ctrl-C reaches every process of a terminal, and only the first should answer it.

    What is blocked when a process starts stays blocked in it, from its first moment.
    """
    if not hasattr(signal, "pthread_sigmask"):
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: connection.Connection, size: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decoder = Decoder(size)
    try:
        while True:
            number, batch = pipe.recv()
            try:
                outcome: Decoded | str = decoder.batch(batch)
            except PrepareError as error:
                outcome = str(error)
            pipe.send((number, outcome))
    except (EOFError, OSError):
        pass  # the program has ended, or wants no more


def _printable(reason: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in reason)
