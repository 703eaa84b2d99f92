"""One line at the first run, which compiles the host loops.

Numba compiles each loop when it is first called, a quarter of a minute for all of them, and caches
the result beside the source (or in the user's cache, if that folder cannot be written). Without the
line the first run would seem to hang; later runs load everything from the cache and print nothing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from numba.core import event

COMPILATION = "numba:compile"  # not sent for what is found in the cache
PACKAGES = ("layers.", "tinyconv.")
LINE = "compiling the host loops (once; cached)..."


class _FirstCompilation(event.Listener):
    """Writes LINE when the first of our loops is compiled."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.said = stream, False

    def on_start(self, event: Any) -> None:
        function = getattr(event.data["dispatcher"], "py_func", None)
        if not self.said and getattr(function, "__module__", "").startswith(PACKAGES):
            self.said = True
            print(LINE, file=self.stream, flush=True)

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def compilation_announced(stream: TextIO | None = None) -> Iterator[None]:
    """Within it, the first compilation of a host loop writes one line, by default to stderr."""
    listener = _FirstCompilation(stream or sys.stderr)
    event.register(COMPILATION, listener)
    try:
        yield
    finally:
        event.unregister(COMPILATION, listener)
