"""Ctrl-C and SIGTERM: noted when they arrive, and acted on between two steps.

A signal in the middle of a step must not end it there, or the checkpoint would hold half an update.
The second Ctrl-C interrupts at once, for a program that does not answer.
"""

import signal
from types import FrameType
from typing import Any


class StopSignals:
    """While in its `with` block, SIGINT and SIGTERM set `received` instead of ending the program.

    received: the signal's number, or 0; 128 + received is the exit status that shells expect (130,
    143). In a thread other than the main one Python allows no handlers, and nothing is noted.
    replica: this process's place among several, which all stop after the same step.
    """

    def __init__(self, replica: Any = None) -> None:
        self.received, self._replica = 0, replica
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> int:
        """The signal's number, or 0; with a replica that of any rank: all have to call this."""
        if self._replica is not None:
            self.received = self._replica.agree(self.received)
        return self.received

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
