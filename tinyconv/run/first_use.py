"""How a program begins: one line if it compiles the host loops; output in any encoding.

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


def tolerate_any_text() -> None:
    """Print what the terminal's encoding lacks (× in ASCII, 猫 in cp1251) as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def compilation_announced(stream: TextIO | None = None) -> Iterator[None]:
    """Within it, the first compilation of a host loop writes one line, by default to stderr.

    Every program begins with it, so it also makes the output tolerate any text.
    """
    tolerate_any_text()
    listener = _FirstCompilation(stream or sys.stderr)
    event.register(COMPILATION, listener)
    try:
        yield
    finally:
        event.unregister(COMPILATION, listener)
