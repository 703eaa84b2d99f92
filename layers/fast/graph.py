"""A training step recorded once and replayed: CUDA graphs.

A launch from Python costs tens of microseconds of host time, many times what a small kernel takes.
A CUDA graph is a list of launches that the driver keeps and starts with one call. It is made by
*capture*: between begin and end the stream records launches instead of running them, with the
kernel, its grid, and its arguments: numbers by value, arrays by address. So

* every array must stay where it was: all buffers are allocated before, and none may grow after;
* what changes from step to step is read from device memory, not passed as a number: learning rate,
  the key of the dropout masks, the labels;
* nothing in between may wait for the GPU or read a result.

A step multiplies by calling `products` below. With one_graph cuBLAS is captured like every kernel,
by way of `cublas.py`. CuPy itself refuses to capture it (CuPy 14): without that library, or if the
capture fails, a recording is cut at each matrix product: a graph, a product, a graph, and so on.
AlexNet's three fully connected layers make six cuts, hence seven graphs. Products are the same
calls in either.

In the simulator there is no driver; a recording is then the list of launches (kernel, grid, block,
arguments by reference), and a replay runs them again. That shows, without a GPU, whether a replay
computes what the step does. Not yet run on a GPU.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from layers.device import Device
from layers.fast.cublas import cublas_of
from layers.fast.gemm import multiply
from layers.simulator import recorded_launches

_this_thread = threading.local()


class Recording:
    """The launches of `work` on `device`, ready to be replayed.

    They do not run while they are recorded. `replay()` queues all of them; `pieces` are the
    functions that it calls, in order. one_graph: capture products, too, where `cublas.py` can; a
    GPU then has one piece. Whatever `work` raises ends the recording and is raised again.
    """

    def __init__(self, device: Device, work: Callable[[], Any], one_graph: bool = False) -> None:
        if not device.is_cuda:
            raise ValueError(f"Recording: {device.name} launches no kernels to record")
        self.device = device
        self.one_graph = one_graph and cublas_of(device) is not None
        self.pieces: list[Callable[[], Any]] = []
        self._stream: Any = None
        self._begin, self._end = (
            (self._begin_list, self._end_list)
            if device.is_simulated
            else (self._begin_capture, self._end_capture)
        )
        _this_thread.recording = self
        try:
            self._begin()
            try:
                work()
            except BaseException:
                self._give_up()
                raise
            self._end()
        finally:
            _this_thread.recording = None

    def replay(self) -> None:
        """Queue everything that was recorded, on the current stream."""
        for piece in self.pieces:
            piece()

    def cut(self, call: Callable[[], Any]) -> None:
        """End the graph here; each replay makes `call`, and continues with the next graph."""
        self._end()
        self.pieces.append(call)
        self._begin()

    def _begin_capture(self) -> None:
        # A non-blocking stream, which is not ordered with CUDA's default stream: a capture must not
        # depend on another stream. It is made current, so that launches go there.
        cuda = self.device.xp.cuda
        self._home = cuda.get_current_stream()
        self._stream = self._stream or cuda.Stream(non_blocking=True)
        self._stream.begin_capture()
        self._stream.use()

    def _end_capture(self) -> None:
        self._home.use()
        self.pieces.append(self._stream.end_capture().launch)

    def _begin_list(self) -> None:
        self._launches = recorded_launches(self.pieces)
        self._launches.__enter__()

    def _end_list(self) -> None:
        self._launches.__exit__(None, None, None)

    def _give_up(self) -> None:
        """End the capture after an error, which is already being raised."""
        with suppress(Exception):  # a failed capture raises again at its end
            self._end()


def products(device: Device, *triples: tuple[Any, Any, Any], precision: str = "fp32") -> None:
    """out = a · b for each (a, b, out), as `multiply` does; recorded if a recording is on."""
    call = partial(multiply, device, *triples, precision=precision)
    recording = getattr(_this_thread, "recording", None)
    if recording is None or recording.one_graph:
        call()
    else:
        recording.cut(call)
