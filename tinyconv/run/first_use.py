"""How a program begins: its output tolerates any text, and Ctrl-C is one line at any moment.

`layers/process/compiling.py` announces that host loops are compiled, also at a Python prompt.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def tolerate_any_text() -> None:
    """Print what the terminal's encoding lacks (× in ASCII, 猫 in cp1251) as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def compilation_announced() -> Iterator[None]:
    """Every program runs within it: any text can be printed; Ctrl-C ends it with status 130."""
    tolerate_any_text()
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
