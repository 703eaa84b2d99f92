"""Host time of a launch's arrays in Numba, without and with `layers/process/launches.py`.

    python benchmarks/launch_cost.py

Needs no GPU: nothing is launched. A launch asks for the type of each argument and lays out the
words that the kernel is passed; both are timed, with an array that has what Numba asks of CuPy's:
`__dlpack__` (here NumPy's, so that CuPy's own share is missing), shape, strides, address. What the
driver takes for the launch itself is not among it.
"""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

if __name__ == "__main__":
    os.environ.pop("NUMBA_ENABLE_CUDASIM", None)  # its launches are others
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
from machine import machine  # noqa: E402
from measuring import in_turns, seconds, table  # noqa: E402

from layers.device import cuda  # noqa: E402, F401
from layers.process import launches  # noqa: E402

ROUNDS, CALLS = 15, 2000


class Array:
    """An array on the host with the interface of CuPy's."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.device = values, SimpleNamespace(id=0)
        self.shape, self.strides, self.size = values.shape, values.strides, values.size
        self.ndim, self.dtype, self.flags = values.ndim, values.dtype, values.flags
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class Kept(Array):
    """One whose views are kept."""


def one_argument(array: Array) -> Any:
    """A function that does what a launch does with an array, CALLS times."""
    from numba.cuda import dispatcher
    from numba.cuda.typing.typeof import typeof

    kernel: Any = SimpleNamespace(extensions=[])
    prepare, stream = dispatcher._Kernel._prepare_args, SimpleNamespace(handle=-1)

    def run() -> None:
        for _ in range(CALLS):
            prepare(kernel, typeof(array), array, stream, [], [None])

    return run


def measured() -> dict[str, float]:
    """Microseconds for one array, the median of ROUNDS rounds in turn."""
    stream = SimpleNamespace(ptr=0, is_capturing=lambda: False)
    runtime = SimpleNamespace(getDevice=lambda: 0)
    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)
    cupy.ndarray = Kept
    launches.keep_views(cupy)
    values = np.zeros((128, 27, 27, 96), np.float32)
    runs = {"described by DLPack": Array(values), "kept by `launches.py`": Kept(values)}
    timed = {name: one_argument(array) for name, array in runs.items()}
    found = in_turns({name: lambda run=run: seconds(run) for name, run in timed.items()}, ROUNDS)
    return {name: 1e6 * float(np.median(each)) / CALLS for name, each in found.items()}


def main() -> None:
    """Print the table."""
    rows = [[name, f"{found:.2f}"] for name, found in measured().items()]
    print(machine("numpy", "numba", "numba-cuda", "cuda-core"))
    print()
    print(table(["an array of a launch", "µs of the host"], rows))


if __name__ == "__main__":
    main()
