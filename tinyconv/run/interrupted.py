"""Ctrl-C while a program still imports tinyconv: one line instead of a traceback.

Importing takes a second or more, in which no code of the program itself could catch it.
"""

import linecache
import os
import sys
from types import TracebackType
from typing import Any

RANK = "OMPI_COMM_WORLD_RANK", "PMI_RANK"
"""What mpiexec (Open MPI, MPICH) has set: it sends Ctrl-C to every rank, and rank 0 says it."""

_before: Any = sys.excepthook


def importing(trace: TracebackType | None) -> bool:
    """Whether the exception was raised while tinyconv was imported, or Python looked for it."""
    while trace:
        code, name = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__") or ""
        if code.co_filename.startswith("<frozen importlib"):
            return True
        if code.co_name == "<module>":
            line = linecache.getline(code.co_filename, trace.tb_lineno)
            ours = name.partition(".")[0] in ("tinyconv", "layers")
            if ours or line.startswith(("import ", "from ")):
                return True
        trace = trace.tb_next
    return False


def _hook(kind: Any, error: BaseException, trace: TracebackType | None) -> None:
    if not (issubclass(kind, KeyboardInterrupt) and importing(trace)):
        _before(kind, error, trace)
    elif not any(int(os.environ.get(name, 0)) for name in RANK):
        print("interrupted while importing", file=sys.stderr)


sys.excepthook = _hook
