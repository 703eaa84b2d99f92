"""A process without the simulator that compiles kernels for a GPU; `compiler.py` starts it.

It reads pickled requests (kernel, argument types) from standard input, and writes a pickled
dictionary for each: "error", what the compiler says, and "place", the line that it is about; or
"doubles", the lines of a kernel that compute in float64.
"""

import io
import os
import pickle
import re
import struct
import sys
import types
from typing import Any, BinaryIO

TARGET = (8, 0)
"""Compute capability: NVIDIA's Ampere, the oldest that has all instructions of this project."""


def send(pipe: BinaryIO, content: bytes) -> None:
    """Write a message of any length."""
    pipe.write(struct.pack("<Q", len(content)) + content)
    pipe.flush()


def receive(pipe: BinaryIO) -> bytes | None:
    """The next message; None at the end."""
    head = pipe.read(8)
    return pipe.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else None


class Unpickler(pickle.Unpickler):
    """Makes device functions of the functions that the simulator called."""

    def persistent_load(self, saved: Any) -> Any:
        """A device function, from its pickled Python function."""
        from layers.device import cuda

        return cuda.jit(device=True)(loads(saved))


def loads(saved: bytes) -> Any:
    """What `compiler.py` has pickled."""
    return Unpickler(io.BytesIO(saved)).load()


def explained(error: Exception, file: str) -> dict[str, Any]:
    """What the compiler says, without its internals, and the last place in `file` that it names."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    said: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith(('File "', "During: ", "There are ", "- Resolution")) and said:
            break
        if line and not line.startswith(("Failed in", "File", "This error", "During")):
            said.append(line)
    return {
        "error": "\n".join(said[:4]) or f"{type(error).__name__}: {text}",
        "place": place_of(error, text, os.path.basename(file)),
    }


def place_of(error: Exception, text: str, file: str) -> int | None:
    """The line of `file`, by its name alone, that the compiler was at; None if it does not say."""
    lines = [
        int(line)
        for name, line in re.findall(r'File "(.+?)", line (\d+)', text)
        if name.endswith(file)
    ]
    # Not every message says it; then whatever Numba was busy with does.
    candidates: list[Any] = [getattr(error, "loc", None)]
    trace = error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        candidates += [
            getattr(names.get(name), "loc", None) for name in ("self", "inst", "expr", "value")
        ]
        candidates.append(names.get("loc"))
        trace = trace.tb_next
    lines += [at.line for at in candidates if str(getattr(at, "filename", "")).endswith(file)]
    return lines[-1] if lines else None


def double_lines(ptx: str) -> list[int]:
    """The lines of the source whose instructions compute in float64."""
    line, found = 0, set()
    for text in ptx.splitlines():
        if at := re.match(r"\s*\.loc\s+\d+\s+(\d+)", text):
            line = int(at[1])
        elif re.search(r"\b(add|sub|mul|div|fma|cvt|neg|max|min|sqrt)\.[\w.]*f64", text):
            found.add(line)
    return sorted(found - {0})


def compiled(function: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What becomes of a kernel for arguments of these types."""
    from layers.device import cuda

    file = function.__code__.co_filename
    try:
        options = {"cc": TARGET, "device": False, "abi": "numba", "output": "ptx"}
        ptx, _ = cuda.compile(function, arguments, lineinfo=True, **options)
    except Exception as error:  # whatever stops the compiler would stop the kernel
        return explained(error, file)
    return {"doubles": double_lines(ptx.decode() if isinstance(ptx, bytes) else ptx)}


def serve() -> None:
    """Answer until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    sys.path[:] = pickle.loads(receive(requests) or b"")
    from layers.device import cuda  # before anything else of Numba's CUDA

    # Of a GPU, Numba asks this before it compiles a device function.
    cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=TARGET)
    while (request := receive(requests)) is not None:
        try:
            answer = compiled(*loads(request))
        except Exception as error:  # of an import, or of unpickling: no fault of the kernel
            answer = {"unable": f"{type(error).__name__}: {error}"}
        send(answers, pickle.dumps(answer))


if __name__ == "__main__":
    serve()
